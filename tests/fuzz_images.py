"""Reads mutated image files in a process of its own: `python fuzz_images.py FOLDER FIRST COUNT`.

Address space is limited to 512 MiB above what the process has after its imports, so that a file
that takes more fails with a MemoryError; signals that nothing handles end a read that hangs.
Every mutation follows from its number. Prints counts and whatever went wrong as JSON.
"""

from __future__ import annotations

import json
import resource
import signal
import struct
import sys
import time
import traceback
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

from lingula.images.dicom.facts import read_dicom_facts
from lingula.images.files import sniff
from lingula.images.reading import read_image
from lingula.system.errors import ImageError

LIMIT = 512 << 20
SECONDS = 10
"""Of the processor's time a file; twelve times that by the clock, since machines are shared."""

# Tags whose two bytes of value decide about memory: sizes, samples, bits, planes.
SIZES = [
    struct.pack("<HH", 0x28, element)
    for element in (0x02, 0x06, 0x10, 0x11, 0x100, 0x101, 0x102, 0x103, 0x120, 0x1050, 0x1051)
]
WILD = (0, 1, 2, 3, 7, 8, 9, 12, 15, 16, 17, 32, 255, 256, 3000, 14000, 32767, 32768, 65535)


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """One damage of a kind drawn at random, or several."""
    kinds = (flipped, flipped, in_header, cut, moved, wild, wild, wild)
    for _ in range(int(random.choice((1, 1, 1, 2, 4)))):
        data = kinds[int(random.integers(len(kinds)))](data, random)
    return data


def flipped(data: bytes, random: np.random.Generator, end: int | None = None) -> bytes:
    out = bytearray(data)
    for _ in range(int(random.integers(1, 12))):
        if out:
            out[int(random.integers(min(end or len(out), len(out))))] = int(random.integers(256))
    return bytes(out)


def in_header(data: bytes, random: np.random.Generator) -> bytes:
    """Behind the preamble, if there is one."""
    if data[128:132] == b"DICM":
        return data[:132] + flipped(data[132:], random, 900)
    return flipped(data, random, 300)


def cut(data: bytes, random: np.random.Generator) -> bytes:
    return data[: int(random.integers(len(data) + 1))]


def moved(data: bytes, random: np.random.Generator) -> bytes:
    """A piece doubled, dropped or zeroed."""
    at, length = int(random.integers(len(data) + 1)), int(random.integers(1, 64))
    piece = (data[at : at + length] * 2, b"", bytes(length))[int(random.integers(3))]
    return data[:at] + piece + data[at + length :]


def wild(data: bytes, random: np.random.Generator) -> bytes:
    """Header values that a reader would take memory by, otherwise well formed."""
    out, kind = bytearray(data), sniff(data[:132])
    values = [int(random.choice(WILD)) for _ in range(2)]
    if kind == "png" and len(out) > 33:
        struct.pack_into(">II", out, 16, *(v * int(random.choice((1, 1, 4))) for v in values))
        out[24] = int(random.choice((1, 2, 4, 8, 16)))
        out[25] = int(random.choice((0, 2, 3, 4, 6)))
        struct.pack_into(">I", out, 29, zlib.crc32(out[12:29]))
        return bytes(out)
    if random.integers(2) or kind != "dicom":
        for mark in (b"\xff\xc0\x00", b"\xff\xc2\x00", b"\xff\xc3\x00", b"\xff\xf7\x00"):
            at = data.find(mark)
            if 0 <= at < len(out) - 12:
                struct.pack_into(">HH", out, at + 5, *values)
        at = data.find(b"\xff\x4f\xff\x51")
        if 0 <= at < len(out) - 60:
            field = int(random.integers(8))
            struct.pack_into(">I", out, at + 8 + 4 * field, values[0])
            if random.integers(2):  # the sizes of the file agree with it
                for tag, v in zip((SIZES[3], SIZES[2]), values, strict=True):
                    put(out, tag, v)
                struct.pack_into(">II", out, at + 8, *values)
                struct.pack_into(">II", out, at + 24, *values)
    if kind == "dicom":
        for _ in range(int(random.integers(1, 4))):
            put(out, SIZES[int(random.integers(len(SIZES)))], int(random.choice(WILD)))
        if random.integers(4) == 0:  # a length
            at = data.find(bytes((0x28, 0)), int(random.integers(132, 700)))
            if 0 <= at < len(out) - 12:
                struct.pack_into("<I", out, at + 4, int(random.choice((2**32 - 1, 2**31, 65535))))
    return bytes(out)


def put(out: bytearray, tag: bytes, value: int) -> None:
    """Both sizes of little-endian headers: with a value representation, and without."""
    at = out.find(tag)
    if 0 <= at < len(out) - 10:
        struct.pack_into("<H", out, at + 8, value)


def look(path: Path) -> str:
    """The outcome of one file: `image`, or the kind of its error."""
    try:
        image = read_image(path)
    except ImageError as error:
        assert str(path) in str(error), f"the message does not name the file: {error}"
        return error.kind
    assert image.dtype == np.uint8 and image.ndim == 2 and image.size > 0, "no grey image"
    if sniff(path.read_bytes()[:132]) == "dicom":
        facts = read_dicom_facts(path)
        assert image.shape == (facts.rows, facts.columns), f"shape {image.shape}"
    return "image"


def main(folder: Path, first: int, count: int) -> None:
    sound = [path.read_bytes() for path in sorted((folder / "sound").iterdir())]
    path = folder / "mutated"
    for data in sound:
        path.write_bytes(data)
        look(path)  # imports every decoder
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + LIMIT, in_use + LIMIT))
    outcomes, wrong, slowest = Counter[str](), [], (0.0, -1)
    for number in range(first, first + count):
        random = np.random.default_rng(number)
        path.write_bytes(mutated(sound[number % len(sound)], random))
        (folder / "number").write_text(str(number))
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(12 * SECONDS)
        try:
            outcomes[look(path)] += 1
        except BaseException:
            wrong.append([number, number % len(sound), traceback.format_exc()[-400:]])
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        slowest = max(slowest, (time.process_time() - start, number))
    print(json.dumps({"outcomes": outcomes, "wrong": wrong, "slowest": slowest}))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
