"""The version of the package, and the notice that stands on everything it writes."""

__version__ = "0.2.0.dev0"

NOTICE = "Research use only; not a medical device."
