"""Grey levels kept on disk, so that an image is decoded once."""
