"""The paper's tables run anew: what to run, whether it can run, what it costs, what came out."""
