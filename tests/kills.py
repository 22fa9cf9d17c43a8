"""Kill the real commands at random moments, start the same lines again, and look what was lost.

    python tests/kills.py [train|predict|cache|reproduce|all] [--kills 20] [--seed 0] [--work DIR]

A run is started, killed (SIGKILL, with its children) at a moment drawn over the time that an
undisturbed run takes, and started again, until it ends; then another one is begun, until there were
enough kills. What each leaves must be what the undisturbed run left. Exit status 1 on any loss.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import lingula
from lingula.images.cache import open_cache
from lingula.images.cache_writing import find_damaged

Left = dict[str, str]


@dataclass(frozen=True)
class Case:
    """A command to kill: its words for an output, and what it leaves there, by name."""

    name: str
    words: Callable[[Path], list[str]]
    left: Callable[[Path], Left]
    done_twice: Callable[[Path, dict[Path, int]], list[str]]
    out: str


@dataclass
class Outcome:
    """Kills and ended runs so far, and every loss in words."""

    kills: int = 0
    runs: int = 0
    losses: list[str] = field(default_factory=list)


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "not there"


# What each command leaves.


def run_left(run: Path) -> Left:
    """The weights, the scores and the losses of a training."""
    rows = re.sub(r', "seconds": [0-9.]+', "", (run / "metrics.jsonl").read_text())
    names = ("best/model.safetensors", "scores/dev.csv", "scores/test.csv")
    left = {f"{run.name}/{name}": sha(run / name) for name in names}
    left[f"{run.name}/rows"] = rows
    stray = [p.name for p in run.rglob(".*") if p.is_file()]
    return {**left, f"{run.name}/stray": " ".join(sorted(stray))}


def scores_left(out: Path) -> Left:
    return {name: sha(out.with_name(name)) for name in (out.name, f"{out.stem}.failed.csv")}


def cache_left(out: Path) -> Left:
    """Every image's pixels; each checksum is verified."""
    index = open_cache(out)
    left = {"damaged": str(find_damaged(index))}
    for name, found in index.entries.items():
        entry = found[-1]
        with (out / entry.file).open("rb") as stream:
            stream.seek(entry.start)
            left[name] = hashlib.sha256(stream.read(entry.length)).hexdigest()
    return left


def reproduced_left(out: Path) -> Left:
    """The table but for its seconds, and every training."""
    with (out / "table1.csv").open(newline="") as stream:
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(stream)]
    left = {"table": str(rows)}
    for run in sorted((out / "trainings").iterdir()):
        left |= run_left(run)
    return left


# What each did twice: `seen` is what was finished when a process was killed.


def newest_step(run: Path) -> int:
    return max((int(p.stem[5:]) for p in run.glob("checkpoints/step-*.pt")), default=0)


def finished_files(out: Path) -> dict[Path, int]:
    """What must never be made again once it is there, with its time."""
    kept = [*out.rglob("finished.json"), *out.rglob("*.pixels")]
    # Pixels count as finished with their index only.
    kept = [p for p in kept if p.suffix != ".pixels" or p.with_suffix(".jsonl").is_file()]
    return {path: path.stat().st_mtime_ns for path in kept}


def remade(out: Path, seen: dict[Path, int]) -> list[str]:
    now = finished_files(out)
    return [
        f"{path.relative_to(out)} was made again" for path in seen if now.get(path) != seen[path]
    ]


def begun_again(run: Path, steps: list[int]) -> list[str]:
    """Steps that a training was continued at, other than those of its checkpoints at the kills."""
    log = (run / "train.log").read_text() if (run / "train.log").is_file() else ""
    found = [int(text) for text in re.findall(r"Continuing at step (\d+)", log)]
    wrong = [step for step in found if step not in steps]
    return [f"{run.name} went on at step {step}, not {steps}" for step in wrong]


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lingula", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def undisturbed(case: Case, folder: Path) -> tuple[Left, float]:
    """What the command leaves when it is left alone, and the seconds that it takes."""
    out = folder / case.out
    began = time.monotonic()
    process = start(case.words(out))
    _, errors = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"{case.name} failed undisturbed:\n{errors}")
    return case.left(out), time.monotonic() - began


def kill_and_compare(case: Case, work: Path, kills: int, seed: int) -> Outcome:
    """Kill `case` so many times; every run that ends is compared with the undisturbed one."""
    draw = random.Random(seed)
    expected, seconds = undisturbed(case, work / f"{case.name}-whole")
    sys.stdout.write(f"{case.name}: {seconds:.1f} s undisturbed\n")
    outcome = Outcome()
    while outcome.kills < kills:
        out = work / f"{case.name}-{outcome.runs}" / case.out
        one_run(case, out, expected, seconds, kills, draw, outcome)
    return outcome


def one_run(
    case: Case,
    out: Path,
    expected: Left,
    seconds: float,
    kills: int,
    draw: random.Random,
    outcome: Outcome,
) -> None:
    """One output, killed until it is finished."""
    seen: dict[Path, int] = {}
    steps: dict[Path, list[int]] = {}
    while True:
        process = start(case.words(out))
        moment = draw.uniform(0, seconds)
        try:
            _, errors = process.communicate(timeout=moment if outcome.kills < kills else None)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            outcome.kills += 1
            for run in {p.parent.parent for p in out.rglob("step-*.pt")}:
                steps.setdefault(run, []).append(newest_step(run))
            seen = {**finished_files(out), **seen}
            reached = max((newest_step(run) for run in steps), default=0)
            say = f"{case.name} kill {outcome.kills}: at {moment:.1f} of {seconds:.1f} s"
            sys.stdout.write(f"{say}, {len(seen)} files finished, newest step {reached}\n")
            sys.stdout.flush()
            continue
        break
    lost = []
    if process.returncode != 0:
        lost = [f"the same line again failed with {process.returncode}: {errors.strip()[-500:]}"]
    else:
        found = case.left(out)
        names = [n for n in {**expected, **found} if expected.get(n) != found.get(n)]
        lost = [f"{name} differs" for name in names[:5]]
    lost += case.done_twice(out, seen)
    lost += [line for run, noted in steps.items() for line in begun_again(run, noted)]
    outcome.runs += 1
    outcome.losses += lost
    state = "; ".join(lost) if lost else "equal to the undisturbed one"
    sys.stdout.write(f"{case.name} run {outcome.runs}: {state}\n")
    sys.stdout.flush()


# The four commands, on small phantoms.


def cases(work: Path, names: list[str]) -> list[Case]:
    """The inputs drawn and trained, and the commands that use them."""
    table = lingula.data_phantom(work / "phantom", n=240, size=32)
    found = []
    if "train" in names:

        def train(out: Path) -> list[str]:
            settings = [f"data.table={table}", "optim.epochs=16", "optim.batch_size=8"]
            return ["train", "smoke", *settings, "--out", str(out)]

        found.append(Case("train", train, run_left, remade, "run"))
    if "predict" in names:
        model = lingula.train(
            "smoke", [f"data.table={table}", "optim.epochs=1"], out=work / "model"
        )

        def predict(out: Path) -> list[str]:
            words = ["predict", str(model), "--data", str(table), "--out", str(out)]
            return [*words, "--tta", "paper", "--batch-size", "1"]

        found.append(Case("predict", predict, scores_left, remade, "scores.csv"))
    if "cache" in names:
        films = many(table.parent / "images", work / "films", 9000)

        def cache(out: Path) -> list[str]:
            return [
                "data",
                "cache",
                str(films),
                "--size",
                "64",
                "--workers",
                "1",
                "--out",
                str(out),
            ]

        found.append(Case("cache", cache, cache_left, remade, "cache"))
    if "reproduce" in names:

        def reproduce(out: Path) -> list[str]:
            rows = [word for row in ("1", "2", "3") for word in ("--rows", row)]
            return ["reproduce", "table1", "--scale", "tiny", *rows, "--out", str(out)]

        found.append(Case("reproduce", reproduce, reproduced_left, remade, "table"))
    return found


def many(images: Path, folder: Path, count: int) -> Path:
    """A folder of `count` names for a few images: enough for three files of a cache."""
    folder.mkdir()
    sources = sorted(images.rglob("*.png"))
    for number in range(count):
        os.link(sources[number % len(sources)], folder / f"{number:05}.png")
    return folder


def main(words: list[str] | None = None) -> int:
    every = ["train", "predict", "cache", "reproduce"]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", nargs="?", default="all", choices=[*every, "all"])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=None, help="keep everything in this folder")
    chosen = parser.parse_args(words)
    names = every if chosen.what == "all" else [chosen.what]
    status = 0
    with tempfile.TemporaryDirectory() as temporary:
        work = chosen.work or Path(temporary)
        for case in cases(work, names):
            outcome = kill_and_compare(case, work, chosen.kills, chosen.seed)
            told = f"{len(outcome.losses)} losses in {outcome.kills} kills, {outcome.runs} runs"
            sys.stdout.write(f"{case.name}: {told}\n")
            status |= bool(outcome.losses)
    return status


if __name__ == "__main__":
    sys.exit(main())
