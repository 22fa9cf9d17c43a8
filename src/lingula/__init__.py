"""lingula: long-tailed multi-label classification of chest radiographs."""

__version__ = "0.1.0"
