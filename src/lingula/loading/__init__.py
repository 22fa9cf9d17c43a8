"""From rows of a table to batches of tensors, in an order that follows from the seed."""
