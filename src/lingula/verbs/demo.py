"""`lingula demo`: from nothing to a report, on the phantom."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lingula.reporting.page import mean_prevalence
from lingula.scores.evaluation import in_words, to_json
from lingula.scores.predictions import read_scores
from lingula.scoring.attention import known_rates
from lingula.settings.config import Config, vary
from lingula.settings.label_space import CXR_LT_2023
from lingula.settings.recipe import recipe
from lingula.system.progress import spoken
from lingula.training import run_folder
from lingula.training.run_labels import labels_of, measured
from lingula.verbs.data_phantom import data_phantom
from lingula.verbs.ensemble import ensemble
from lingula.verbs.report import DRAWS, report
from lingula.verbs.train import train

log = logging.getLogger("lingula")


@dataclass(frozen=True)
class Size:
    """All that the length of a demo follows from; the other settings are the recipe `demo`'s.

    Attributes:
        films: films drawn, `side` pixels wide: 60 % to train on, 15 % dev, 25 % test.
        encoder: of both models, which see films of `pixels` pixels.
        epochs: of the first model; `more`: of the second, which goes on from it.
    """

    films: int
    side: int
    encoder: str
    pixels: int
    epochs: int
    more: int


FULL = Size(films=3000, side=96, encoder="regnetx_002", pixels=96, epochs=16, more=5)
QUICK = Size(films=400, side=96, encoder="resnet18", pixels=64, epochs=2, more=1)

PAGE = 250  # a report takes about as long as drawing so many films
TIMED = (30, 1.5)  # films drawn, and seconds trained, to see how fast the machine is


def demo(out: str | Path = "runs/demo", *, quick: bool = False) -> Path:
    """Draw the phantom, train two models, join them class by class, and write `report.html`.

    What will be done is logged first, with how long it will take on this machine, and the result
    last, in words.

    Args:
        out: folder for everything; the same call continues or finds it finished.
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
    _announce(folder, first, size)
    table = data_phantom(folder / "phantom", n=size.films, size=size.side)
    first = vary(first, data__table=str(table.resolve()))
    start = train(first, out=folder / "first")
    # The second goes on from the first with MixUp: another model for a third of the time.
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
    for line in _result(models, joined):
        log.info("%s", line)
    log.info("Open the report in a browser: %s", page.resolve().as_uri())
    return page


def _announce(folder: Path, config: Config, size: Size) -> None:
    """Log what will be done, and how long each part will take, from what is timed here and now."""
    log.info(
        "The demo draws radiographs with the %d findings of CXR-LT 2023, and learns from them "
        "alone: it needs no data and no network.",
        len(CXR_LT_2023),
    )
    there = [
        (folder / "phantom" / "labels.csv").is_file(),
        run_folder.is_finished(folder / "first"),
        run_folder.is_finished(folder / "mixup"),
        False,
    ]
    what = [
        f"draw {size.films} films of {size.side} pixels",
        f"train a first model ({size.encoder}, epochs: {size.epochs}), score it, and see where it "
        "looks",
        f"train a second from it with MixUp (epochs: {size.more}), the same",
        "join them finding by finding, and write the report with intervals",
    ]
    if all(there[:-1]):
        seconds = [0.0] * len(what)
    else:
        log.info("Timing this machine for a few seconds ...")
        seconds = _seconds(_rates(config, size), size)
    for number, (words, done, takes) in enumerate(zip(what, there, seconds, strict=True), start=1):
        left = "done before" if done else f"about {spoken(takes)}" if takes else "seconds"
        log.info("  %d. %s: %s", number, words, left)
    whole = sum(takes for takes, done in zip(seconds, there, strict=True) if not done)
    if whole:
        log.info("All of it: about %s here, if nothing else runs.", spoken(whole))


@dataclass(frozen=True)
class _Rates:
    """Films a second: drawn, trained on, and seen by a network that learns nothing."""

    drawn: float
    trained: float
    scored: float


def _rates(config: Config, size: Size) -> _Rates:
    import torch

    from lingula.bench.train import training_step
    from lingula.model.devices import resolve_device

    films, seconds = TIMED
    with tempfile.TemporaryDirectory(prefix="lingula-demo-") as place:
        began = time.perf_counter()
        data_phantom(Path(place) / "phantom", n=films, size=size.side)
        drawn = films / (time.perf_counter() - began)
    batch = config.optim.batch_size
    images = torch.randint(0, 256, (batch, 1, size.pixels, size.pixels), dtype=torch.uint8)
    targets = (torch.rand(batch, len(CXR_LT_2023)) < 0.1).float()
    step, parts = training_step(resolve_device(config), images, targets)
    step()  # the first one allocates
    for every in parts.values():
        every.clear()
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        step()
    each = {name: statistics.median(every) for name, every in parts.items()}
    return _Rates(drawn, batch / sum(each.values()), batch / each["forward"])


def _seconds(rates: _Rates, size: Size) -> list[float]:
    """How long each part takes: drawing, the two models, and what comes after them."""
    page = PAGE / rates.drawn
    train, dev, test = (share * size.films for share in (0.6, 0.15, 0.25))
    # At the end dev and test are scored in two views, and looked at once more for the attention.
    ending = 3 * (dev + test) / rates.scored + page
    epoch = train / rates.trained + dev / rates.scored
    return [
        size.films / rates.drawn,
        size.epochs * epoch + ending,
        size.more * epoch + ending,
        page,
    ]


def _result(models: Sequence[Path], joined: Path) -> list[str]:
    """What the models and their ensemble reach on the test films, in words."""
    lines = []
    for folder in (*models, joined):
        labels = labels_of(folder, models)
        draws = DRAWS if folder == joined else 0
        scores = read_scores(folder / "scores" / "test.csv")
        found = to_json(measured(scores, labels, "test", ci=draws))
        lines.append(f"  {folder.name}: {in_words(found)}")
    guessing = mean_prevalence(found) or float("nan")
    above = [name for name, c in found["classes"].items() if (c["AUROC_ci"] or [0])[0] > 0.5]
    rates = known_rates(models[0])
    points = sum(rate.validated for rate in rates.values())
    return [
        f"Result on {found['n']} drawn test films; guessing has a mAP of {guessing:.3f}:",
        *lines,
        f"Joined, they reach {found['mAP'] / guessing:.1f} times guessing. {len(above)} of "
        f"{len(found['classes'])} findings are told from chance (the 95 % interval of their AUROC "
        "lies above 0.5).",
        f"Where the first model looks is closer to the drawn sign than chance for {points} of "
        f"{len(rates)} findings.",
        "These films are drawn: that says that the program works, and nothing about patients.",
    ]
