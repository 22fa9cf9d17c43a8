"""What the columns of a table file are: ids and facts by any of their names, and helpers.

A column of a helper (a fold, a one-hot sex, a view) that contains 0 and 1 looks like a finding. It
is read as a finding only if it is named as a class.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from pathlib import Path

import polars as pl

from lingula.settings.label_space import fold, is_known
from lingula.settings.vocabulary import parse_split
from lingula.system.csv_cells import unescape_cell
from lingula.system.errors import InputError, examples, nearest
from lingula.tables.cells import Fault

# Names as they are written, and their first aliases, folded (see `fold`), to fields of
# `Table`. Two of these for one field contradict each other.
COLUMNS = {
    "image": "images",
    "path": "images",
    "fpath": "images",
    "id": "ids",
    "dicom id": "ids",
    "patient": "patients",
    "subject id": "patients",
    "study": "studies",
    "study id": "studies",
    "view": "views",
    "viewposition": "views",
    "split": "splits",
    "age": "ages",
    "sex": "sexes",
    "source": "sources",
}
# Names of hospitals' exports and of public sets, by their letters and digits alone: taken where no
# column of `COLUMNS` says the same. Of several the first in this order is.
ALIASES = {
    "ids": "sopinstanceuid dicomid imageid imageuid",
    "patients": (
        "patientid mrn medicalrecordnumber patientnumber patientno patientnr patnr patid ptid pid "
        "patientidentifier patientuid patientkey patientcode patienthash patientpseudonym "
        "deidpatientid anonpatientid anonymizedpatientid anonymisedpatientid subjectid subject "
        "subjectnumber participantid participant personid caseid patientenid patientennummer "
        "idpatient numeropatient idpaciente pacienteid paciente idpaziente paziente"
    ),
    "studies": (
        "studyinstanceuid studyuid studyid studynumber accessionnumber accession accessionno "
        "examid examinationid"
    ),
    "views": "viewposition projection viewname",
    "ages": "patientage ageyears ageinyears ageatstudy ageatexam ageapprox",
    "sexes": "gender patientsex patientgender sexatbirth",
}
# Fields of `Table` to the column names that are written.
NAMES = {
    "images": "image",
    "ids": "id",
    "patients": "patient",
    "studies": "study",
    "views": "view",
    "splits": "split",
    "ages": "age",
    "sexes": "sex",
    "sources": "source",
}
_RANK = {
    alias: (rank, field)
    for field, aliases in ALIASES.items()
    for rank, alias in enumerate(aliases.split())
}
# Columns beside the scores in other people's files, folded; none is a finding.
BESIDE_SCORES = ("n views", "views", "fold", "frontal lateral", "height", "width", "index level 0")

_KEYS = ("ids", "patients", "studies")
# Columns of free text by their written names: no ids, so that no spreadsheet need run them.
FREE = ("view", "age", "sex", "source")

# Names of helpers by what they say, as patterns of words in lower case, so that `isValid` and
# `is_valid` are one. Some may have what a one-hot column is for behind them: `sex_male`.
_HELPERS = {
    "a split": (
        r"((is|in) )?(train(ing)?|dev|val(id(ate|ation)?)?|test(ing)?|hold ?out)( ?set)?"
        r"|(split|subset|partition|set|phase|k ?fold|folds?|cv( ?fold)?)( ?\d+| \w+)?"
    ),
    "a patient's fact": (
        r"(is )?(male|female|man|woman|adult|child|infant|newborn|elderly|(in|out) ?patient)"
        r"|pa?ediatric|emergency|icu|(patient )?(sex|gender)( \w+){0,2}"
        r"|(patient )?age( (group|band|bin|over|under|above|below|from|to))?( ?\d+){0,2}"
        r"|(race|ethnicity|insurance|marital)( \w+){0,2}"
    ),
    "a view": (
        r"(is )?(frontal|lateral|ap|pa|portable|bedside|supine|erect|upright|standing|sitting)"
        r"|decubitus|frontal lateral|(view|projection)( \w+){0,2}"
    ),
    "an image's fact": (
        r"height|width|rows|columns|channels|bits( stored)?|((sample|loss) )?weights?|count|flag"
        r"|(n|num|number of) (images|views|frames)|images? count|views|frames"
        r"|(is )?(inverted|rotated|flipped|cropped|duplicated?|corrupt(ed)?|usable|readable)"
        r"|(is )?(annotated|reviewed|verified|checked|included?|excluded?)|skip|ignore|keep"
        r"|has (box(es)?|bbox|mask|report)|burned in|((good|low|bad) )?quality"
    ),
    "a place": (
        r"(site|hospital|cent(er|re)|clinic|institution|scanner|manufacturer|vendor|ward|source"
        r"|department|country|data ?set|cohort|batch)( ?\d+|( \w+){1,2})?"
    ),
    "a row's number": (
        r"index|idx|row( ?id| number| index)?|((index )?level|index|unnamed)( \d+)+|order|rank|seq"
        r"|sequence|visit|time ?point|follow ?up|(has )?prior|year|month|day"
    ),
}


def known_columns(names: Iterable[str], classes: Container[str] = ()) -> dict[str, str]:
    """Column to field of `Table`, for the columns of ids and facts among `names`.

    All columns of `COLUMNS` are there, even two that say the same. A column that only `ALIASES`
    knows is there if its field has no other. A name in `classes` is never an alias.
    """
    every = list(names)
    found = {name: COLUMNS[fold(name)] for name in every if fold(name) in COLUMNS}
    ranked = [(_RANK[key], name) for name in every if (key := fold_column(name)) in _RANK]
    for (_, field), name in sorted(ranked, key=lambda item: item[0][0]):
        if field not in found.values() and name not in found and name not in classes:
            found[name] = field
    return {name: found[name] for name in every if name in found}


def is_fact(name: str) -> bool:
    """Whether a column of this name contains ids or facts, whichever other columns there are."""
    return fold(name) in COLUMNS or fold_column(name) in _RANK


def fold_column(name: str) -> str:
    """A name's letters and digits in lower case: `Patient ID`, `patient-id` and `PatientID`."""
    return re.sub(r"[\W_]+", "", name).casefold()


def helper_kind(name: str) -> str:
    """The kind of helper that a column is by its name (a key of `_HELPERS`), or ''.

    Any other name, and the name of a known finding, is no helper's.
    """
    if is_known(name):
        return ""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    words = re.sub(r"[\W_]+", " ", parted).strip().casefold()
    return next((kind for kind, words_of in _HELPERS.items() if re.fullmatch(words_of, words)), "")


def named_columns(
    columns: Sequence[str],
    names: Mapping[str, Collection[str]],
    needed: Collection[str],
    file: Path,
    hint: str,
) -> dict[str, str]:
    """Column to our name, for those that `names` knows: our names, and other spellings of each.

    Raises:
        InputError: two columns of one name, or a needed one that is missing; `hint` comes last.
    """
    spelled = {fold(s): name for name, spellings in names.items() for s in (name, *spellings)}
    ours: dict[str, str] = {}
    for column in columns:
        known = spelled.get(fold(column))
        if known in ours.values():
            raise InputError(f"{file} has two columns for the {known}: one is '{column}'.")
        if known is not None:
            ours[column] = known
    for name in needed:
        if name not in ours.values():
            wanted = [*names[name]] or [name]
            raise InputError(
                f"{file} has no column `{'` or `'.join(wanted)}`.{nearest(wanted[0], columns)} "
                f"It has: {examples(columns, 12)}. {hint}"
            )
    return ours


def read_text_cells(
    frame: pl.DataFrame,
    file: Path,
    faults: list[Fault],
    classes: Container[str] = (),
    fields: Container[str] = NAMES,
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Cells of the known columns by field of `Table`, and the names of all unknown columns.

    Names in `classes` are no aliases of known ones. Only the cells of `fields` are read.
    """
    texts: dict[str, tuple[str, ...]] = {}
    taken: dict[str, str] = {}
    known = known_columns(frame.columns, classes)
    for name, field in known.items():
        if field not in fields:
            continue
        if field in taken:
            fix = f"Ignore one: {how_to_ignore([name])}" if fields is NAMES else "Remove one."
            both = f"{file}: columns '{taken[field]}' and '{name}' both say the {NAMES[field]}."
            message = f"{both} {fix}"
            faults.append(Fault("columns of the same meaning", message, 1, (name,)))
        else:
            taken[field] = name
            cells = frame[name].str.strip_chars()
            if field in _KEYS:
                cells = clean_ids(cells, file, faults)
            texts[field] = tuple(cells.to_list())
            may_be_escaped = NAMES[field] in FREE and file.suffix.lower() != ".parquet"
            if may_be_escaped and cells.str.starts_with("'").any():
                texts[field] = tuple(unescape_cell(cell) for cell in texts[field])
    if "splits" in texts:
        texts["splits"] = read_split_cells(texts["splits"], file, faults)
    return texts, [name for name in frame.columns if name not in known]


def clean_ids(cells: pl.Series, file: str | Path, faults: list[Fault]) -> pl.Series:
    """'59999999.0' as '59999999', cell by cell: `1` and `1.0` are one id; a fault for `1.9E+38`."""
    rounded = cells.filter(cells.str.contains(r"^\d(\.\d+)?[eE]\+\d+$|^\d\.\d+[eE]\d+$"))
    if len(rounded):
        shown = tuple(rounded.unique(maintain_order=True).to_list())
        message = (
            f"{file}: column '{cells.name}' has rounded numbers such as {shown[0]}: different "
            "ids became one. Take the ids from the original table, as text."
        )
        faults.append(Fault("ids that were rounded", message, len(rounded), shown))
    if not cells.str.ends_with(".0").any():
        return cells
    return cells.str.replace(r"^(\d+)\.0$", "$1")


def clean_id(text: str) -> str:
    """One id as `clean_ids` gives it."""
    return text[:-2] if text.endswith(".0") and text[:-2].isdecimal() else text


def read_split_cells(cells: Sequence[str], file: Path, faults: list[Fault]) -> tuple[str, ...]:
    """`train`, `dev`, `test` or '' for each cell, with a fault for other words."""
    known = {cell: parse_split(cell) for cell in set(cells)}
    wrong = tuple(sorted(cell for cell, split in known.items() if split is None))
    if wrong:
        message = (
            f"{file}: column 'split' has {examples(repr(cell) for cell in wrong)}; it must be "
            "train, dev (or val, valid, validate, validation), test or blank."
        )
        count = sum(cell in wrong for cell in cells)
        faults.append(Fault("unknown names of splits", message, count, wrong))
    return tuple(known[cell] or "" for cell in cells)


def how_to_ignore(columns: Iterable[str]) -> str:
    """How columns are left out, as it is typed: in training, and in the other commands."""
    named: Sequence[str] = [json.dumps(name, ensure_ascii=False) for name in columns]
    others = "--ignore-columns " + (named[0] if len(named) == 1 else "NAME for each")
    return f"'data.ignore_columns=[{','.join(named)}]' in training, {others} elsewhere"
