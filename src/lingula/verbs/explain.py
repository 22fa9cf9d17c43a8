"""`lingula explain`: where the decoder attended, drawn over the images, per finding it calls."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from lingula.images.files import image_path
from lingula.reporting.attention import Choice, draw_sheet, sheets_as_csv
from lingula.reporting.pages import render_page
from lingula.scoring.attention import has_decoder, known_rates, load_networks
from lingula.scoring.models import ENSEMBLE, ScoringModel, read_scoring_model
from lingula.system import files
from lingula.system.claims import NOT_EMPTY, claim
from lingula.system.errors import InputError, examples, nearest
from lingula.tables.folder import images_in
from lingula.tables.reading import boxes_beside
from lingula.tables.table import rows_of
from lingula.training.run_labels import dev_thresholds, labels_of, warn_of_changed_runs
from lingula.verbs.predict import refuse_films

log = logging.getLogger("lingula")


def explain(
    run: str | Path,
    *,
    data: str | Path,
    out: str | Path,
    split: str | None = None,
    classes: Sequence[str] = (),
    top: int = 3,
    limit: int = 200,
    labels: str | Path | None = None,
    allow_phantom_model: bool = False,
    overwrite: bool = False,
) -> Path:
    """Draw the attention of the findings above their threshold over each image.

    Args:
        run: a run folder or an ensemble of runs, with a decoder; its thresholds are those chosen
            on dev.
        data: a table, a folder or one image.
        out: folder to write: `index.html`, `overlays/*.png`, `explain.csv`.
        split: only the table's rows of this split.
        classes: only these findings; none: any.
        top: how many findings are shown per image, those with the highest scores.
        limit: how many images are drawn; the number of the others is logged.
        labels: the run's table, for the thresholds, if it was moved; None: where it was.
        allow_phantom_model: let a model trained on the phantom look at real images.
        overwrite: set an old folder aside first.

    Returns:
        The path of `index.html`. Images that can't be read are named there and in `explain.csv`.

    Raises:
        InputError: the model has no decoder, so nothing attends; wrong data or class names.
    """
    place, folder = Path(run), Path(out)
    model = read_scoring_model(place)
    if not has_decoder(model):
        raise InputError(f"{run} has no decoder (model.classifier=linear): nothing attends.")
    for name in classes:
        if name not in model.classes:
            raise InputError(f"{run} knows no '{name}'.{nearest(name, model.classes)}")
    root, images, table = images_in(data)
    if split is not None:
        if table is None:
            raise InputError("--split needs a table.")
        images = tuple(table.images[row] for row in rows_of(table, split))
    if not images:
        raise InputError(f"{data} has no images to explain.")
    if len(images) > limit:
        log.warning("Only the first %d of %d images are drawn (--limit).", limit, len(images))
    chosen = images[:limit]
    if model.phantom and not allow_phantom_model:
        refuse_films([image_path(root, name) for name in chosen])
    limits, why = _thresholds(model, labels)
    claim(folder, NOT_EMPTY, overwrite=overwrite).make_room()
    networks = load_networks(model)
    boxes = boxes_beside(table) if table else {}
    choice = Choice(limits, classes, top, known_rates(place), boxes)
    sheets = [draw_sheet(model, networks, root, name, folder, choice) for name in chosen]
    files.write_text(folder / "explain.csv", sheets_as_csv(sheets))
    page = render_page("explain.html", sheets=sheets, run=str(place), thresholds=why)
    files.write_text(folder / "index.html", page)
    lost = [sheet.image for sheet in sheets if sheet.failure]
    if lost:
        log.warning("%d images can't be read: %s.", len(lost), examples(lost))
    return folder / "index.html"


def _thresholds(model: ScoringModel, table: str | Path | None) -> tuple[dict[str, float], str]:
    """The threshold of each class, and where they come from."""
    place = model.place
    described = any((place / name).is_file() for name in ("config.yaml", ENSEMBLE))
    if (place / "scores" / "dev.csv").is_file() and described:
        labels = labels_of(place, table=table)
        warn_of_changed_runs([(place, labels)])
        return dev_thresholds(place, labels), "max-F1 on the run's dev split"
    return dict.fromkeys(model.classes, 0.5), "0.5, because the folder has no dev scores"
