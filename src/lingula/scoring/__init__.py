"""From a model and images to scores."""
