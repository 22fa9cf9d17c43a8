"""What images are scored with: the model of one run, or an ensemble of runs with their weights."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lingula.model.facts import read_facts
from lingula.scores.ensembles import from_json
from lingula.system import files
from lingula.system.errors import InputError, examples

ENSEMBLE = "ensemble.json"
_MODEL, _WEIGHTS = "model.json", "model.safetensors"


@dataclass(frozen=True)
class Member:
    """One model: its name in the ensemble, its folder, and what its description says."""

    name: str
    folder: Path
    facts: dict[str, Any]


@dataclass(frozen=True)
class ScoringModel:
    """One model, or several whose scores are added with weights per class.

    Attributes:
        place: the run, model or ensemble folder.
        members: at least one; all have the same K classes, in any order.
        classes: K names, in the order of the scores.
        weights: (M, K), which sum to one per class; None for one model.
        sha256: of what the scores follow from: one model's weights, or all weights of all members.
    """

    place: Path
    members: tuple[Member, ...]
    classes: tuple[str, ...]
    weights: NDArray[np.float64] | None
    sha256: str

    @property
    def phantom(self) -> bool:
        """Whether a member was trained on the phantom."""
        return any(member.facts["trained_on"]["phantom"] for member in self.members)

    @cached_property
    def columns(self) -> NDArray[np.intp]:
        """(M, K): for each class its column in a member's own scores."""
        order = [[m.facts["classes"].index(name) for name in self.classes] for m in self.members]
        return np.array(order, dtype=np.intp)

    def combine(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """The scores (B, K) of the model from those (M, B, K) of its members, in their columns."""
        if self.weights is None:
            return np.asarray(scores[0])
        found: NDArray[np.float64] = np.zeros(scores.shape[1:])
        for own, columns, weights in zip(scores, self.columns, self.weights, strict=True):
            found += own[:, columns] * weights
        return found


def read_scoring_model(place: Path) -> ScoringModel:
    """Read a run folder, a model folder, or an ensemble folder whose members are runs.

    Raises:
        InputError: there is no model; a member has moved, has changed, or is only scores.
    """
    if not (place / ENSEMBLE).is_file():
        facts = read_facts(place)
        member = Member(place.name, place, facts)
        return ScoringModel(
            place, (member,), tuple(facts["classes"]), None, facts["weights_sha256"]
        )
    value = files.read_object(place / ENSEMBLE)
    made = from_json(value, str(place / ENSEMBLE))
    runs = value.get("runs", {})
    without = [name for name in made.members if name not in runs]
    if without:
        raise InputError(
            f"{place} is an ensemble of score files: it has scores and no models "
            f"({examples(without)}). Use `lingula ensemble apply {place / ENSEMBLE}` with new "
            "scores of its members, or make it again from run folders."
        )
    members = tuple(_read_member(place, name, runs[name]) for name in made.members)
    classes = tuple(made.weights)
    for member in members:
        if set(member.facts["classes"]) != set(classes):
            raise InputError(f"{member.folder} has other classes than {place / ENSEMBLE}.")
    weights = made.matrix(classes)
    follows = json.dumps([[m.facts["weights_sha256"] for m in members], classes, weights.tolist()])
    return ScoringModel(
        place, members, classes, weights, hashlib.sha256(follows.encode()).hexdigest()
    )


def has_out_of_fold_scores(place: Path) -> bool:
    """Whether an ensemble's dev scores are each of members that did not learn from that image.

    All dev images together are then what its members learned from.
    """
    return files.read_object(place / ENSEMBLE, absent_ok=True).get("dev_scores") == "out-of-fold"


def _read_member(place: Path, name: str, noted: Mapping[str, Any]) -> Member:
    """A member where it was noted: below the ensemble, beside it, or at its full path."""
    places = [place / noted["folder"], Path(noted["path"])]
    folder = next((p for p in places if (p / "best").is_dir() or (p / _MODEL).is_file()), None)
    if folder is None:
        tried = " nor at ".join(str(p) for p in places)
        raise InputError(
            f"{place}: its member '{name}' is not at {tried}. Put the run folder back, or make the "
            "ensemble again; `lingula ensemble ... --self-contained` keeps copies of the models."
        )
    facts = read_facts(folder)
    if facts["weights_sha256"] != noted["weights_sha256"]:
        raise InputError(
            f"{place}: its member '{name}' ({folder}) has been trained again since. Make the "
            "ensemble again with --overwrite."
        )
    return Member(name, folder, facts)


def note_members(
    place: Path, runs: Mapping[str, Path], *, copy: bool = False
) -> dict[str, dict[str, str]]:
    """What `ensemble.json` notes of members that are runs: where they are, and their weights.

    With `copy` the models themselves are copied to `members/NAME` in the ensemble's folder.

    Raises:
        InputError: with `copy`, a member that has scores and no model.
    """
    noted: dict[str, dict[str, str]] = {}
    for name, run in runs.items():
        best = run / "best"
        if not (best / _MODEL).is_file():
            if copy:
                raise InputError(f"{run} has no model to copy (no best/{_MODEL}).")
            continue
        there = place / "members" / name if copy else run
        if copy:
            for part in (_WEIGHTS, _MODEL):
                with files.write_atomically(there / part) as temporary:
                    shutil.copyfile(best / part, temporary)
        noted[name] = {
            "folder": Path(os.path.relpath(there, place)).as_posix(),
            "path": str(there.resolve()),
            "weights_sha256": read_facts(there)["weights_sha256"],
        }
    return noted
