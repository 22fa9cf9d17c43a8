"""Labels from a CSV of one's own joined to the images of a folder: by image, study or patient.

The folder is scanned by content. A row of the CSV belongs to the images whose key is its own: for
DICOM files an id in their header, for other files their path, name, or a folder on the way to them.
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import polars as pl

from lingula.images.files import sniff
from lingula.settings.label_space import LabelSpace, canonical, fold, is_known, suggest
from lingula.system.errors import InputError, examples, nearest
from lingula.tables.cells import Fault, raise_faults, read_frame
from lingula.tables.columns import (
    COLUMNS,
    NAMES,
    clean_id,
    clean_ids,
    fold_column,
    is_fact,
    known_columns,
    read_text_cells,
)
from lingula.tables.folder import scan
from lingula.tables.label_cells import looks_like_labels, read_label_cells
from lingula.tables.mapping import LabelMap

# What `key` may name in a DICOM header, folded, and the field of `DicomFacts` for it.
DICOM_KEYS = {
    "accessionnumber": "accession",
    "studyinstanceuid": "study",
    "seriesinstanceuid": "series",
    "sopinstanceuid": "instance",
    "patientid": "patient",
}


@dataclass(frozen=True)
class FoundImage:
    """An image of the folder: its path in it, its header's ids by field, and its view."""

    image: str
    ids: Mapping[str, str]
    view: str = ""
    age: str = ""
    sex: str = ""


@dataclass(frozen=True)
class Attached:
    """The joined rows, ready to be written as a table, and what the join says about itself.

    Attributes:
        frame: one row per image with labels: image, ids and label columns, all text.
        columns: the label columns of the frame, by the classes of their own names or, for terms of
            the map, by the terms.
        classes: the classes that these stand for.
        matched: images with a row of labels; `images`: all that were found.
        unlabelled: images without a row.
        unmatched: line numbers in the file of rows without an image, those without a key among
            them. Their keys may be those of patients, and are not repeated.
        taken: columns of other names that are read as ids or facts, by those: `PatientID: patient`.
        unused: columns that are not read, each with the nearest class's name or an empty text.
        skipped: files of the folder that are not images, counted by reason.
    """

    frame: pl.DataFrame
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    matched: int
    images: int
    unlabelled: tuple[str, ...]
    unmatched: tuple[int, ...]
    taken: Mapping[str, str]
    unused: Mapping[str, str]
    skipped: Mapping[str, int]


def attach(
    root: Path,
    labels: Path,
    *,
    key: str,
    rules: LabelMap | None = None,
    ignore_columns: Sequence[str] = (),
    facts: Callable[[Path], FoundImage] | None = None,
    pseudonym: Callable[[str, str], str] | None = None,
) -> Attached:
    """Join the rows of a label file to the images below `root`.

    Args:
        root: the folder.
        labels: a table with a column named as `key`.
        key: `image` (path, file name, or its stem), `AccessionNumber`, `StudyInstanceUID`,
            `SOPInstanceUID`, `PatientID` (of DICOM files), or any column: its cells are compared
            with each image's path, file name and stem, then with the names of its folders.
        rules: which classes columns of other names stand for, and which columns are not classes.
        ignore_columns: columns that are not read: no labels, or ids that are not wanted.
        facts: reads the ids of a DICOM file; None where there is nothing to read them with.
        pseudonym: what to write for a (`patient` or `study`, id) of DICOM files; None: the id.

    Raises:
        InputError: no such column; cells that are not labels; rows of one key that differ; a key
            that fits several images by name alone; a column that looks like labels and is neither a
            class, nor mapped, nor ignored; nothing matched.
    """
    names, skipped = scan(root)
    frame = read_frame(labels)
    column = _key_column(frame, key, labels)
    classes, targets = _find_classes(frame, column, rules or LabelMap(), ignore_columns, labels)
    found = [_read_ids(root, name, facts) for name in names]
    left = {fold(name) for name in ignore_columns}
    kept = frame.drop([name for name in frame.columns if fold(name) in left and name != column])
    rows, keyless, facts_of = _index_rows(kept, column, classes, labels)
    pairs, matched_keys, by_file = _match_images(found, rows, key, root)
    if not pairs:
        raise _no_match(found[0], f"No image of {root} fits a row of {labels} by '{key}'", rows)
    # A key of one's own is a patient's or a study's, and worth keeping as what it is called;
    # not one that names files.
    own = fold_column(column) not in {*DICOM_KEYS, "image"} and not is_fact(column) and not by_file
    joined = _join_rows(kept, facts_of, pairs, rows, classes, column if own else None)
    if pseudonym is not None and any(item.ids for item in found):
        joined = _replace_ids(joined, pseudonym)
    chosen = {item.image for item, _ in pairs}
    left_over = [*keyless, *(row for key, row in rows.items() if key not in matched_keys)]
    others = [name for name in frame.columns if fold(name) not in COLUMNS]
    return Attached(
        frame=joined,
        columns=tuple(classes.values()),
        classes=targets,
        matched=len(chosen),
        images=len(found),
        unlabelled=tuple(item.image for item in found if item.image not in chosen),
        unmatched=tuple(row + 2 for row in sorted(left_over)),
        taken={name: NAMES[facts_of[name]] for name in others if name in facts_of},
        unused={n: _nearest_class(n) for n in others if n not in {column, *classes, *facts_of}},
        skipped=skipped,
    )


def _no_match(first: FoundImage, what: str, rows: Mapping[str, int]) -> InputError:
    kind = "" if first.ids else " (no DICOM)"
    return InputError(
        f"{what}. The first image is {first.image}{kind}, the first row says {examples(rows, 1)}. "
        "Name another --key."
    )


def _nearest_class(column: str) -> str:
    return suggest(column).removeprefix(" Did you mean '").removesuffix("'?")


def _key_column(frame: pl.DataFrame, key: str, labels: Path) -> str:
    named = {fold_column(name): name for name in reversed(frame.columns)}
    if key in frame.columns:
        return key
    if fold_column(key) not in named:
        raise InputError(
            f"{labels} has no column '{key}' (--key).{nearest(key, frame.columns)} It has: "
            f"{examples(frame.columns, 12)}."
        )
    return named[fold_column(key)]


def _find_classes(
    frame: pl.DataFrame, key: str, rules: LabelMap, ignored: Sequence[str], labels: Path
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Label columns of the file by what they are called in the table, and the classes that these
    stand for."""
    by_name = {fold(name): name for name in frame.columns}
    for name in (*rules.terms, *ignored):
        if fold(name) not in by_name:
            raise InputError(f"{labels} has no column '{name}'.{nearest(name, frame.columns)}")
    left, apart = ({fold(name) for name in names} for names in (ignored, rules.apart))
    columns: dict[str, str] = {}
    named: dict[str, None] = {}
    ruled: dict[str, None] = {}
    targets_seen: dict[str, None] = {}
    wrong: list[str] = []
    for name in frame.columns:
        targets = rules.targets_of(name)
        if name == key or fold(name) in left or fold(name) in COLUMNS:
            continue
        if not targets and (fold(name) in apart or is_fact(name)):
            continue
        own = is_known(name) and fold(name) not in apart
        if own or targets:
            columns[name] = canonical(name)
            ruled.update(dict.fromkeys(map(canonical, targets)))
            if own and not targets:
                named[canonical(name)] = None
            targets_seen.update(dict.fromkeys([*map(canonical, targets), *[canonical(name)] * own]))
        elif looks_like_labels(frame[name]):
            wrong.append(name)
    if wrong:
        faults = [f"'{n}' looks like labels and is not a known class.{suggest(n)}" for n in wrong]
        raise InputError(
            f"{labels}: " + " ".join(faults) + " Say what it stands for in a map (--map map.yaml, "
            f"`{wrong[0]}: CLASS`), or leave it out with --ignore-columns."
        )
    called = list(columns.values())
    twice = [name for name in called if called.count(name) > 1]
    twice += [name for name in named if fold(name) in {fold(target) for target in ruled}]
    if twice:
        raise InputError(f"{labels}: several columns stand for {examples(dict.fromkeys(twice))}.")
    if not columns:
        raise InputError(
            f"{labels} has no column of labels: {examples(frame.columns, 12)}. Say with --map "
            "which columns are classes."
        )
    return columns, tuple(targets_seen)


def _read_ids(root: Path, name: str, facts: Callable[[Path], FoundImage] | None) -> FoundImage:
    path = root / name
    with path.open("rb") as stream:
        is_dicom = sniff(stream.read(132)) == "dicom"
    if not is_dicom:
        return FoundImage(name, {})
    if facts is None:
        raise InputError("Reading DICOM needs the extra `dicom`: pip install 'lingula[dicom]'.")
    read = facts(path)
    return FoundImage(name, read.ids, read.view, read.age, read.sex)


def _index_rows(
    frame: pl.DataFrame, column: str, classes: Mapping[str, str], labels: Path
) -> tuple[dict[str, int], list[int], dict[str, str]]:
    """Key to row number; the rows without a key; and the columns of ids and facts, by field.

    Rows of one key must say the same: as labels, ids and whatever else is read, not as text. A fact
    of another name than a table's own that differs among them, as the study of a patient's rows
    does, is not read. Keys may be those of patients, so that lines are named, and not they.
    """
    faults: list[Fault] = []
    keys = [
        _normalize_path(key) for key in clean_ids(frame[column].str.strip_chars(), labels, faults)
    ]
    known = known_columns(frame.columns, classes)
    known = {c: field for c, field in known.items() if field != "images" and c not in classes}
    texts, _ = read_text_cells(frame.select(c for c in known if c != column), labels, faults)
    cells: dict[str, Sequence[object]] = {NAMES[field]: column for field, column in texts.items()}
    space = LabelSpace(tuple(classes.values()))
    by_class = {target: name for name, target in classes.items()}
    values = read_label_cells(frame, by_class, space, labels, faults)
    cells |= {name: values[:, space.index(target)].tolist() for name, target in classes.items()}
    raise_faults(faults)
    rows: dict[str, int] = {}
    differing: dict[str, list[str]] = {}
    for row, key in enumerate(keys):
        first = rows.setdefault(key, row) if key else row
        for name, column_cells in cells.items():
            if column_cells[first] != column_cells[row]:
                what = "labels" if name in classes else name
                differing.setdefault(what, []).append(f"{first + 2} and {row + 2}")
    for name, field in list(known.items()):
        alias = fold(name) not in COLUMNS and field != "patients"
        if alias and NAMES[field] in differing:
            del known[name], differing[NAMES[field]]
    if differing:
        lines = [f"different {w}: {examples(dict.fromkeys(at))}" for w, at in differing.items()]
        raise InputError(
            f"{labels}: lines of the same {column} with {'; '.join(lines)}. Keep one of each, or "
            "leave out columns that are not wanted (--ignore-columns)."
        )
    return rows, [row for row, key in enumerate(keys) if not key], known


def _normalize_path(key: str) -> str:
    """A key that is a path in its one spelling; any other as it is."""
    path = key.replace("\\", "/")
    return posixpath.normpath(path) if "/" in path else key


def _possible_keys(item: FoundImage, key: str, root: Path) -> tuple[list[str], list[str]]:
    """The values by which a row may name an image, the most particular first; ids are whole.

    First those that name the file: its path (from any folder above it on), name and stem; or its id
    if the key is one of DICOM's. Then the folders that it lies in.
    """
    wanted = fold_column(key)
    if wanted in DICOM_KEYS and item.ids:
        return [clean_id(item.ids[DICOM_KEYS[wanted]])], []
    path = PurePosixPath(item.image)
    above = root.resolve().parts
    paths = ["/".join([*above[i:], item.image]).replace("//", "/") for i in range(len(above))]
    names = [*paths, item.image, str(path.with_suffix("")), path.name, path.stem]
    folders = [] if wanted == "image" else [*reversed(path.parent.parts)]
    return [clean_id(name) for name in names], [clean_id(name) for name in folders]


def _match_images(
    found: Sequence[FoundImage], rows: Mapping[str, int], key: str, root: Path
) -> tuple[list[tuple[FoundImage, str]], set[str], bool]:
    """Images with the key of their row; the keys that were matched; whether all named files."""
    keys = [_possible_keys(item, key, root) for item in found]
    named = [next((name for name in names if name in rows), None) for names, _ in keys]
    longer = _match_longer_paths(
        rows, {item.image for item, n in zip(found, named, strict=True) if not n}
    )
    pairs: list[tuple[FoundImage, str]] = []
    files: dict[str, list[str]] = defaultdict(list)
    for item, (_, folders), name in zip(found, keys, named, strict=True):
        file = name or longer.get(item.image)
        value = file or next((folder for folder in folders if folder in rows), None)
        if value is not None:
            pairs.append((item, value))
        if file is not None and not item.ids:
            files[file].append(item.image)
    stems = fold_column(key) == "image"  # elsewhere several files may have a study's name
    unclear = [
        f"{value} ({', '.join(images)})"
        for value, images in files.items()
        if len(images) > 1 and (stems or "." in value)
    ]
    if unclear:
        raise InputError(
            f"Rows that fit several images by their name: {examples(unclear, 3)}. Give paths "
            "relative to the folder."
        )
    matched = {value for _, value in pairs}
    return pairs, matched, bool(matched) and matched == set(files)


def _match_longer_paths(keys: Iterable[str], images: Collection[str]) -> dict[str, str]:
    """Image to the one key that is a path of it from a folder that we do not know."""
    found: dict[str, list[str]] = defaultdict(list)
    for key in keys if images else ():
        parts = key.split("/")
        for end in ("/".join(parts[i:]) for i in range(1, len(parts))):
            if end in images:
                found[end].append(key)
    return {image: several[0] for image, several in found.items() if len(several) == 1}


def _join_rows(
    frame: pl.DataFrame,
    known: Mapping[str, str],
    pairs: Sequence[tuple[FoundImage, str]],
    rows: Mapping[str, int],
    classes: Mapping[str, str],
    own_key: str | None,
) -> pl.DataFrame:
    """One row per image, with its labels.

    A fact is from the file's column with a table's own name; without such a column, from the DICOM
    header; and where the header says nothing, from a column with another name.
    """
    taken = frame[[rows[value] for _, value in pairs]]
    columns: dict[str, pl.Series] = {
        "image": pl.Series("image", [item.image for item, _ in pairs], dtype=pl.String)
    }
    for name, field in known.items():
        if fold(name) in COLUMNS:
            columns[NAMES[field]] = taken[name].alias(NAMES[field])
    headers = {
        "id": [item.ids.get("instance", "") for item, _ in pairs],
        "patient": [item.ids.get("patient", "") for item, _ in pairs],
        "study": [item.ids.get("study", "") for item, _ in pairs],
        "view": [item.view for item, _ in pairs],
        "age": [item.age for item, _ in pairs],
        "sex": [item.sex for item, _ in pairs],
    }
    others = {NAMES[field]: taken[name].to_list() for name, field in known.items()}
    for name, values in headers.items():
        if name not in columns and name in others:
            values = [a or b for a, b in zip(values, others[name], strict=True)]
        if any(values) and name not in columns:
            columns[name] = pl.Series(name, values, dtype=pl.String)
    if own_key is not None and "study" not in columns:
        columns["study"] = taken[own_key].alias("study")
    for name, target in classes.items():
        columns[target] = taken[name].alias(target)
    return pl.DataFrame(list(columns.values()))


def _replace_ids(frame: pl.DataFrame, pseudonym: Callable[[str, str], str]) -> pl.DataFrame:
    for kind in ("patient", "study"):
        if kind in frame.columns:
            ids = (clean_id(value.strip()) for value in frame[kind].to_list())
            hidden = [pseudonym(kind, value) if value else "" for value in ids]
            frame = frame.with_columns(pl.Series(kind, hidden, dtype=pl.String))
    return frame
