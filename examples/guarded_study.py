"""Does the guarded ensemble help? Many patient-wise dev/test splits of the same scores.

    python examples/guarded_study.py FOLDER --out STUDY [--splits 60]

FOLDER holds scores files of several models on the same images and `labels.parquet` (or `.csv`) with
their labels, patients and a dev/test split, whose sizes every random split keeps. On each split the
rules choose on dev alone; STUDY gets `splits.jsonl`, `summary.json` and `guarded_study.png`. The
same line again continues. About 12 s a split for 16 models, 14 classes and 18,000 images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from lingula.scores import ensembles, guarded
from lingula.scores.members import Sample, join_members
from lingula.scores.predictions import read_scores
from lingula.settings.config import Data
from lingula.system import files
from lingula.tables.reading import read_table


def read_all(folder: Path) -> tuple[Sample, int]:
    """Every row of the folder's scores with its labels, and how many rows dev has."""
    labels = next(path for path in folder.glob("labels.*") if path.suffix in (".csv", ".parquet"))
    table = read_table(labels)
    if table.patients is None or table.splits is None:
        raise SystemExit(f"{labels} needs a patient and a split column.")
    paths = sorted(path for path in folder.iterdir() if path.stem != "labels")
    found = {p.stem: read_scores(p) for p in paths if p.suffix in (".csv", ".parquet")}
    sample = join_members(found, table, Data())
    return sample, table.splits.count("dev")


def random_split(sample: Sample, rows: int, seed: int) -> tuple[Sample, Sample]:
    """Whole patients, shuffled, into dev until it has `rows` rows; the rest is test."""
    names, unit, size = np.unique(sample.units, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    dev = np.zeros(len(names), dtype=bool)
    dev[order[np.cumsum(size[order]) <= rows]] = True
    return sample.select(dev[unit]), sample.select(~dev[unit])


def one_split(sample: Sample, rows: int, seed: int) -> dict[str, Any]:
    """What the rules choose on dev, what dev says of it, and what test does."""
    dev, test = random_split(sample, rows, seed)
    found = guarded.measure_guard(dev, test_units=len(set(test.units)), draws=400, seed=seed)
    plain = ensembles.plain_rules(dev)
    weights = {"guarded": ensembles.guarded_weights(dev), **plain}
    by_dev = {
        name: guarded.mean_ap(ensembles.weighted_mean(w, dev.scores), dev)
        for name, w in plain.items()
    }
    return {
        "seed": seed,
        "rows": [len(dev.units), len(test.units)],
        "baseline": found.baseline,
        "naive": max(by_dev, key=lambda name: by_dev[name]),
        "dev": list(found.dev),
        "crossfitted": list(found.crossfitted),
        "expected": list(found.expected or ()),
        "test": {
            name: guarded.mean_ap(ensembles.weighted_mean(w, test.scores), test)
            for name, w in weights.items()
        },
    }


def summary(splits: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean paired differences on test with intervals, and the prediction interval's coverage.

    The splits share their patients, so the plain interval over splits speaks of this data set
    alone. The wider one adds the share test / dev to 1 / splits in the variance of the mean, the
    usual correction for repeated splits.
    """
    ours = np.array([split["test"]["guarded"] for split in splits])
    against = {
        "best rule by cross-fitted dev": [split["test"][split["baseline"]] for split in splits],
        "best rule by plain dev mAP": [split["test"][split["naive"]] for split in splits],
        **{
            name: [split["test"][name] for split in splits]
            for name in splits[0]["test"]
            if name != "guarded"
        },
    }
    share = float(np.mean([split["rows"][1] / split["rows"][0] for split in splits]))
    expected = np.array([split["expected"] for split in splits])
    inside = (expected[:, 0] <= ours) & (ours <= expected[:, 1])
    gains = np.array([split["crossfitted"][0] - split["crossfitted"][1] for split in splits])
    chosen = [split["baseline"] for split in splits]
    naive = [split["naive"] for split in splits]
    return {
        "splits": len(splits),
        "guarded_test_mAP": float(ours.mean()),
        "differences": {n: _difference(ours - np.array(v), share) for n, v in against.items()},
        "crossfitted_gain": float(gains.mean()),
        "coverage": {
            "inside": int(inside.sum()),
            "below": int((ours < expected[:, 0]).sum()),
            "above": int((ours > expected[:, 1]).sum()),
            "share": float(inside.mean()),
            "mean_width": float(np.diff(expected, axis=1).mean()),
            "mean_test_minus_crossfitted": float(
                (ours - np.array([split["crossfitted"][0] for split in splits])).mean()
            ),
        },
        "chosen": {name: chosen.count(name) for name in sorted(set(chosen))},
        "chosen_by_plain_dev": {name: naive.count(name) for name in sorted(set(naive))},
    }


def _difference(values: Any, share: float) -> dict[str, Any]:
    spread, mean = float(values.std(ddof=1)), float(values.mean())
    plain = 1.96 * spread * (1 / len(values)) ** 0.5
    wide = 1.96 * spread * (1 / len(values) + share) ** 0.5
    return {
        "mean": mean,
        "over_splits_95": [mean - plain, mean + plain],
        "corrected_95": [mean - wide, mean + wide],
        "sd": spread,
        "better_in": int((values > 0).sum()),
    }


def draw(splits: list[dict[str, Any]], path: Path) -> None:
    """Left: paired differences on test, a dot a split. Right: prediction intervals and tests."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    ours = np.array([split["test"]["guarded"] for split in splits])
    rows = {
        "best rule by\ncross-fitted dev": [s["test"][s["baseline"]] for s in splits],
        "best rule by\nplain dev mAP": [s["test"][s["naive"]] for s in splits],
        "class-wise top-3": [s["test"]["class-wise top-3"] for s in splits],
        "global top-3": [s["test"]["global top-3"] for s in splits],
        "model-wise": [s["test"]["model-wise"] for s in splits],
    }
    for place, values in enumerate(rows.values()):
        gain = ours - np.array(values)
        scatter = np.random.default_rng(place).uniform(-0.15, 0.15, len(gain))
        left.plot(gain, place + scatter, ".", color="tab:blue", alpha=0.5)
        left.plot(gain.mean(), place, "D", color="black")
    left.axvline(0, color="grey", linewidth=1)
    left.set_yticks(range(len(rows)), list(rows))
    left.invert_yaxis()
    left.locator_params(axis="x", nbins=5)
    left.set_xlabel("test mAP, guarded minus the other (diamond: mean)")
    order = np.argsort(ours)
    for place, at in enumerate(order):
        low, high = splits[at]["expected"]
        inside = low <= ours[at] <= high
        right.plot([place, place], [low, high], color="lightgrey", linewidth=3)
        right.plot(place, ours[at], ".", color="black" if inside else "tab:red")
    right.set_xlabel("split, by test mAP")
    right.set_ylabel("mAP: expected from dev (bar) and on test (dot)")
    with files.write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def main() -> None:
    """Run what is missing, then summarise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--splits", type=int, default=60)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    log = asked.out / "splits.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    splits = [json.loads(line) for line in lines][: asked.splits]
    sample, rows = read_all(asked.folder)
    for seed in range(len(splits), asked.splits):
        splits.append(one_split(sample, rows, seed))
        files.write_text(log, "".join(json.dumps(split) + "\n" for split in splits))
        print(f"{seed + 1} of {asked.splits}", flush=True)
    files.write_json(asked.out / "summary.json", summary(splits))
    draw(splits, asked.out / "guarded_study.png")
    print(asked.out / "summary.json")


if __name__ == "__main__":
    main()
