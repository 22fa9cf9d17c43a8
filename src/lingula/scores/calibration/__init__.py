"""Thresholds and probabilities, chosen on dev."""
