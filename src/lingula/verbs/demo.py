"""`lingula demo`: from nothing to a report, on the phantom."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from lingula.config import vary
from lingula.recipe import recipe
from lingula.verbs.data_phantom import data_phantom
from lingula.verbs.ensemble import ensemble
from lingula.verbs.report import report
from lingula.verbs.train import train

log = logging.getLogger("lingula")


def demo(out: str | Path = "runs/demo", *, quick: bool = False) -> Path:
    """Draw the phantom, train two models, join them class by class, and write `report.html`.

    Args:
        out: folder for everything; the same call continues or finds it finished.
        quick: fewer, smaller images and fewer epochs: a check that it works, with poor scores.

    Returns:
        The path of the report.
    """
    folder = Path(out)
    images, size, epochs = (400, 64, 2) if quick else (3000, 96, 14)
    table = data_phantom(folder / "phantom", n=images, size=96)
    first = vary(
        recipe("demo"),
        data__table=str(table.resolve()),
        model__image_size=size,
        optim__epochs=epochs,
    )
    start = train(first, out=folder / "first")
    # The second goes on from the first with MixUp: another model for a third of the time.
    second = vary(
        first,
        model__weights=str(start.resolve()),
        model__bias="zero",
        augment__mixup=4.0,
        optim__lr=5e-4,
        optim__epochs=max(1, epochs // 3),
        seed=1,
    )
    runs = [start, train(second, out=folder / "mixup")]
    joined = ensemble("class-wise", runs, out=folder / "class-wise", top_k=1)
    page = report([*runs, joined], out=folder / "report.html")
    for run in runs:
        facts = json.loads((run / "finished.json").read_text(encoding="utf-8"))
        log.info("%s: test mAP %.3f.", run.name, facts["test"]["mAP"])
    return page
