"""Small DICOM files for tests, by the builder that the cases are stated with."""

from __future__ import annotations

import base64
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
import simplejpeg
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

DX = "1.2.840.10008.5.1.4.1.1.1.1"

BASELINE = "1.2.840.10008.1.2.4.50"
LOSSLESS_JPEG = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
# pydicom's own encoders.
ENCODED = (
    "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.90",
)
PLAIN = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
)

# 24 x 24 of 12 bits by libjpeg-turbo 3: JPEG Extended (process 4).
TWELVE = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgICAgMCAgIDAwMDBAYEBAQEBAgGBgUGCQgKCgkICQkKDA8MCgsO"
    "CwkJDRENDg8QEBEQCgwSExIQEw8QEBD/wQALDAAYABgBAREA/8QAFQABAQAAAAAAAAAAAAAAAAAADAv/xAAsEAAA"
    "AQkECwAAAAAAAAAAAAADAAIEBgcICydhAQU2RAkKDBcZGjRFUVNU/9oACAEBAAA/AF9sZehXzjvCnaPJRX8OJXbw"
    "/SdQgxusYQr5x3mBb4kmr+NRO3h/RbQlEez58K/cd3UMkkor/TIXbw/BtCqkRl6JJ6PnhTtHm6rWG0rPB+k6pBjd"
    "YwiSej55gW+Juq1jUTPB/RbUlEez58ST0fO6hkk3la6ZCzwfg2pGk4y9E/H8eFO0ecyxYbSs+J6TqkGN1jCJ+P48"
    "wLfE5lixqJnxPotqSiPZ8+J+P47qGSTmWLpkLPieDal//9k="
)


def dcm(array: np.ndarray, bits: int, photo: str = "MONOCHROME2", **tags: Any) -> pydicom.Dataset:
    """An uncompressed little-endian data set of (H, W), (frames, H, W) or (H, W, 3)."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = DX
    dataset.SOPInstanceUID = generate_uid()
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = photo
    dataset.Rows, dataset.Columns = array.shape[-2:] if array.shape[-1] != 3 else array.shape[:2]
    dataset.BitsAllocated = 8 * array.itemsize
    dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(array.dtype.kind == "i")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd values are what the tests are about
        for name, value in tags.items():
            setattr(dataset, name, value)
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB" if array.itemsize == 1 else "OW"
    return dataset


def save(dataset: pydicom.Dataset, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(path, enforce_file_format=True)
    return path


def restored(dataset: pydicom.Dataset, syntax: str, path: Path) -> Path:
    """The same data set, saved in another transfer syntax."""
    if syntax in PLAIN:
        copy = deepcopy(dataset)
        if syntax == "1.2.840.10008.1.2.2" and dataset.BitsAllocated == 16:
            copy.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        copy.file_meta.TransferSyntaxUID = syntax
        return save(copy, path)
    if syntax == BASELINE:
        array = np.frombuffer(dataset.PixelData, np.uint8)
        array = array[: dataset.Rows * dataset.Columns].reshape(dataset.Rows, dataset.Columns, 1)
        frame = simplejpeg.encode_jpeg(np.ascontiguousarray(array), 95, "GRAY")
        return encoded(dataset, syntax, frame, path)
    if syntax in LOSSLESS_JPEG:
        save(dataset, path)
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return path
    copy = deepcopy(dataset)
    # gdcm's encoder aborts the process on odd sizes.
    copy.compress(syntax, encoding_plugin="pyjpegls" if syntax == ENCODED[1] else "pylibjpeg")
    return save(copy, path)


def encoded(dataset: pydicom.Dataset, syntax: str, frame: bytes, path: Path) -> Path:
    """The data set with a codestream in place of its pixels."""
    copy = deepcopy(dataset)
    copy.file_meta.TransferSyntaxUID = syntax
    copy.PixelData = encapsulate([frame])
    copy["PixelData"].VR = "OB"
    copy["PixelData"].is_undefined_length = True
    return save(copy, path)
