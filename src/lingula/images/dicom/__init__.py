"""DICOM: the header, the frames, the pixels as a reader would see them."""
