"""Scores of several models as one."""
