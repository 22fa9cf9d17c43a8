"""What must stay bit for bit the same, whatever is rearranged: `python -m tests.test_goldens` lists it.

`goldens.json` has what follows from whole numbers or from sums of few terms, the same on every
processor. `--all` adds what a processor's arithmetic decides (weights, scores): two versions are
compared on one machine. A change of these is a change of files that people have; it needs a reason.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

import lingula

STORED = Path(__file__).parent / "goldens.json"
CLASSES = ("Atelectasis", "Edema", "Fracture", "No Finding")


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def of_folder(folder: Path, pattern: str = "*") -> str:
    """One hash of all files' names and bytes."""
    files = sorted(p for p in folder.rglob(pattern) if p.is_file())
    return sha(b"".join(p.relative_to(folder).as_posix().encode() + p.read_bytes() for p in files))


def rounded(value: Any) -> Any:
    """Figures to 9 digits: sums of doubles may differ in the last from processor to processor."""
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """What is measured and drawn: means, classes, intervals and the comparison."""
    kept = ("AP", "AP_ci", "AUROC", "AUROC_ci", "positives")
    classes = {name: {k: of[k] for k in kept} for name, of in result["classes"].items()}
    return {k: result[k] for k in ("mAP", "mAP_ci", "AUROC", "AUROC_ci", "against")} | classes


def write_scores(folder: Path) -> dict[str, Path]:
    """Two members' scores on dev and test, and the table with the labels."""
    random = np.random.default_rng(5)
    n = 120
    labels = random.random((n, 4)) < (0.4, 0.2, 0.1, 0.3)
    name = [f"i{i:03}.png" for i in range(n)]
    split = ["dev" if i < n // 2 else "test" for i in range(n)]
    table = {"image": name, "patient": [f"p{i // 3}" for i in range(n)], "split": split}
    table |= {c: labels[:, k].astype(int) for k, c in enumerate(CLASSES)}
    paths = {"labels": folder / "labels.csv"}
    pl.DataFrame(table).write_csv(paths["labels"])
    for member in ("a", "b"):
        scores = (labels * 0.5 + random.random((n, 4))) / 1.5
        for part in ("dev", "test"):
            rows = [i for i in range(n) if split[i] == part]
            columns = {c: np.round(scores[rows, k], 6) for k, c in enumerate(CLASSES)}
            path = folder / f"{member}_{part}.csv"
            pl.DataFrame({"image": [name[i] for i in rows], **columns}).write_csv(path)
            paths[f"{member}_{part}"] = path
    return paths


def goldens(folder: Path) -> dict[str, Any]:
    """The hashes and figures that are the same everywhere."""
    found: dict[str, Any] = {}
    films = folder / "films"
    lingula.data_phantom(films, n=60, size=48, seed=3)
    levels = [np.asarray(Image.open(path)) for path in sorted(films.rglob("*.png"))]
    found["phantom images"] = sha(b"".join(image.tobytes() for image in levels))
    found["phantom tables"] = of_folder(films, "*.csv")
    parts = folder / "parts.csv"
    lingula.data_split(films / "labels.csv", out=parts, seed=7, images_are_patients=True)
    found["splits of seed 7"] = sha(",".join(pl.read_csv(parts)["split"]).encode())
    cache = folder / "cache"
    lingula.data_cache(films / "labels.csv", out=cache, size=32, codec="raw")
    found["raw cache"] = of_folder(cache, "*.pixels")
    paths = write_scores(folder)
    words = [paths["a_test"], "--against", paths["b_test"], "--labels", paths["labels"]]
    words += ["--split", "test", "--ci", "200", "--json"]
    line = [sys.executable, "-m", "lingula", "evaluate", *map(str, words)]
    said = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    found["evaluation"] = rounded(figures(json.loads(said)))
    ensemble = folder / "ensemble"
    members = [(m, paths[f"{m}_dev"], paths[f"{m}_test"]) for m in "ab"]
    lingula.ensemble("class-wise", members=members, labels=paths["labels"], out=ensemble, draws=100)
    made = json.loads((ensemble / "ensemble.json").read_text())
    found["ensemble"] = rounded({key: made[key] for key in ("weights", "dev_ap")})
    found["ensemble scores"] = of_folder(ensemble, "*.csv")
    sheet = folder / "template.csv"
    rows = pl.read_csv(paths["a_test"])
    rows.with_columns(pl.lit(0.0).alias(c) for c in CLASSES).write_csv(sheet)
    lingula.submit(paths["a_test"], template=sheet, out=folder / "answer.zip")
    found["submission"] = sha((folder / "answer.zip").read_bytes())
    return found


def of_this_machine(folder: Path) -> dict[str, Any]:
    """Weights and scores of a seeded run."""
    run = folder / "run"
    table = folder / "films" / "labels.csv"
    settings = [f"data.table={table}", "optim.epochs=2", "augment.mixup=0.4", "precision=fp32"]
    lingula.train("smoke", settings, out=run)
    found = {"weights": of_folder(run / "best", "*.safetensors")}
    found["scores"] = of_folder(run / "scores", "*.csv")
    lingula.predict(run, data=table, out=folder / "again.csv", split="test", tta="paper")
    found["views"] = sha((folder / "again.csv").read_bytes())
    return found


def test_nothing_has_moved(tmp_path: Path) -> None:
    assert goldens(tmp_path) == json.loads(STORED.read_text())


def test_a_run_of_the_version_before_still_serves(tmp_path: Path) -> None:
    """`stored/run` was trained by 0.2.0.dev0 on the first 40 images of phantom seed 0."""
    films = tmp_path / "films"
    lingula.data_phantom(films, n=40, size=48)
    said = {"data": films / "labels.csv", "split": "test", "out": tmp_path / "scores.csv"}
    lingula.predict(Path(__file__).parent / "stored" / "run", **said, precision="fp32")
    now = pl.read_csv(tmp_path / "scores.csv").sort("image")
    then = pl.read_csv(Path(__file__).parent / "stored" / "run" / "scores" / "test.csv")
    assert now["image"].equals(then.sort("image")["image"])
    classes = [name for name in then.columns if then[name].dtype == pl.Float64]
    difference = now.select(classes).to_numpy() - then.sort("image").select(classes).to_numpy()
    assert len(classes) == 26 and np.abs(difference).max() < 1e-5


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        listed = goldens(Path(place))
        if "--all" in sys.argv:
            listed |= of_this_machine(Path(place))
        sys.stdout.write(json.dumps(listed, indent=1) + "\n")
