"""What a run is told: config, recipes, the paper's rows, label spaces."""
