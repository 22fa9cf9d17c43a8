"""What a DICOM header says against taking its image for a frontal chest film.

Nothing is refused for it, since headers are wrong at times: it is counted, named and warned of.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lingula.images.dicom.facts import OTHER, UNKNOWN, DicomFacts, dicom_facts
from lingula.images.formats import HEAD, sniff
from lingula.system.errors import ImageError, examples


def against(facts: DicomFacts) -> tuple[str, ...]:
    """What speaks against a film being a chest film from the front, fit to be looked at.

    Each is a key of `ADVICE`. What a header does not state speaks against nothing, except that a
    view which is not stated is said to be unknown.
    """
    return tuple(what for what, holds in _AGAINST.items() if holds(facts))


def facts_if_dicom(path: Path) -> DicomFacts | None:
    """The header's facts without ids; None for files of other kinds.

    Raises:
        ImageError: the file is missing or unreadable, or its header is damaged.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(HEAD)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "its name can't be used"
        raise ImageError("unreadable", f"{path} can't be opened: {reason}.") from None
    return dicom_facts(path) if sniff(head) == "dicom" else None


def odd_films(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Of DICOM files among these, those that something speaks against, by what it is.

    Only headers are read. Files that can't be read are passed over: reading them fails by name.
    """
    every = list(paths)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(_against_file, every))
    odd: dict[str, list[Path]] = defaultdict(list)
    for path, reasons in zip(every, found, strict=True):
        for what in reasons:
            odd[what].append(path)
    return {what: odd[what] for what in ADVICE if what in odd}


def _against_file(path: Path) -> tuple[str, ...]:
    try:
        facts = facts_if_dicom(path)
    except ImageError:
        return ()
    return () if facts is None else against(facts)


def odd_films_text(odd: Mapping[str, list[Path]]) -> list[str]:
    """A line for each thing that speaks against films, with their number, names and what to do."""
    return [
        f"{len(found)} {what}: {examples(found, 3)}. {ADVICE[what]}" for what, found in odd.items()
    ]


_FRONTAL = frozenset(("PA", "AP", "AP ERECT", "AP SUPINE", "AP HORIZONTAL"))
_NOT_STATED = frozenset((UNKNOWN, OTHER))

_AGAINST: dict[str, Callable[[DicomFacts], bool]] = {
    "films of another view": lambda facts: facts.view not in _FRONTAL | _NOT_STATED,
    "films of an unknown view": lambda facts: facts.view in _NOT_STATED,
    "films of another body part": lambda facts: (
        facts.body_part not in {"CHEST", "THORAX", "LUNG", UNKNOWN}
    ),
    "images of another modality": lambda facts: facts.modality not in {"CR", "DX", "RG", UNKNOWN},
    "films for processing": lambda facts: facts.intent == "FOR PROCESSING",
    "films with burned-in text": lambda facts: facts.burned_in is True,
    "images of several frames": lambda facts: facts.frames > 1,
}

ADVICE = {
    "films of another view": "A model of frontal films says nothing of these; filter by `view`.",
    "films of an unknown view": "Their headers do not say, in a known way, that they are frontal.",
    "films of another body part": "A model of chest films says nothing of these, if it is so.",
    "images of another modality": "Radiographs are CR, DX or RG: are these radiographs?",
    "films for processing": "They may look unlike films for presentation, which models know.",
    "films with burned-in text": "It may name the patient, and a model may learn to read it.",
    "images of several frames": "The first frame is read, the others are not.",
}
"""What to do about each thing that may speak against a film."""
