"""Five sentences about a model: how good, on what, for what not, for whom not, and what next."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lingula.scores.intervals import unit_names
from lingula.settings.vocabulary import classify_view, parse_age, parse_sex
from lingula.tables.table import Table, class_counts

LEAST = 20  # patients of a group (or positives of a finding) below which little can be said
NAMED = 5  # findings that need more positives, at most


@dataclass(frozen=True)
class Rival:
    """Another model, compared on the same images: our mAP minus its, with the paired interval.

    `linear` says that it is a linear head, and `of` how many such models it is the best of.
    """

    name: str
    linear: bool
    difference: float
    ci: tuple[float, float] | None
    of: int = 1


@dataclass(frozen=True)
class About:
    """What the sentences say of a model, besides its scores.

    Attributes:
        place: its folder, as the commands name it.
        images: of how many images each member learned; empty: not known. A run is one member.
        patients: the same in patients; 0 where that is not known.
        sources: the data sets that the training images are from, as far as they are known.
        phantom: the images are drawn.
        has_models: new images can be scored with it; an ensemble of score files has none.
        calibrated: the folder has a calibration.
        out_of_fold: each image was scored by members that were trained without its patient.
        trained_on: the splits of the table that the models learned from.
        chosen: what was chosen on the very images that are measured, such as `the epoch`.
    """

    place: str
    images: tuple[int, ...] = ()
    patients: tuple[int, ...] = ()
    sources: tuple[str, ...] = ()
    phantom: bool = False
    has_models: bool = True
    calibrated: bool = False
    out_of_fold: bool = False
    trained_on: tuple[str, ...] = ("train",)
    chosen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """What was measured: an evaluation in the shape of `evaluate --json`, and the rows of it.

    `part` contains the rows that have scores, and `table` all rows.
    """

    result: Mapping[str, Any]
    split: str
    part: Table
    table: Table
    rival: Rival | None = None


def five_sentences(measured: Measured, about: About) -> tuple[str, ...]:
    """The sentences, from what was measured and what is known of the model."""
    return (
        _say_how_good(measured),
        _say_on_what(measured, about),
        _say_for_what_not(measured.result),
        _say_for_whom_not(measured, about),
        _say_what_next(measured, about),
    )


def mean_prevalence(result: Mapping[str, Any]) -> float | None:
    """Mean prevalence of the classes that have an AP: the mAP of guessing."""
    shares = [v["prevalence"] for v in result["classes"].values() if v["AP"] is not None]
    return sum(shares) / len(shares) if shares else None


def _say_how_good(measured: Measured) -> str:
    result = measured.result
    images = _count_images(measured.part)
    lost = f" ({len(result['failed'])} more could not be read)" if result["failed"] else ""
    where = f"{images} of the {measured.split} split{lost}"
    if result["mAP"] is None:
        return (
            f"Nothing can be said about how good the model is: no finding that it scores has a "
            f"positive among the {where}."
        )
    guessing = mean_prevalence(result)
    times = f", {result['mAP'] / guessing:.1f} times that of guessing" if guessing else ""
    text = (
        f"On the {where} the mean average precision (mAP) over "
        f"{_count(result['n_classes'], 'finding')} is {result['mAP']:.3f}"
        f"{_format_interval(result.get('mAP_ci'), '95 % interval ')}{times}"
    )
    if result["AUROC"] is not None:
        ci = result.get("AUROC_ci")
        text += f", and the mean AUROC {result['AUROC']:.3f}{_format_interval(ci)}"
        unsure = ci is None or ci[0] <= 0.5
        text += ", which is not shown to be better than the 0.5 of guessing" if unsure else ""
    return f"{text}{_compare(measured.rival)}."


def _compare(rival: Rival | None) -> str:
    if rival is None:
        return ""
    kind = "linear head" if rival.linear else "model"
    name = f'the {kind} "{rival.name}"'
    if rival.of > 1:
        name = f'"{rival.name}", the best of the {rival.of} other {kind}s'
        name = name.replace("other linear", "linear")
    ci, gap = rival.ci, abs(rival.difference)
    way = "above" if rival.difference >= 0 else "below"
    if ci is None:
        verdict = "and whether that is chance is not known"
    elif ci[0] > 0:
        verdict = "better beyond chance"
    elif ci[1] < 0:
        verdict = "worse beyond chance"
    else:
        verdict = "which may be chance: neither is shown to be better"
    span = (
        ""
        if ci is None
        else f" (95 % interval of the difference, by patient: {ci[0]:+.3f} to {ci[1]:+.3f})"
    )
    return f"; its mAP is {gap:.3f} {way} that of {name}{span}, {verdict}"


def _say_on_what(measured: Measured, about: About) -> str:
    part = measured.part
    text = f"{_describe_training(about)}, and measured on {_count_images(part)}"
    names = sorted({source for source in part.sources or () if source})
    text += f" ({', '.join(names)})" if names and not about.phantom else ""
    if about.out_of_fold:
        whose = "never saw its patient" if part.patients else "were not trained on it"
        text += f", each scored by models that {whose}"
    else:
        text += _find_overlap(measured, about.trained_on)
    if about.phantom:
        text += (
            "; all of these images are drawn (the phantom), so the figures show that the program "
            "works and say nothing about patients"
        )
    if about.chosen:
        was = "were" if len(about.chosen) > 1 or about.chosen[0].endswith("s") else "was"
        text += (
            f"; {_join(about.chosen)} {was} chosen on these same images, so the figures are too "
            "kind"
        )
    return f"{text}."


def _describe_training(about: About) -> str:
    if not about.images:
        return (
            "The models are not at hand, only their scores, so it is not known on what they were "
            "trained"
        )
    images = _count_range(about.images, "image")
    known = [many for many in about.patients if many]
    of = f" of {_count_range(known, 'patient')}" if len(known) == len(about.images) else ""
    sources = f" ({', '.join(about.sources)})" if about.sources and not about.phantom else ""
    if len(about.images) == 1:
        return f"The model was trained on {images}{of}{sources}"
    return f"The {len(about.images)} models were trained on {images}{of} each{sources}"


def _find_overlap(measured: Measured, splits: Sequence[str]) -> str:
    """Whether patients of the measured rows are among those of the training splits."""
    table, part = measured.table, measured.part
    if table.patients is None or not any(part.patients or ()):
        return (
            "; the table does not say whose images these are, so images of one patient may be on "
            "both sides, and the figures too kind"
        )
    rows = zip(table.patients, table.splits or (), strict=False)
    trained = {patient for patient, split in rows if split in splits and patient}
    shared = len(trained & set(part.patients or ()))
    if shared:
        return (
            f"; {_count(shared, 'patient')} of these {'has' if shared == 1 else 'have'} images in "
            "training too, so the figures are too kind"
        )
    return ", none of whom has an image in training" if trained else ""


def _say_for_what_not(result: Mapping[str, Any]) -> str:
    classes = result["classes"]
    measured = [name for name, row in classes.items() if row["AUROC"] is not None]
    unsure, worse = list_unproven(result), list_worse(result)
    absent = [name for name, row in classes.items() if not row["positives"]]
    everywhere = [n for n, row in classes.items() if row["positives"] and row["AUROC"] is None]
    unlabelled = result["left_out"]["only_in_scores"]
    parts = []
    if not measured:
        parts.append("No finding could be measured")
    elif unsure:
        parts.append(
            f"For {len(unsure)} of the {_count(len(measured), 'finding')} measured it is not shown "
            f"to be better than guessing (the 95 % interval of the AUROC includes 0.5, or there is "
            f"none): {_join(unsure)}"
        )
    elif not worse:
        which = f"each of the {len(measured)} findings" if len(measured) > 1 else "the one finding"
        parts.append(
            f"For {which} measured it is better than guessing (the 95 % interval of the AUROC is "
            "above 0.5), which does not make it good enough for any use"
        )
    if worse:
        parts.append(f"it is worse than guessing for {_join(worse)}")
    if absent:
        parts.append(f"not measured, for lack of positives: {_join(absent)}")
    if everywhere:
        parts.append(f"not measured, for lack of negatives: {_join(everywhere)}")
    if unlabelled:
        parts.append(f"not measured, for lack of labels: {_join(unlabelled)}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def list_unproven(result: Mapping[str, Any]) -> list[str]:
    """Findings whose AUROC has an interval that includes 0.5, or no interval."""
    found = []
    for name, row in result["classes"].items():
        ci = row.get("AUROC_ci")
        if row["AUROC"] is not None and (ci is None or ci[0] <= 0.5 <= ci[1]):
            found.append(name)
    return found


def list_worse(result: Mapping[str, Any]) -> list[str]:
    """Findings whose AUROC has an interval below 0.5."""
    rows = result["classes"].items()
    return [name for name, row in rows if (row.get("AUROC_ci") or (0, 1))[1] < 0.5]


def _say_for_whom_not(measured: Measured, about: About) -> str:
    if about.phantom:
        return "It was measured for nobody: the images are drawn and have no patients."
    part, table = measured.part, measured.table
    unit = "patient" if any(part.patients or ()) else "image"
    few, unknown = find_rare_groups(part, table)
    parts = []
    if few:
        told = [f"{name} ({_count(n, unit) if n else 'none'})" for name, n in few.items()]
        parts.append(f"For these groups it was measured on too few {unit}s or none: {_join(told)}")
    if unknown:
        parts.append(f"the table does not say the {_join(unknown)} of the images measured")
    if not parts:
        parts.append(
            f"Each view, sex, age group and source of the table has at least {LEAST} {unit}s among "
            "those measured"
        )
    parts.append("no image from a hospital outside the table was measured")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def find_rare_groups(part: Table, table: Table) -> tuple[dict[str, int], list[str]]:
    """The groups with fewer than `LEAST` patients in the rows measured, and columns that are empty.

    Groups are frontal (PA, AP) and lateral views, other views of the table, both sexes, children,
    adults to 64 and from 65, and the table's sources. Without patients, images are counted.
    """
    units = np.array(unit_names(part.patients, range(len(part))), dtype=object)
    groups: dict[str, NDArray[np.bool_]] = {}
    unknown = []
    for name, cells, found in (
        ("views", part.views, _group_by_view(part.views or (), table.views or ())),
        ("sex", part.sexes, _group_by_sex(part.sexes or ())),
        ("age", part.ages, _group_by_age(part.ages or ())),
    ):
        if cells is None or not any(row.any() for row in found.values()):
            unknown.append(name)
        else:
            groups |= found
    for source in sorted(set(table.sources or ()) - {""}):
        groups[f"images of {source}"] = np.array(part.sources) == source
    counts = {name: len(set(units[rows].tolist())) for name, rows in groups.items()}
    return {name: n for name, n in counts.items() if n < LEAST}, unknown


def _group_by_view(cells: Sequence[str], everywhere: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    names = [cell.strip().upper() for cell in cells]
    all_names = {cell.strip().upper() for cell in everywhere} - {""}
    kinds = np.array([classify_view(name) if name else "" for name in names], dtype=object)
    found = {}
    if any(name.startswith(("PA", "AP")) for name in all_names):
        for view in ("PA", "AP"):
            found[f"{view} views"] = np.array([name.startswith(view) for name in names], dtype=bool)
    else:
        found["frontal views"] = kinds == "frontal"
    found["lateral views"] = kinds == "lateral"
    if any(classify_view(name) == "other" for name in all_names):
        found["other views"] = kinds == "other"
    return found


def _group_by_sex(cells: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    codes = np.array([parse_sex(cell) or "" for cell in cells], dtype=object)
    return {"female patients": codes == "F", "male patients": codes == "M"}


def _group_by_age(cells: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    known = [parse_age(cell) for cell in cells]
    years = np.array([np.nan if age is None else age for age in known], dtype=float)
    return {
        "children under 18": years < 18,
        "adults of 18 to 64": (years >= 18) & (years < 65),
        "patients of 65 and over": years >= 65,
    }


def _say_what_next(measured: Measured, about: About) -> str:
    if about.phantom:
        return (
            "Next: `lingula start TABLE --out FOLDER` does the same on a table of real "
            "radiographs; this model is of no use for them."
        )
    place = shlex.quote(about.place)
    parts = [
        f"`lingula ensemble apply {shlex.quote(about.place + '/ensemble.json')} ...` combines "
        "new scores of its members"
    ]
    if about.has_models:
        mapped = " --calibrated" if about.calibrated else ""
        parts = [
            f"`lingula predict {place} --data FOLDER{mapped} --out scores.csv` scores new images"
        ]
    needed = _list_needed(measured)
    if needed:
        parts.append(f"label more images with {needed}")
    chosen = "" if about.calibrated else f" (choose them with `lingula calibrate {place}`)"
    parts.append(
        f"let a radiologist look at the thresholds{chosen} and at the images that it gets wrong"
    )
    parts.append("test it on labelled images of your own hospital")
    return f"Next: {'; '.join(parts)}; it is for research use only."


def _list_needed(measured: Measured) -> str:
    """The findings of which more positives are needed, the rarest first, and how many there are."""
    result, counts = measured.result, class_counts(measured.table)
    unsure = set(list_unproven(result)) | set(list_worse(result))
    rows = {
        name: (counts.get(name, row["positives"]), row["positives"])
        for name, row in result["classes"].items()
        if (name in unsure or row["positives"] < LEAST) and name != "No Finding"
    }
    rarest = sorted(rows, key=lambda name: rows[name])
    told = [
        f"{name} ({rows[name][0]:,} in the table, {rows[name][1]:,} of them measured)"
        for name in rarest[:NAMED]
    ]
    left = len(rarest) - len(told)
    return _join([*told, _count(left, "other finding")] if left else told)


def _count_images(table: Table) -> str:
    patients = len(set(table.patients or ()) - {""})
    return _count(len(table), "image") + (f" of {_count(patients, 'patient')}" if patients else "")


def _count(many: int, what: str) -> str:
    return f"{many:,} {what}{'' if many == 1 else 's'}"


def _count_range(many: Sequence[int], what: str) -> str:
    low, high = min(many), max(many)
    return _count(low, what) if low == high else f"{low:,} to {_count(high, what)}"


def _join(words: Iterable[str]) -> str:
    *first, last = ("", *words)
    return f"{', '.join(first[1:])} and {last}" if first[1:] else last


def _format_interval(ci: Sequence[float] | None, name: str = "") -> str:
    return "" if ci is None else f" ({name}{ci[0]:.3f} to {ci[1]:.3f})"
