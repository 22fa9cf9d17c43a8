"""What is done with scores: files, joins, metrics, ensembles, calibration."""
