"""What a DICOM header says of an image, without what says whose it is.

Identifiers become keyed hashes. Codes are taken from closed lists, so that no free text, which may
contain a name, comes through. Names, birth dates, addresses and descriptions are never even parsed.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lingula.images.dicom.header import (
    COLOURS,
    GREYS,
    items,
    parse,
    quiet,
    sop_class,
    syntax_name,
    text,
    whole_number,
)
from lingula.images.files import open_image
from lingula.settings.vocabulary import parse_age, parse_sex
from lingula.system.errors import ImageError, InputError

if TYPE_CHECKING:
    from pydicom import Dataset

log = logging.getLogger("lingula")

UNKNOWN, OTHER = "UNKNOWN", "OTHER"


@dataclass(frozen=True)
class DicomFacts:
    """A header's facts. Codes are `UNKNOWN` where not stated, `OTHER` where not in our lists.

    Attributes:
        patient, study, series, instance, accession: keyed hashes (or, if asked for, the values);
            empty where not stated, or where there was no key.
        view: e.g. `PA`, `AP`, `LL`, `LATERAL`; from the view position, else the view's code.
        laterality: `R`, `L`, `B` or `U`.
        modality, body_part: e.g. `DX`, `CHEST`.
        intent: `FOR PRESENTATION` or `FOR PROCESSING`.
        sop_class, syntax: names of the kind of object and of the transfer syntax.
        photometric: e.g. `MONOCHROME1`.
        burned_in: whether text is burned into the pixels; None where not stated.
        rows, columns: the size; None where not stated.
        frames: how many there are; one is usual, and of more the first is read.
        age: in years; sex: `M`, `F` or `O`. Both only if asked for; None where not stated.
    """

    patient: str
    study: str
    series: str
    instance: str
    accession: str
    view: str
    laterality: str
    modality: str
    body_part: str
    intent: str
    sop_class: str
    syntax: str
    photometric: str
    burned_in: bool | None
    rows: int | None
    columns: int | None
    frames: int = 1
    age: float | None = None
    sex: str | None = None


def read_dicom_facts(
    path: str | Path,
    key: bytes | None = None,
    *,
    keep_ids: bool = False,
    demographics: bool = False,
) -> DicomFacts:
    """Read the facts of a DICOM file from its header alone, not the pixels.

    Args:
        path: the file.
        key: for the hashes of identifiers, from `read_or_make_key`; without it they are left out.
        keep_ids: give identifiers as they are; `key` is not needed then.
        demographics: give age and sex too.

    Raises:
        ImageError: the file is missing, unreadable, no DICOM, truncated or damaged.
    """
    file = Path(path)
    with quiet():
        keywords = (*_CODES, *_IDS.values(), *(_PERSON if demographics else ()))
        with open_image(file) as (stream, kind):
            if kind != "dicom":
                raise ImageError("not an image", f"{file} is not a DICOM file.")
            dataset, syntax = parse(stream, file, keywords, pixels=False)
        ids = dict.fromkeys(_IDS, "")
        for kind, keyword in _IDS.items():
            value = text(dataset, keyword)
            if value and keep_ids:
                ids[kind] = value
            elif value and key is not None:
                ids[kind] = pseudonym(key, kind, value)
        burned = text(dataset, "BurnedInAnnotation").upper()
        return DicomFacts(
            **ids,
            view=_view(dataset),
            laterality=_laterality(dataset),
            modality=_read_code(dataset, "Modality", _MODALITIES),
            body_part=_body_part(dataset),
            intent=_read_code(dataset, "PresentationIntentType", _INTENTS),
            sop_class=sop_class(dataset) or UNKNOWN,
            syntax=syntax_name(syntax),
            photometric=_read_code(dataset, "PhotometricInterpretation", _PHOTOMETRICS),
            burned_in={"YES": True, "NO": False}.get(burned),
            rows=whole_number(dataset, "Rows"),
            columns=whole_number(dataset, "Columns"),
            frames=whole_number(dataset, "NumberOfFrames") or 1,
            age=_age(text(dataset, "PatientAge")) if demographics else None,
            sex=_sex(text(dataset, "PatientSex")) if demographics else None,
        )


def pseudonym(key: bytes, kind: str, value: str) -> str:
    """Hash a value with a key, to 16 hex digits: HMAC-SHA256 of its kind and itself.

    The same value of another kind, or under another key, has another hash; without the key, values
    can't be found by trying.
    """
    message = kind.encode() + b"\0" + value.encode("utf-8", "surrogatepass")
    return hmac.new(key, message, hashlib.sha256).hexdigest()[:16]


def read_or_make_key(path: str | Path) -> bytes:
    """Read the key in a file of 64 hex digits; if absent, make one that only its owner may read.

    Raises:
        InputError: the file can't be read or written, or has no key in it.
    """
    file = Path(path)
    try:
        if not file.exists():
            _make_key(file)
        written = file.read_text(encoding="ascii", errors="replace").strip()
        if os.name == "posix" and file.stat().st_mode & 0o077:
            log.warning("Others may read the key %s: chmod 600 fixes it.", file)
    except OSError as error:
        raise InputError(f"The key {file} can't be read or made: {error.strerror}.") from None
    if not re.fullmatch("[0-9a-f]{64}", written):
        raise InputError(
            f"{file} has no key (64 hex digits) in it. Name a file that does not exist yet, and a "
            "key is made there."
        )
    return bytes.fromhex(written)


def _make_key(file: Path) -> None:
    """A new key, there whole or not at all; of two processes, the first one's stays."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # made with 0600
    try:
        with os.fdopen(handle, "w", encoding="ascii") as stream:
            stream.write(secrets.token_hex(32) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        try:
            # A link, not a rename: it leaves a key alone that was made meanwhile.
            os.link(name, file)
        except OSError:
            if not file.exists():  # a file system without links
                Path(name).replace(file)
    finally:
        Path(name).unlink(missing_ok=True)


def _read_code(dataset: Dataset, keyword: str, known: frozenset[str]) -> str:
    value = text(dataset, keyword).upper()
    return value if value in known else OTHER if value else UNKNOWN


def _view(dataset: Dataset) -> str:
    found = _read_code(dataset, "ViewPosition", _VIEWS)
    if found != UNKNOWN:
        return found
    for item in items(dataset, "ViewCodeSequence")[:1]:
        return _VIEW_CODES.get(text(item, "CodeValue"), OTHER)
    return UNKNOWN


def _body_part(dataset: Dataset) -> str:
    """A part of the list; of `CHEST PORTABLE` and the like, the first word if it is in the list."""
    whole = _read_code(dataset, "BodyPartExamined", _BODY_PARTS)
    first = re.split(r"[\s_,/]", text(dataset, "BodyPartExamined").upper())[0]
    return first if whole == OTHER and first in _BODY_PARTS else whole


def _laterality(dataset: Dataset) -> str:
    image = _read_code(dataset, "ImageLaterality", _SIDES)
    return _read_code(dataset, "Laterality", _SIDES) if image == UNKNOWN else image


def _age(stated: str) -> float | None:
    """Years of an age string, e.g. `062Y` or `018M`; bare digits are years. None if impossible."""
    years = parse_age(stated, zero=True)
    return None if years is None else round(years, 3)


def _sex(stated: str) -> str | None:
    code = parse_sex(stated)
    return None if code == "U" else code


_IDS = {
    "patient": "PatientID",
    "study": "StudyInstanceUID",
    "series": "SeriesInstanceUID",
    "instance": "SOPInstanceUID",
    "accession": "AccessionNumber",
}
_CODES = (
    "SOPClassUID",
    "Modality",
    "BodyPartExamined",
    "ViewPosition",
    "ViewCodeSequence",
    "Laterality",
    "ImageLaterality",
    "PresentationIntentType",
    "PhotometricInterpretation",
    "BurnedInAnnotation",
    "Rows",
    "Columns",
    "NumberOfFrames",
)
_PERSON = ("PatientAge", "PatientSex")

_PHOTOMETRICS = frozenset(GREYS + COLOURS)
_INTENTS = frozenset(("FOR PRESENTATION", "FOR PROCESSING"))
_SIDES = frozenset("RLBU")
_VIEWS = frozenset(
    (
        *("PA", "AP", "LL", "RL", "LATERAL", "LLD", "RLD", "LLO", "RLO", "LAO", "RAO", "LPO"),
        *("RPO", "OBLIQUE", "AP AXIAL", "PA LLD", "PA RLD", "AP LLD", "AP RLD", "AP ERECT"),
        *("AP SUPINE", "AP HORIZONTAL", "LAO DECUB", "XTABLE LATERAL", "SWIMMERS", "LORDOTIC"),
    )
)
# The standard's context group 4010, by SNOMED CT and by the older SNOMED RT codes.
_VIEW_CODES = {
    "272479007": "PA",
    "R-10214": "PA",
    "R-40888": "PA",
    "399348003": "AP",
    "R-10206": "AP",
    "399173006": "LL",
    "R-10236": "LL",
    "399198007": "RL",
    "R-10232": "RL",
    "399067008": "LATERAL",
    "R-102CD": "LATERAL",
    "399182000": "OBLIQUE",
    "R-102C1": "OBLIQUE",
    "399135007": "LAO",
    "R-10220": "LAO",
    "399356000": "RAO",
    "R-40985": "RAO",
    "399006002": "LPO",
    "R-10212": "LPO",
    "399038007": "RPO",
    "R-10210": "RPO",
}
_MODALITIES = frozenset(
    (
        *("CR", "DX", "RG", "RF", "XA", "SC", "OT", "CT", "MR", "US", "MG", "NM", "PT", "IO", "PX"),
        *("XC", "ES", "GM", "SM", "OP", "ECG", "SR", "PR", "KO", "DOC", "SEG", "REG", "BI", "HC"),
        *("RTIMAGE", "RTSTRUCT", "RTPLAN", "RTDOSE"),
    )
)
_BODY_PARTS = frozenset(
    (
        *("CHEST", "THORAX", "LUNG", "HEART", "RIB", "RIBS", "STERNUM", "CLAVICLE", "SHOULDER"),
        *("CHESTABDOMEN", "CHEST ABDOMEN", "CHESTABDPELVIS", "ABDOMEN", "ABDOMENPELVIS", "PELVIS"),
        *("HEAD", "SKULL", "NECK", "SPINE", "CSPINE", "TSPINE", "LSPINE", "SSPINE", "TLSPINE"),
        *("ARM", "HUMERUS", "ELBOW", "FOREARM", "WRIST", "HAND", "FINGER", "THUMB", "EXTREMITY"),
        *("HIP", "LEG", "FEMUR", "THIGH", "KNEE", "CALF", "TIBIA", "FIBULA", "ANKLE", "FOOT"),
        *("TOE", "BREAST", "JAW", "FACE", "WHOLEBODY", "SCAPULA", "CALCANEUS", "SACRUM", "COCCYX"),
    )
)


def read_facts_if_dicom(path: Path) -> DicomFacts | None:
    """Read the header's facts without ids; None for files of other kinds.

    Raises:
        ImageError: the file is missing or unreadable, or its header is damaged.
    """
    with open_image(path) as (_, kind):
        pass
    return read_dicom_facts(path) if kind == "dicom" else None


def find_oddities(facts: DicomFacts) -> tuple[str, ...]:
    """What speaks against taking an image for a frontal chest radiograph: keys of `ODDITIES`.

    Nothing is refused for it, since headers are wrong at times. What a header does not state speaks
    against nothing, except that a view which is not stated is said to be unknown.
    """
    return tuple(what for what, (_, applies) in _ODDITIES.items() if applies(facts))


_FRONTAL = frozenset(("PA", "AP", "AP ERECT", "AP SUPINE", "AP HORIZONTAL"))
_NOT_STATED = frozenset((UNKNOWN, OTHER))

_ODDITIES: dict[str, tuple[str, Callable[[DicomFacts], bool]]] = {
    "images of another view": (
        "A model of frontal radiographs says nothing of these; filter by `view`.",
        lambda facts: facts.view not in _FRONTAL | _NOT_STATED,
    ),
    "images of an unknown view": (
        "Their headers do not say, in a known way, that they are frontal.",
        lambda facts: facts.view in _NOT_STATED,
    ),
    "images of another body part": (
        "If so, a model of chest radiographs says nothing of these.",
        lambda facts: facts.body_part not in {"CHEST", "THORAX", "LUNG", UNKNOWN},
    ),
    "images of another modality": (
        "Radiographs are CR, DX or RG: are these radiographs?",
        lambda facts: facts.modality not in {"CR", "DX", "RG", UNKNOWN},
    ),
    "images for processing": (
        "They may look unlike images for presentation, which models know.",
        lambda facts: facts.intent == "FOR PROCESSING",
    ),
    "images with burned-in text": (
        "It may name the patient, and a model may learn to read it.",
        lambda facts: facts.burned_in is True,
    ),
    "images of several frames": (
        "The first frame is read, the others are not.",
        lambda facts: facts.frames > 1,
    ),
}
ODDITIES = {what: advice for what, (advice, _) in _ODDITIES.items()}
"""What to do about each thing that may speak against an image."""
