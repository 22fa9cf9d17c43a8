"""The settings of a run: config, recipes, the paper's rows, label spaces, weight sources."""
