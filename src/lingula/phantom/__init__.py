"""The phantom: synthetic chest radiographs with the 26 findings of CXR-LT 2023, drawn in NumPy."""

from lingula.phantom.drawing import Box, render
from lingula.phantom.folder import is_phantom, phantom_in, write_phantom

__all__ = ["Box", "is_phantom", "phantom_in", "render", "write_phantom"]
