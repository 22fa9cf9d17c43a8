"""`lingula data folder`: a table from a folder of images and a label file."""

from __future__ import annotations

import functools
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lingula.settings.label_space import LabelSpace
from lingula.system import files
from lingula.system.claims import claim, other_settings, read_settings_beside, settings_beside
from lingula.system.csv_cells import escape_cell
from lingula.system.errors import examples
from lingula.tables.attached import Attached, FoundImage, attach
from lingula.tables.folder import format_skipped
from lingula.tables.mapping import LabelMap, map_classes, parse_map, read_map_lines
from lingula.tables.reading import read_table, write_table

log = logging.getLogger("lingula")


@dataclass(frozen=True)
class FolderTable:
    """The table that was written, and how the join went."""

    path: Path
    joined: Attached


def data_folder(
    root: str | Path,
    *,
    labels: str | Path,
    key: str = "image",
    map_file: str | Path | None = None,
    ignore_columns: Sequence[str] = (),
    keep_ids: bool = False,
    age_and_sex: bool = False,
    out: str | Path,
    overwrite: bool = False,
) -> FolderTable:
    """Join a label file at image, study or patient level to the images of a folder.

    Args:
        root: the folder; its images are found by content.
        labels: a table with a column of keys and one per class (1, 0, -1, blank).
        key: `image`, `AccessionNumber`, `StudyInstanceUID`, `SOPInstanceUID`, `PatientID`, or a
            column whose cells are paths or names of files, or names of folders.
        map_file: YAML that says which columns mean which classes
            (`lingula.tables.mapping.read_map`).
        ignore_columns: columns that look like labels but are not.
        keep_ids: write the patient and study ids of DICOM files as they are. Otherwise they become
            keyed hashes; the key is written beside the table (`NAME.key`) and must be kept secret.
        age_and_sex: write the age and sex of DICOM files.
        out: the table, .csv or .parquet, with `NAME.json` beside it.
        overwrite: set an old table aside first.

    Returns:
        The table's path, and what was matched, unmatched and left unused.
    """
    folder, source, target = Path(root), Path(labels), Path(out)
    if not folder.is_dir():
        raise files.not_a_folder(folder)
    if not source.is_file():
        raise files.not_a_file(source, "label file")
    files.check_suffix(target, (".csv", ".parquet"), "a table")
    written = {} if map_file is None else read_map_lines(map_file)
    rules = parse_map(written, str(map_file)) if written else LabelMap()
    settings = {
        "root": str(folder.resolve()),
        "labels_sha256": files.sha256(source),
        "key": key,
        "map": written,
        "ignore_columns": list(ignore_columns),
        "keep_ids": keep_ids,
        "age_and_sex": age_and_sex,
    }
    conflict = other_settings(read_settings_beside(target), settings)
    beside = [settings_beside(target), target.with_suffix(".json")]
    claimed = claim(target, conflict, overwrite=overwrite, beside=beside)
    if claimed.is_done:
        log.info("It is made again, from the folder as it is now.")
    joined = attach(
        folder,
        source,
        key=key,
        rules=rules,
        ignore_columns=ignore_columns,
        facts=_facts(age_and_sex),
        pseudonym=None if keep_ids else _pseudonym(target.with_suffix(".key")),
    )
    with tempfile.TemporaryDirectory() as place:
        joined.frame.rename(escape_cell).write_csv(Path(place) / "joined.csv")
        space = LabelSpace(joined.columns) if rules.terms else None
        table = read_table(Path(place) / "joined.csv", classes=space, root=folder)
    if rules.terms:
        # Its terms were looked for in the label file: those of no class are not in the table.
        table = map_classes(table, LabelSpace(joined.classes), rules, strict=False)
    claimed.make_room()
    write_table(table, target)
    files.write_json(settings_beside(target), settings)
    _log_join(joined, target)
    return FolderTable(target, joined)


def _facts(age_and_sex: bool) -> Callable[[Path], FoundImage]:
    def read(path: Path) -> FoundImage:
        from lingula.images.dicom.facts import UNKNOWN, read_dicom_facts

        # The ids are needed as they are, to find their rows; they are hidden when written.
        facts = read_dicom_facts(path, keep_ids=True, demographics=age_and_sex)
        kinds = ("patient", "study", "series", "instance", "accession")
        ids = {kind: getattr(facts, kind) for kind in kinds}
        age = "" if facts.age is None else f"{facts.age:g}"
        view = "" if facts.view == UNKNOWN else facts.view
        return FoundImage("", ids, view, age, facts.sex or "")

    return read


def _pseudonym(key_file: Path) -> Callable[[str, str], str]:
    from lingula.images.dicom.facts import pseudonym, read_or_make_key

    # Read once, and made only if there is an id to hide.
    key = functools.cache(read_or_make_key)

    def hide(kind: str, value: str) -> str:
        return pseudonym(key(key_file), kind, value)

    return hide


def _log_join(joined: Attached, target: Path) -> None:
    log.info("%d of %d images have labels; written to %s.", joined.matched, joined.images, target)
    if joined.unlabelled:
        log.warning("Images without a row of labels: %s.", examples(joined.unlabelled))
    if joined.unmatched:
        log.warning("Rows without an image, by line: %s.", examples(joined.unmatched))
    if joined.taken:
        read = [f"{name} as {what}" for name, what in joined.taken.items()]
        log.info("Columns that are read by their names: %s.", examples(read, 12))
    if joined.unused:
        near = [f"{n} (near {c})" if c else n for n, c in joined.unused.items()]
        log.info("Columns that are not used: %s.", examples(near, 12))
    if joined.skipped:
        log.info("Skipped: %s.", format_skipped(dict(joined.skipped)))
