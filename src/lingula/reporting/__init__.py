"""Turning results into something to look at: tables, figures, one HTML page."""
