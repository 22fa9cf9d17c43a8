"""`lingula demo`: from nothing to a report, on the phantom."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lingula.reporting.sentences import mean_prevalence
from lingula.reporting.summary import DRAWS
from lingula.scores.predictions import read_scores
from lingula.scores.results import means_to_text, to_json
from lingula.scoring.attention import known_rates
from lingula.settings.config import Config, vary
from lingula.settings.label_space import CXR_LT_2023
from lingula.settings.recipes import recipe
from lingula.system.progress import format_seconds
from lingula.training import run_folder
from lingula.training.run_labels import evaluate_run, labels_of
from lingula.verbs.data_phantom import data_phantom
from lingula.verbs.ensemble import ensemble
from lingula.verbs.report import report
from lingula.verbs.train import train

log = logging.getLogger("lingula")


@dataclass(frozen=True)
class Size:
    """The size of a demo; its other settings are those of the recipe `demo`.

    Attributes:
        images: images drawn, `side` pixels wide: 60 % to train on, 15 % dev, 25 % test.
        encoder: of both models, which read the images at `pixels` pixels.
        epochs: of the first model; `more`: of the second, which starts from it.
    """

    images: int
    side: int
    encoder: str
    pixels: int
    epochs: int
    more: int


FULL = Size(images=3000, side=96, encoder="regnetx_002", pixels=96, epochs=16, more=5)
QUICK = Size(images=400, side=96, encoder="resnet18", pixels=64, epochs=2, more=1)

PAGE = 250  # a report takes about as long as drawing so many images
TIMED = (30, 1.5)  # images drawn, and seconds trained, to measure how fast the machine is


def demo(out: str | Path = "runs/demo", *, quick: bool = False) -> Path:
    """Draw the phantom, train two models, join them class by class, and write `report.html`.

    The steps are logged first, with how long they will take on this machine, and the result last,
    in words.

    Args:
        out: folder for everything; the same call continues an interrupted demo.
        quick: fewer, smaller images and fewer epochs: a check that it works, with poor scores.

    Returns:
        The path of the report.
    """
    folder, size = Path(out), QUICK if quick else FULL
    first = vary(
        recipe("demo"),
        model__encoder=size.encoder,
        model__image_size=size.pixels,
        optim__epochs=size.epochs,
    )
    announce(folder, first, size)
    table = data_phantom(folder / "phantom", n=size.images, size=size.side)
    first = vary(first, data__table=str(table.resolve()))
    start = train(first, out=folder / "first")
    # The second starts from the first, with MixUp: another model in a third of the time.
    second = vary(
        first,
        model__weights=str(start.resolve()),
        model__bias="zero",
        augment__mixup=4.0,
        optim__lr=5e-4,
        optim__epochs=size.more,
        seed=1,
    )
    models = [start, train(second, out=folder / "mixup")]
    joined = ensemble("class-wise", models, out=folder / "class-wise", top_k=1)
    page = report([*models, joined], out=folder / "report.html")
    for line in _describe_result(models, joined):
        log.info("%s", line)
    log.info("Open the report in a browser: %s", page.resolve().as_uri())
    return page


def announce(folder: Path, config: Config, size: Size) -> None:
    """Log what will be done, and how long each part will take on this machine."""
    log.info(
        "The demo draws synthetic radiographs with the %d findings of CXR-LT 2023 and learns only "
        "from them. It needs no data and no internet.",
        len(CXR_LT_2023),
    )
    done = [
        (folder / "phantom" / "labels.csv").is_file(),
        run_folder.is_finished(folder / "first"),
        run_folder.is_finished(folder / "mixup"),
        False,
    ]
    parts = [
        f"draw {size.images} images of {size.side} pixels",
        f"train a first model ({size.encoder}, epochs: {size.epochs}), score it, and measure its "
        "attention",
        f"train a second model from the first one with MixUp (epochs: {size.more}), and do the "
        "same",
        "choose the better model for each finding, and write the report with intervals",
    ]
    if all(done[:-1]):
        seconds = [0.0] * len(parts)
    else:
        log.info("Timing this machine for a few seconds ...")
        seconds = estimate_seconds(measure_rates(config, size), size)
    for number, (part, there, takes) in enumerate(zip(parts, done, seconds, strict=True), start=1):
        left = "done already" if there else f"about {format_seconds(takes)}" if takes else "seconds"
        log.info("  %d. %s: %s", number, part, left)
    total = sum(takes for takes, there in zip(seconds, done, strict=True) if not there)
    if total:
        log.info("In all about %s on this machine, if nothing else runs.", format_seconds(total))


@dataclass(frozen=True)
class Rates:
    """Images per second: drawn, trained on, and scored."""

    drawn: float
    trained: float
    scored: float


def measure_rates(config: Config, size: Size) -> Rates:
    """How fast this machine draws, trains and scores, timed for a few seconds."""
    from lingula.bench.models import (
        PARTS,
        random_images,
        random_network,
        training_step,
    )
    from lingula.bench.rounds import time_rounds
    from lingula.model.devices import make_fabric, resolve_device

    images, seconds = TIMED
    with tempfile.TemporaryDirectory(prefix="lingula-demo-") as place:
        began = time.perf_counter()
        data_phantom(Path(place) / "phantom", n=images, size=size.side)
        drawn = images / (time.perf_counter() - began)
    config = resolve_device(config)
    fabric, batch = make_fabric(config.device, config.precision), config.optim.batch_size
    parts: dict[str, list[float]] = {name: [] for name in PARTS}
    step = training_step(
        config, random_network(config), fabric, random_images(batch, size.pixels), parts
    )
    time_rounds({"step": step}, 1000, config.device, seconds=seconds)
    # The first step, which allocates memory, is left out.
    each = {name: statistics.median(every[1:]) for name, every in parts.items()}
    return Rates(drawn, batch / sum(each.values()), batch / each["forward"])


def estimate_seconds(rates: Rates, size: Size) -> list[float]:
    """How long each part takes: drawing, the two models, and the ensemble with the report."""
    page = PAGE / rates.drawn
    train, dev, test = (share * size.images for share in (0.6, 0.15, 0.25))
    # At the end dev and test are scored in two views, and once more to measure the attention.
    ending = 3 * (dev + test) / rates.scored + page
    epoch = train / rates.trained + dev / rates.scored
    return [
        size.images / rates.drawn,
        size.epochs * epoch + ending,
        size.more * epoch + ending,
        page,
    ]


def _describe_result(models: Sequence[Path], joined: Path) -> list[str]:
    """What the models and their ensemble reach on the test images, in words."""
    lines = []
    for folder in (*models, joined):
        labels = labels_of(folder, models)
        draws = DRAWS if folder == joined else 0
        scores = read_scores(folder / "scores" / "test.csv")
        found = to_json(evaluate_run(scores, labels, "test", ci=draws))
        lines.append(f"  {folder.name}: {means_to_text(found)}")
    guessing = mean_prevalence(found) or float("nan")
    above = [name for name, c in found["classes"].items() if (c["AUROC_ci"] or [0])[0] > 0.5]
    rates = known_rates(models[0])
    points = sum(rate.validated for rate in rates.values())
    return [
        f"Result on {found['n']} drawn test images; guessing has a mAP of {guessing:.3f}:",
        *lines,
        f"The ensemble reaches {found['mAP'] / guessing:.1f} times the mAP of guessing. For "
        f"{len(above)} of {len(found['classes'])} findings it is better than chance (the 95 % "
        "interval of the AUROC is above 0.5).",
        f"For {points} of {len(rates)} findings the first model's attention points at the drawn "
        "sign more often than chance.",
        "These images are drawn: the result shows that the program works, and says nothing about "
        "patients.",
    ]
