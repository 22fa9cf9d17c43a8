"""`lingula start`: what to train in a given time, by folds, and which of it to use."""
