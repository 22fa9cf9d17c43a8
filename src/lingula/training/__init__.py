"""From a config and a table to a trained model in a run folder."""
