"""What measures speed: each bench is a verb, against a plain loop in the same process."""
