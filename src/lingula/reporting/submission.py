"""A challenge's submission: the organisers' columns, order and ids, from scores bound by name.

Only the header and the ids of the organisers' template are used, exactly as they are written there.
All numbers come from the scores, joined by image or id and by class name.
"""

from __future__ import annotations

import csv
import io
import stat
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lingula.scores import metrics
from lingula.scores.predictions import Predictions, class_columns, failed
from lingula.settings.label_space import canonical, fold
from lingula.system import files
from lingula.system.errors import InputError, examples, nearest
from lingula.tables.cells import read_frame
from lingula.tables.columns import COLUMNS, clean_id
from lingula.tables.configured import Meaning, configured_targets
from lingula.tables.table import Table

# The organisers' names of columns that are no class, folded, in addition to those of tables.
_ID_COLUMNS = ("dicom id", "imageid", "image id", "id", "image", "image index", "path", "fpath")
_OTHERS = ("viewcodesequence codemeaning", "studydate dicom", "patientid", "split")
_DATE = (1980, 1, 1, 0, 0, 0)  # in the zip: the same submission is the same bytes


@dataclass(frozen=True)
class Template:
    """A sample submission: header and ids as they are written in the file.

    Attributes:
        path: the file.
        header: its columns, in order.
        key: the column of ids, and `ids` its cells.
        classes: the columns that are classes, as they are spelled there.
        kept: the cells of the other columns, by column.
    """

    path: Path
    header: tuple[str, ...]
    key: str
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    kept: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Submission:
    """Probabilities (N, K) in the template's order.

    `filled` images failed and got the value of `fill`. `left_over` counts the rows of scores that
    the template does not contain, if those were allowed or belong to other splits.
    """

    template: Template
    probabilities: NDArray[np.float64]
    filled: tuple[str, ...] = ()
    left_over: int = 0


def read_template(
    path: str | Path, *, key: str | None = None, predictions: Predictions | None = None
) -> Template:
    """Read a sample submission; a zipped one has to be unpacked first.

    Args:
        path: the file.
        key: the column of ids; None: the one with names of the scores' images, or with a usual name
            of such columns, or the only one that is no class.
        predictions: the scores that will be put into it; None: not known yet, and every column
            without a usual name of ids or facts is a class.

    Raises:
        InputError: a file without an id column, without classes, or with ids that repeat.
    """
    file = Path(path)
    frame = read_frame(file, nameless=True)
    header = tuple(frame.columns)
    every = {name: tuple(frame[name].to_list()) for name in header}
    found = _key(every, file, predictions) if key is None else key
    if found not in header:
        raise InputError(
            f"{file} has no column '{found}'.{nearest(found, header)} It has: "
            f"{examples(header, 12)}."
        )
    texts = {name for name in header if fold(name) in (*COLUMNS, *_ID_COLUMNS, *_OTHERS, "")}
    texts |= {found, "Unnamed: 0"} | _beside(every, predictions)
    classes = tuple(name for name in header if name not in texts)
    if not classes or not frame.height:
        raise InputError(f"{file} is no template: it needs a column per class and a row per image.")
    spelled = [fold(canonical(name)) for name in classes]
    twice = [name for name, key in zip(classes, spelled, strict=True) if spelled.count(key) > 1]
    if twice:
        raise InputError(f"{file} has several columns of one class: {examples(twice)}.")
    cells = {name: every[name] for name in header if name in texts}
    ids, called = cells[found], found or "an id (the column without a name)"
    blank = [str(row + 2) for row, name in enumerate(ids) if not name.strip()]
    if blank:
        raise InputError(f"{file}: rows without {called}: {examples(blank)}.")
    if len(set(ids)) < len(ids):
        repeated = [name for name, many in Counter(ids).items() if many > 1]
        raise InputError(f"{file}: {called} that repeat: {examples(repeated)}.")
    return Template(file, header, found, ids, classes, cells)


def _key(every: Mapping[str, tuple[str, ...]], file: Path, predictions: Predictions | None) -> str:
    """The column of ids: the one with the most names of scores in it, else by its own name."""
    known = [name for wanted in _ID_COLUMNS for name in every if fold(name) == wanted]
    others = [name for name in every if name not in known]
    # Of equals the usual names come first, in their order, and a column without a name last.
    ordered = [*known, *sorted(others, key=lambda name: name in ("", "Unnamed: 0"))]
    if predictions is None:
        ordered = known
    else:
        spellings = _spellings(predictions.ids, predictions.images)
        names = {name for spelling in spellings for name in spelling}
        hits = {
            name: len(names.intersection(map(clean_id, every[name])))
            for name in ordered
            if len(set(every[name])) == len(every[name])
        }
        if any(hits.values()):
            return max(hits, key=lambda name: hits[name])
        scored = {fold(canonical(name)) for name in predictions.classes}
        left = [name for name in others if fold(canonical(name)) not in scored]
        ordered = known or (left if len(left) == 1 else [])
    if not ordered:
        raise InputError(
            f"{file} has no column of ids (dicom_id, ImageID, id, image or another with the names "
            f"of the scores' images). Name it: --key COLUMN. The file has: {examples(every, 12)}."
        )
    return ordered[0]


def _beside(every: Mapping[str, tuple[str, ...]], predictions: Predictions | None) -> set[str]:
    """The columns that can't be classes: not in the scores, and with cells outside [0, 1]."""
    if predictions is None:
        return set()
    scored = {fold(canonical(name)) for name in predictions.classes}
    return {
        name
        for name, cells in every.items()
        if fold(canonical(name)) not in scored and not all(map(_is_share, filter(None, cells)))
    }


def _is_share(cell: str) -> bool:
    try:
        return 0 <= float(cell) <= 1
    except ValueError:
        return False


def fill_template(
    predictions: Predictions,
    template: Template,
    *,
    fill: float | None = None,
    allow_extra: bool = False,
    splits: Mapping[str, str] | None = None,
) -> Submission:
    """Put scores into a template's shape, joined by id (or image) and by class name.

    Args:
        predictions: scores; their ids, images, or file names without folder and suffix are ids.
        template: the organisers' sample submission.
        fill: the score of images that failed; None: such images are an error.
        allow_extra: leave out rows of scores that the template does not contain.
        splits: the split of each of the scores' images, if known: rows of splits with no image in
            the template are left out.

    Raises:
        InputError: ids or classes without scores, rows that the template does not contain, failed
            images without `fill`; each named.
    """
    if fill is not None and not 0 <= fill <= 1:
        raise InputError(f"--fill is a probability in [0, 1], not {fill}.")
    columns = class_columns(predictions, template.classes)
    names = _match_ids(predictions.ids, predictions.images, template, predictions.origin)
    place = {name: row for row, name in enumerate(names)}
    missing = [name for name in template.ids if name not in place]
    wanted = set(template.ids)
    rest = [row for row, name in enumerate(names) if name not in wanted]
    part = [(splits or {}).get(image, "") for image in predictions.images]
    asked = {part[row] for row, name in enumerate(names) if name in wanted} | {""}
    extra = [names[row] for row in rest if part[row] in asked]
    if missing or (extra and not allow_extra):
        told = []
        if missing:
            told.append(
                f"{template.path} contains {len(template.ids)} images, and {predictions.origin} "
                f"has no scores of {len(missing)}: {examples(missing)}."
            )
        if extra and not allow_extra:
            told.append(
                f"{predictions.origin} has {len(extra)} images that {template.path} does not "
                f"contain: {examples(extra)}. Is it the right template? --allow-extra leaves them "
                "out."
            )
        raise InputError("\n".join(told))
    rows = np.array([place[name] for name in template.ids], dtype=np.intp)
    values = predictions.probabilities[rows][:, columns]
    lost = failed(predictions)[rows]
    filled = tuple(template.ids[row] for row in np.flatnonzero(lost))
    if filled and fill is None:
        raise InputError(
            f"{predictions.origin}: {len(filled)} images failed and have no scores: "
            f"{examples(filled)}. Choose what to submit for them, such as --fill 0."
        )
    if fill is not None:
        values = np.where(lost[:, None], fill, values)
    return Submission(template, values, filled, len(rest))


def _match_ids(
    ids: tuple[str, ...] | None, images: tuple[str, ...], template: Template, where: object
) -> tuple[str, ...]:
    """The rows' names in the spelling of which the template contains the most.

    Spellings are ids, image names, file names, and file names without suffix; the first of equals
    is taken. Raises `InputError` if two rows have the same id of the template.
    """
    wanted = set(template.ids)
    # The template's `101.0` is the `101` of tables and scores, and is written as it is there.
    exact = {clean_id(name): name for name in template.ids}
    whole = tuple(exact.get(name, name) for name in ids or images)
    candidates = [*_spellings(ids, images), whole]
    best = max(candidates, key=lambda names: len(wanted.intersection(names)))
    twice = [name for name, many in Counter(best).items() if many > 1 and name in wanted]
    if twice:
        raise InputError(
            f"{where}: several images have the id {examples(twice)}. Give it an `id` column that "
            "distinguishes them."
        )
    return best


def _spellings(ids: tuple[str, ...] | None, images: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The names that images may have: ids, names, file names, and file names without suffix."""
    bare = tuple(name.replace("\\", "/").rsplit("/", 1)[-1] for name in images)
    stems = tuple(name.rsplit(".", 1)[0] for name in bare)
    return [names for names in (ids, images, bare, stems) if names]


def submission_csv(made: Submission) -> str:
    """The CSV: the template's header, ids and order, with every digit of every score."""
    place = {name: k for k, name in enumerate(made.template.classes)}
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(made.template.header)
    columns = [
        made.template.kept[name]
        if name in made.template.kept
        # repr of a float is the shortest text that reads back as the same number.
        else [repr(float(value)) for value in made.probabilities[:, place[name]]]
        for name in made.template.header
    ]
    writer.writerows(zip(*columns, strict=True))
    return stream.getvalue()


def write_submission(made: Submission, path: str | Path, code: str | Path | None = None) -> None:
    """Write a .zip with the CSV, named like the zip, and the code below `code/`; or a bare .csv.

    Raises `InputError` for another suffix, and for a code folder that is missing, empty or contains
    the zip.
    """
    file = Path(path)
    text = submission_csv(made)
    if file.suffix == ".csv" and code is None:
        files.write_text(file, text)
        return
    if file.suffix != ".zip":
        raise InputError(f"{file}: a submission is a .zip (or a .csv, without code).")
    entries = [(f"{file.stem}.csv", text.encode())]
    if code is not None:
        entries += _code(Path(code), file)
    with files.write_atomically(file) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, data in entries:
            info = zipfile.ZipInfo(name, _DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(info, data)


def _code(folder: Path, archive: Path) -> list[tuple[str, bytes]]:
    """The files of a folder of code, without hidden and compiled ones."""
    if not folder.is_dir():
        raise InputError(f"--code: {files.not_a_folder(folder)}")
    if archive.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"--out {archive} is inside --code {folder}; write it elsewhere.")
    found = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in inside.parts)
        if path.is_file() and not path.is_symlink() and not hidden and path.suffix != ".pyc":
            found.append((f"code/{inside.as_posix()}", path.read_bytes()))
    if not found:
        raise InputError(f"--code: {folder} contains no files.")
    return found


@dataclass(frozen=True)
class Rehearsal:
    """The score that the organisers' server would give: AP per class, and their mean.

    `undefined` classes have no positives and are left out of the mean. `hidden` counts the cells
    that the table does not know.
    """

    mAP: float
    ap: dict[str, float]
    undefined: tuple[str, ...]
    n: int
    hidden: int


def rehearse(made: Submission, table: Table) -> Rehearsal:
    """Score the text of a submission by a table's labels, as the server would.

    Raises `InputError` for ids and classes that the table lacks.
    """
    template = made.template
    names = _match_ids(table.ids, table.images, template, table.path or "the table")
    place = {name: row for row, name in enumerate(names)}
    missing = [name for name in template.ids if name not in place]
    if missing:
        raise InputError(
            f"{table.path or 'The table'} has no labels of {len(missing)} of the template's "
            f"images: {examples(missing)}."
        )
    absent = [name for name in template.classes if name not in table.space]
    if absent:
        raise InputError(f"{table.path or 'The table'} has no labels of {examples(absent)}.")
    rows = np.array([place[name] for name in template.ids], dtype=np.intp)
    columns = [table.space.index(name) for name in template.classes]
    values, mask = configured_targets(Meaning(), table)
    values, mask = values[rows][:, columns], mask[rows][:, columns]
    found = metrics.measure_classes(
        _read_back(submission_csv(made), template.classes), values, mask
    )
    ap = dict(zip(template.classes, found.ap.tolist(), strict=True))
    undefined = tuple(name for name, value in ap.items() if np.isnan(value))
    return Rehearsal(found.mAP, ap, undefined, len(rows), int((~mask).sum()))


def _read_back(text: str, classes: Sequence[str]) -> NDArray[np.float64]:
    rows = list(csv.reader(io.StringIO(text)))
    columns = [rows[0].index(name) for name in classes]
    return np.array([[float(row[k]) for k in columns] for row in rows[1:]], dtype=float)
