"""Names of columns, in one place: those of ids and facts, their aliases, and those of helpers.

A column of a helper (a fold, a one-hot sex, a view) that holds 0 and 1 looks like a finding. It
becomes none unless it is named as a class.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable

from lingula.settings.label_space import fold, is_known

# Names as they are written, and their first aliases, folded (see `labels.fold`), to fields of
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
# Columns that stand beside scores in other people's files, folded; none is a finding.
BESIDE_SCORES = ("n views", "views", "fold", "frontal lateral", "height", "width", "index level 0")

# Names of helpers by what they say, as patterns of words in lower case, so that `isValid` and
# `is_valid` are one. Behind some first words may stand what a one-hot column is for: `sex_male`.
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

    Columns of `COLUMNS` are all there, also where two say the same. Of those that only `ALIASES`
    know there is one for a field, and none where that field has one already. A name in `classes`
    is no alias.
    """
    every = list(names)
    found = {name: COLUMNS[fold(name)] for name in every if fold(name) in COLUMNS}
    ranked = [(_RANK[key], name) for name in every if (key := squeezed(name)) in _RANK]
    for (_, field), name in sorted(ranked, key=lambda item: item[0][0]):
        if field not in found.values() and name not in found and name not in classes:
            found[name] = field
    return {name: found[name] for name in every if name in found}


def is_fact(name: str) -> bool:
    """Whether a name is one of a column of ids or facts, whatever others stand beside it."""
    return fold(name) in COLUMNS or squeezed(name) in _RANK


def squeezed(name: str) -> str:
    """A name's letters and digits in lower case: `Patient ID`, `patient-id` and `PatientID`."""
    return re.sub(r"[\W_]+", "", name).casefold()


def helper(name: str) -> str:
    """What a column says if its name is a helper's: a key of `_HELPERS`, as `a split`; else ''.

    The vocabulary is closed: any other name is none, and a known finding never is.
    """
    if is_known(name):
        return ""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    words = re.sub(r"[\W_]+", " ", parted).strip().casefold()
    return next((kind for kind, words_of in _HELPERS.items() if re.fullmatch(words_of, words)), "")
