"""The phantom: synthetic chest radiographs with the 26 findings of CXR-LT 2023, drawn in NumPy."""

from lingula.phantom.folder import find_phantom, write_phantom

__all__ = ["find_phantom", "write_phantom"]
