"""From an image file to grey levels."""
