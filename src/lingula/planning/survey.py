"""What a plan is made from: the table, the machine, the weights that are there, and timed steps."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lingula.bench.speed import Speed, speed_from_json
from lingula.model.encoders import build_encoder
from lingula.model.facts import read_facts
from lingula.model.loader import imagenet_file, load_encoder, pretrained
from lingula.planning.budget import Images, Machine
from lingula.planning.training_jobs import environment
from lingula.settings.config import Config, write_config
from lingula.system import files
from lingula.system.errors import InputError, StoppedError
from lingula.tables.configured import configured_targets
from lingula.tables.splits import folds_by_patient, people, split_by_patient
from lingula.tables.table import Table, rows_of, subset, with_splits

log = logging.getLogger("lingula")

# Tried in this order; the first whose published weights are on the machine, or that a given file of
# weights fits.
ENCODERS = (
    "efficientnet_lite0",
    "resnet50.tv_in1k",
    "densenet121.tv_in1k",
    "convnext_tiny",
    "resnet18",
    "efficientnet_b0",
    "mobilenetv3_large_100",
    "regnetx_002",
    "resnet34",
    "resnet101",
    "densenet169",
    "convnext_small",
    "convnext_base",
    "vit_small_patch16_224",
    "vit_base_patch16_224",
    "swin_tiny_patch4_window7_224",
)
SCRATCH = "regnetx_002"  # the encoder of the recipe `demo`, which learns from random weights
MOST_UNEXPECTED = 10  # one tensor in so many of a file may be none of the encoder's, as its head
FEWEST_POSITIVES = 10  # patients with a finding; of fewer, no interval says anything
BUSY = 0.7  # load per core from which timings are not those of this program alone
TEST_SHARE = 0.2  # of the patients, if the table has no test split
BYTES_OF_TRAINING = 2.5e9  # of memory that a training on a CPU should find


def set_test_aside(table: Table, *, test: bool, seed: int, images_are_patients: bool) -> Table:
    """The table with the splits `dev`, for the images of the folds, and `test`.

    A table's own test split stays as it is; train and dev are taken together. Without one, a fifth
    of the patients is set aside, unless `test` is False. Rows in no split stay in none.
    """
    known = table.splits or ("dev",) * len(table)
    splits = [split and ("test" if split == "test" else "dev") for split in known]
    pool = [row for row, split in enumerate(splits) if split == "dev"]
    if not pool:
        raise InputError(f"{table.path} has no rows to train on: its split column says test.")
    if test and "test" not in splits:
        made = split_by_patient(
            subset(table, np.array(pool)),
            fractions=(1 - TEST_SHARE, 0.0, TEST_SHARE),
            seed=seed,
            images_are_patients=images_are_patients,
        )
        for row, split in zip(pool, made, strict=True):
            splits[row] = "test" if split == "test" else "dev"
    return with_splits(table, tuple(splits))


def check_measurable(table: Table, config: Config, folds: int) -> dict[str, int]:
    """The patients with each finding among the images of the folds.

    Raises `InputError` if no finding has enough of them to be measured at all, if images have no
    patient, and if there are fewer patients than folds.
    """
    part = subset(table, rows_of(table, "dev"))
    patients_are_images = config.data.images_are_patients
    folds_by_patient(part, folds, seed=config.seed, images_are_patients=patients_are_images)
    values, mask = configured_targets(config.data, part)
    positive = (values >= 0.5) & mask
    everyone = np.array([f"{kind}\0{source}\0{name}" for kind, source, name in people(part)])
    counts = {
        name: len(np.unique(everyone[positive[:, k]])) for k, name in enumerate(part.space.classes)
    }
    most = max(counts, key=lambda name: counts[name])
    if counts[most] < FEWEST_POSITIVES:
        raise InputError(
            f"{table.path} is too small to measure a model: the most frequent finding, {most}, is "
            f"in {counts[most]} patients outside the test split, and {FEWEST_POSITIVES} are the "
            "least that says anything. Add images, or merge findings."
        )
    return counts


def count_images(table: Table) -> Images:
    """The images in the folds and in the test split."""
    return Images(len(rows_of(table, "dev")), len(rows_of(table, "test")))


def find_start(weights: str | Path | None, encoder: str | None) -> tuple[str, str, str]:
    """The encoder, `model.weights`, and why: given, found on this machine, or from scratch.

    Args:
        weights: a file of weights, a run or model folder, `imagenet` or `none`; None: published
            weights if they are there, else none.
        encoder: the encoder's name if the user chose it.

    Raises:
        InputError: the weights fit none of `ENCODERS`, and no encoder is named.
    """
    candidates = ENCODERS if encoder is None else (encoder,)
    if weights is None or weights == "imagenet":
        for name in candidates:
            if imagenet_file(name) is not None:
                known = pretrained(name)
                return name if known is None else known.name, "imagenet", "ImageNet weights found"
        if weights == "imagenet":
            raise InputError(
                f"There are no ImageNet weights of {' or '.join(candidates[:3])} on this machine. "
                "`lingula fetch RECIPE` brings them where there is internet; or give a file, "
                "--weights FILE."
            )
        return encoder or SCRATCH, "none", "no weights found (--weights): from scratch"
    if weights == "none":
        return encoder or SCRATCH, "none", "from scratch, as asked"
    place = files.expand_home(str(weights))
    if place.is_dir():
        facts = read_facts(place)
        best = place / "best" if (place / "best" / "model.json").is_file() else place
        named = str(facts["architecture"]["encoder"])
        return encoder or named, str((best / "model.safetensors").resolve()), f"of {place.name}"
    if not place.is_file():
        raise files.not_a_file(place, "weights file")
    for name in candidates:
        try:
            report = load_encoder(build_encoder(name, 224)[0], place)[0]
        except InputError:
            if encoder is not None:
                raise
            continue
        # A deeper network of the same family has all tensors of this one, and more.
        if encoder is not None or len(report.unexpected) * MOST_UNEXPECTED <= len(report.matched):
            return name, str(place.resolve()), f"the weights of {place.name} fit it"
    raise InputError(
        f"{place} fits none of {', '.join(ENCODERS)}. Say which encoder it is of: "
        "model.encoder=NAME, any name that timm knows."
    )


def describe_machine(config: Config) -> Machine:
    """How trainings share this machine: one per CUDA device, or two on the cores of a CPU.

    Two trainings with half of the cores each get more done than one with all of them.
    """
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    parallel = 1
    if config.device == "cuda":
        parallel = max(1, torch.cuda.device_count())
    elif config.device == "cpu" and cores >= 2 and free_memory() >= 2 * BYTES_OF_TRAINING:
        parallel = 2
    return Machine(config.device, parallel, max(1, cores // parallel), 0.0)


def warn_if_busy() -> None:
    """Warn if other programs use the cores: what is timed now will be slower than it could be."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > BUSY * cores:
        log.warning(
            "Other programs are using this machine (load %.1f on %d cores). Steps will look slow, "
            "and the plan will be smaller than it could be.",
            load,
            cores,
        )


def free_memory() -> float:
    """Bytes of memory that are free, or could be; plenty where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return float("inf")
    found = next((line for line in lines if line.startswith("MemAvailable:")), None)
    return float("inf") if found is None else 1024.0 * int(found.split()[1])


def measure(configs: Sequence[Config], machine: Machine) -> list[Speed]:
    """Time steps of each of these trainings, as many at once as will be trained at once.

    Processes of their own, with the threads and devices that trainings will have.
    """
    found: list[Speed] = []
    with tempfile.TemporaryDirectory(prefix="lingula-start-") as place:
        paths = [Path(place) / f"{number}.yaml" for number in range(len(configs))]
        for path, config in zip(paths, configs, strict=True):
            plain = config.model_copy(update={"data": type(config.data)()})
            write_config(replace_start(plain), path)
        for first in range(0, len(paths), machine.parallel):
            group = paths[first : first + machine.parallel]
            # A share that has nothing to measure works all the same: it will, in the trainings.
            group += [paths[first]] * (machine.parallel - len(group))
            started = [
                subprocess.Popen(
                    [sys.executable, "-m", "lingula.bench.speed", str(path)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=environment(machine, number),
                )
                for number, path in enumerate(group)
            ]
            try:
                outputs = [process.communicate() for process in started]
            finally:
                for process in started:
                    process.kill()
            for process, (_, error) in zip(started, outputs, strict=True):
                if process.returncode:
                    told = error.decode(errors="replace").strip().splitlines()[-3:]
                    raise StoppedError("Timing a training failed:\n  " + "\n  ".join(told))
            found += [
                speed_from_json(files.parse_object(out, "what timing printed", "config"))
                for out, _ in outputs
            ]
    return found[: len(configs)]


def replace_start(config: Config) -> Config:
    """The config with random weights and texts: they change no time."""
    model = config.model.model_copy(update={"weights": "none", "text": "orthogonal"})
    return config.model_copy(update={"model": model})
