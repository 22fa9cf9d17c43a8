"""Reading data: tables of labels, images, the phantom, batches."""
