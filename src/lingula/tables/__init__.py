"""From cells of a file to a table of images, patients, splits and labels."""
