"""`lingula reproduce`: what is missing is told at once, jobs as scripts, the bill, the closing line."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import lingula
from builders import imagenet_of, torchrun
from lingula.cli import app
from lingula.model.text_encoder import save_tiny
from lingula.phantom import write_phantom
from lingula.reproduction.jobs import find_texts, plan_jobs
from lingula.reproduction.request import Request
from lingula.scores.predictions import Predictions, write_scores
from lingula.settings.label_space import SPACES
from lingula.settings.recipes import DENSENET, TABLE_2
from lingula.system import files
from lingula.system.errors import InputError

CLASSES = SPACES["cxr-lt-2023"].classes
SMALL = ["model.image_size=32", "optim.batch_size=8"]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tables")
    return {
        style: write_phantom(folder / style, n=120, size=32, style=style, imbalance=5.0)
        for style in ("cxr-lt", "nih", "chexpert")
    }


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The paper's ResNet-50 becomes a tiny one, and no weights are on this machine."""
    monkeypatch.setattr("lingula.settings.recipes.RESNET", "test_resnet.r160_in1k")
    monkeypatch.setenv("LINGULA_WEIGHTS", str(tmp_path / "no-weights"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-weights"))


def jobs(table: str, **asked: Any) -> list[str]:
    lines = lingula.reproduce(table, print_jobs=True, **asked)
    assert isinstance(lines, list)
    return lines


def refused(table: str, **asked: Any) -> str:
    with pytest.raises(InputError) as told:
        lingula.reproduce(table, **asked)
    return str(told.value)


def test_jobs_for_a_cluster(tmp_path: Path, cheap: None) -> None:
    lines = jobs("table1", out=tmp_path / "o", scale="tiny", seeds=2)
    assert not (tmp_path / "o" / "phantom").exists()
    trainings = [line for line in lines if line.startswith("lingula train")]
    assert len(trainings) == 16  # eight trainings, for rows 2 and 3 share one, of two seeds
    assert all("--out" in line and "seed=" in line for line in trainings)
    scorings = [line for line in lines if line.startswith("lingula predict")]
    assert len(scorings) == 4 and all("--tta paper" in line for line in scorings)  # row 3's views
    assert lines[0].startswith("lingula data phantom") and lines[-2] == "# after all of the above:"
    assert lines[-1].startswith("lingula reproduce table1") and "--seeds 2" in lines[-1]
    long = jobs("table1", out=tmp_path / "o", scale="tiny", epochs=7, rows=[1])
    assert "optim.epochs=7" in long[2] and "--epochs 7" in long[-1]


def test_words_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "o"
    assert "Did you mean 'tiny'" in refused("table1", out=out, scale="tinny")
    assert "table1 and table2" in refused("table3", out=out)
    assert "rows 1 to 9, not 10" in refused("table1", out=out, rows=[10])
    assert "rows 1 to 3, not 4" in refused("table2", out=out, rows=[4])
    assert "Did you mean 'clinical-t5'" in refused("table1", out=out, texts={"clinicalt5": "x"})
    both = {"texts": {"med-kebert": "x"}, "stand_ins": {"med-kebert": "y"}}
    assert "by --text and by --stand-in" in refused("table1", out=out, **both)
    for setting, told in (
        ("model.encodr=x", "Did you mean 'model.encoder'"),
        ("data.cache=x", "use --cache instead"),
        ("seed=3", "use --seeds instead"),
        ("model.classifier=shared", "rows of the paper's tables differ in it"),
        ("loss.class_weights.Edema=2", "rows of the paper's tables differ in it"),
    ):
        assert told in refused("table1", out=out, settings=[setting])
    assert "--slurm FILE" in refused("table1", out=out, template="x")
    assert "Give only one of" in refused("table1", out=out, join=True, estimate=True)
    assert not out.exists()


def test_cache_and_settings_reach_every_training(
    tables: dict[str, Path], tmp_path: Path, cheap: None
) -> None:
    cache = tmp_path / "cache"
    for table in tables.values():
        lingula.data_cache(table, out=cache, size=32)
    asked: dict[str, Any] = {
        "out": tmp_path / "o",
        "data": tables["cxr-lt"],
        "outside": [tables["nih"], tables["chexpert"]],
        "cache": [cache],
        "settings": ["model.checkpointing=true", *SMALL],
        "scale": "tiny",
    }
    lines = jobs("table2", **asked)
    for line in lines:
        if line.startswith("lingula train"):
            assert f"data.cache={cache}" in line and "model.checkpointing=True" in line
            assert "optim.batch_size=8" in line
        if line.startswith("lingula predict"):
            assert f"--cache {cache}" in line
    assert sum(line.startswith("lingula train") for line in lines) == 8


def test_the_closing_line_asks_for_the_same(
    tables: dict[str, Path], tmp_path: Path, cheap: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {"clinical-t5": save_tiny(tmp_path / "my t5", "t5", ("Mass", "Edema"))}
    stand = {"med-kebert": save_tiny(tmp_path / "bert", "bert", ("Mass", "Edema"))}
    monkeypatch.setattr("lingula.reproduction.readiness.check_trainings", lambda *_, **__: None)
    asked: dict[str, Any] = {
        "out": tmp_path / "o o",
        "data": tables["cxr-lt"],
        "outside": [tables["nih"], tables["chexpert"]],
        "scale": "tiny",
        "seeds": 2,
        "epochs": 3,
        "texts": texts,
        "stand_ins": stand,
        "rows": [2, 3],
        "cache": [tmp_path / "c1", tmp_path / "c2"],
        "settings": ["data.workers=2", "data.root=films"],
    }
    last = jobs("table2", **asked)[-1]
    seen: dict[str, Any] = {}

    def note(table: str, **given: Any) -> str:
        seen.update(given, table=table)
        return ""

    monkeypatch.setattr(lingula, "reproduce", note, raising=False)
    result = CliRunner().invoke(app, shlex.split(last)[1:])
    assert result.exit_code == 0, result.output
    assert seen["join"] and seen["table"] == "table2"
    for key, value in asked.items():
        got = seen[key]
        if key == "settings":
            assert got == ["data.workers=2", f"data.root={Path('films').resolve()}"]
        elif isinstance(value, dict):
            assert {k: Path(v) for k, v in got.items()} == value
        elif isinstance(value, list) and key != "rows":
            assert [Path(v) for v in got] == value
        else:
            assert got == value or Path(got) == value


def test_everything_that_is_wrong_is_one_list(
    tables: dict[str, Path], tmp_path: Path, cheap: None
) -> None:
    """A table without splits, tables and text encoders that are not there: all at once."""
    table = tmp_path / "labels.csv"
    rows = list(csv.reader(tables["cxr-lt"].read_text().splitlines()))
    drop = rows[0].index("split")
    table.write_text("\n".join(",".join(r[:drop] + r[drop + 1 :]) for r in rows) + "\n")
    told = refused(
        "table2",
        out=tmp_path / "o",
        data=table,
        outside=[tmp_path / "nope.csv"],
        texts={"clinical-t5": tmp_path / "nowhere"},
        scale="tiny",
    )
    for fault in (
        f"{table} has no split column",
        "lingula data split",
        f"There is no table {tmp_path / 'nope.csv'} (--outside)",
        "--outside was given 1 table, but 2 are needed",
        f"{tmp_path / 'nowhere'} contains no text encoder",
    ):
        assert fault in told
    assert not list(tmp_path.glob("o/trainings"))
    nowhere = refused("table1", out=tmp_path / "o", data=tmp_path / "nope.csv", scale="tiny")
    assert f"There is no table {tmp_path / 'nope.csv'} (--data)" in nowhere
    twice = [tables["nih"], tables["nih"]]
    asked = {"data": tables["cxr-lt"], "out": tmp_path / "o", "scale": "tiny"}
    assert "names one table twice" in refused("table2", outside=twice, **asked)


def rewritten(table: Path, out: Path, change: Callable[[list[str], list[str]], None]) -> Path:
    """A copy of a table with its rows changed, whose images stay where they are."""
    rows = list(csv.reader(table.read_text().splitlines()))
    for row in rows[1:]:
        change(rows[0], row)
    out.write_text("\n".join(",".join(row) for row in rows) + "\n")
    facts = json.loads(table.with_suffix(".json").read_text()) | {"root": str(table.parent)}
    del facts["sha256"]
    out.with_suffix(".json").write_text(json.dumps(facts))
    return out


def test_faults_of_the_last_step_are_found_before_the_first(
    tables: dict[str, Path], tmp_path: Path, cheap: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows to be measured on, images, folders of other runs, room on the disk, shares of a batch."""
    asked: dict[str, Any] = {"out": tmp_path / "o", "scale": "tiny", "rows": [1]}

    def no_test(head: list[str], row: list[str]) -> None:
        if row[head.index("split")] == "test":
            row[head.index("split")] = ""

    table = rewritten(tables["cxr-lt"], tmp_path / "no-test.csv", no_test)
    assert "no rows with split test" in refused("table1", data=table, **asked)

    def lost(head: list[str], row: list[str]) -> None:
        if row[head.index("split")] == "test":
            row[head.index("image")] = f"lost/{row[0]}"

    table = rewritten(tables["cxr-lt"], tmp_path / "lost.csv", lost)
    assert re.search(r"\d+ of 120 .* images are missing", refused("table1", data=table, **asked))

    here = asked | {"data": tables["cxr-lt"]}
    told = refused("table1", settings=["model.weights=imagenet"], **here)
    assert "No row of table1 can be run" in told and "ImageNet weights of test_resnet" in told
    assert "leaves fewer than two images a piece" in refused(
        "table1", settings=["optim.batch_size=8", "optim.accumulate=5"], **here
    )
    told = refused("table1", cache=[tmp_path / "no-cache"], **here)
    assert "no-cache is not an image cache" in told
    monkeypatch.setattr(files, "free_bytes", lambda folder: 1000)
    told = refused("table1", **here)
    assert "has 1 kB free, and the checkpoints of 1 training need up to" in told
    (tmp_path / "no-weights").mkdir()
    imagenet_of("test_resnet.r160_in1k", tmp_path / "no-weights")
    frozen = ["model.frozen=true", "model.weights=imagenet", *SMALL]
    told = refused("table1", **here, settings=frozen)
    assert "the checkpoints and features of 1 training need up to" in told
    monkeypatch.undo()
    monkeypatch.setattr("lingula.settings.recipes.RESNET", "test_resnet.r160_in1k")
    other = tmp_path / "o" / "trainings" / "t1r1-s0"
    other.mkdir(parents=True)
    (other / "config.yaml").write_text("optim:\n  epochs: 3\n")
    assert "t1r1-s0 is a run with other settings" in refused("table1", **here)


def test_a_table_in_which_no_row_can_be_run_is_no_success(tmp_path: Path, cheap: None) -> None:
    told = refused("table1", out=tmp_path / "o", scale="small", print_jobs=True)
    assert "No row of table1 can be run" in told
    assert "t1r1, t1r2, t1r3, t1r4, t1r5, t1r7, t1r9: needs med-kebert" in told
    assert "t1r6, t1r8: needs clinical-t5" in told and "PhysioNet" in told
    result = CliRunner().invoke(app, ["reproduce", "table2", "--out", str(tmp_path / "o")])
    assert isinstance(result.exception, InputError)
    assert "No row of table2 can be run" in str(result.exception)


def test_rows_that_lack_weights_are_told_once_and_the_others_run(
    tmp_path: Path, cheap: None, caplog: pytest.LogCaptureFixture
) -> None:
    bert = save_tiny(tmp_path / "bert", "bert", CLASSES)
    lines = jobs("table1", out=tmp_path / "o", texts={"med-kebert": bert})
    trainings = [line for line in lines if line.startswith("lingula train")]
    assert sum("/trainings/" in line for line in trainings) == 6
    # What the two image encoders start from is drawn and trained before, once for all rows.
    starts = [line for line in trainings if "/starts/" in line.partition("--out ")[2]]
    encoders = ["test_resnet.r160_in1k", DENSENET]
    assert [line.rpartition("/")[2] for line in starts] == encoders
    assert any("phantom-start" in line and "--style nih" in line for line in lines)
    weights = [re.findall(r"model.weights=(\S+)", line) for line in trainings[2:]]
    assert {place for (place,) in weights} == {
        str(tmp_path / "o" / "starts" / name / "best" / "model.safetensors") for name in encoders
    }
    assert not (tmp_path / "o").exists()
    assert sum("not run: needs clinical-t5" in line for line in lines) == 2
    assert caplog.text.count("needs clinical-t5") == 1 and "t1r6, t1r8" in caplog.text


def test_a_real_text_encoder_is_no_stand_in(tmp_path: Path, cheap: None) -> None:
    place = save_tiny(tmp_path / "t5", "t5", CLASSES)
    for option, note in (("texts", ""), ("stand_ins", f"{tmp_path.name}/t5 instead of")):
        given = {option: {"clinical-t5": place}}
        asked = Request("table1", tmp_path / "o", scale="tiny", rows=(8,), **given)
        faults: list[str] = []
        found = plan_jobs(asked, find_texts(asked, faults))
        job = found["t1r8"]
        assert job.config.model.text == str(place) and not job.missing and not faults
        assert job.note == (note and f"{note} clinical-t5")
        assert "a tiny random encoder" in found["t1r9"].note


def test_a_finished_table_is_joined_on_any_node(
    tables: dict[str, Path], tmp_path: Path, cheap: None
) -> None:
    """Without the device, the weights and the images of its trainings; and only if all is done."""
    weights = tmp_path / "no-weights"
    save_tiny(weights / "med-kebert", "bert", CLASSES)
    films = tmp_path / "films"
    films.symlink_to(tables["cxr-lt"].parent)
    asked: dict[str, Any] = {"data": tables["cxr-lt"], "rows": [3], "out": tmp_path / "o"}
    asked |= {"epochs": 1, "settings": [*SMALL, "model.weights=none", f"data.root={films}"]}
    told = refused("table1", join=True, **asked)
    assert "t1r1-s0 is not finished" in told and "t1r2-s0 is not finished" in told
    assert "t1r3-s0/test.csv is not there" in told
    made = lingula.reproduce("table1", **asked)
    assert isinstance(made, Path)
    rows = [line for line in made.read_text().splitlines() if line.startswith("|")]
    assert "All scores are computed in fp32" in made.read_text()
    scores = [path for name in ("dev", "test") for path in asked["out"].rglob(f"{name}.csv")]
    stamps = {path: path.stat().st_mtime_ns for path in scores}
    (weights / "med-kebert").rename(weights / "gone")
    films.unlink()
    made.unlink()
    more = ["device=cuda", "model.checkpointing=true", "data.workers=1"]
    again = lingula.reproduce(
        "table1", join=True, **asked | {"settings": [*asked["settings"], *more]}
    )
    assert isinstance(again, Path) and len(stamps) == 6
    assert [line for line in again.read_text().splitlines() if line.startswith("|")] == rows
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    views = asked["out"] / "scores" / "t1r3-s0" / "test.made.json"
    views.write_text(views.read_text().replace('"tta": "paper"', '"tta": "flip"'))
    assert "or with other views" in refused("table1", join=True, **asked)
    other = refused("table1", join=True, **asked | {"epochs": 2})
    assert "optim.epochs: 1 there, 2 now" in other


def save_run(run: Path, table: Path) -> None:
    """A finished training with random scores."""
    rows = list(csv.DictReader(table.read_text().splitlines()))
    (run / "scores").mkdir(parents=True)
    random = np.random.default_rng(len(run.name))
    for split in ("dev", "test"):
        images = tuple(row["image"] for row in rows if row["split"] == split)
        made = Predictions(CLASSES, images, random.random((len(images), len(CLASSES))))
        write_scores(made, run / "scores" / f"{split}.csv")
    (run / "finished.json").write_text('{"seconds": 1.5}')


def test_ensembles_of_other_members_make_room(
    tables: dict[str, Path], tmp_path: Path, cheap: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that is run later joins the ensembles; the old ones are kept aside."""
    save_tiny(tmp_path / "no-weights" / "med-kebert", "bert", CLASSES)
    out = tmp_path / "o"
    for name in ("t1r2", "t1r4", "t1r7"):
        save_run(out / "trainings" / f"{name}-s0", tables["cxr-lt"])
    for split in ("dev", "test"):
        scores = out / "scores" / "t1r3-s0" / f"{split}.csv"
        scores.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(out / "trainings" / "t1r2-s0" / "scores" / f"{split}.csv", scores)
        scores.with_suffix(".made.json").write_text('{"tta": "paper"}')
    asked: dict[str, Any] = {"data": tables["cxr-lt"], "rows": [2], "out": out, "join": True}
    for count in (2, 3):
        monkeypatch.setattr("lingula.reproduction.jobs.TABLE_2", short_of(count))
        monkeypatch.setattr("lingula.reproduction.results.TABLE_2", short_of(count))
        made = lingula.reproduce("table2", **asked)
    assert isinstance(made, Path) and "t1r3, t1r4, t1r7" in made.read_text()
    kept = {path.name for path in (out / "ensembles").iterdir()}
    assert kept == {"t2r1-s0", "t2r1-s0.old-1", "t2r2-s0", "t2r2-s0.old-1"}


def short_of(count: int) -> tuple[Any, ...]:
    """Table 2 with fewer members."""
    members = ("paper/t1r3", "paper/t1r4", "paper/t1r7")[:count]
    return tuple(replace(row, members=members) for row in TABLE_2)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for sbatch, srun, scontrol and lingula, and the file that notes their words."""
    place, log = tmp_path / "bin", tmp_path / "log"
    place.mkdir()
    texts = {
        "sbatch": SBATCH,
        "srun": SRUN,
        "scontrol": 'echo "scontrol $*" >> "$LOG"',
        "lingula": LINGULA,
    }
    for name, text in texts.items():
        (place / name).write_text(f"#!/bin/bash\n{text}\n")
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(log))
    return log


# Runs an array at once: what a cluster does with it later.
SBATCH = r"""
for word in "$@"; do
  case "$word" in
  --array=0-*) last=${word#--array=0-} ;;
  --dependency=*) echo "sbatch $word" >> "$LOG" ;;
  esac
done
script=${*: -2:1} stage=${*: -1}
for index in $(seq 0 "$last"); do
  SLURM_JOB_ID="$stage.$index" SLURM_ARRAY_TASK_ID=$index bash "$script" "$stage" || failed=1
done >&2
echo "$stage-id;cluster"
exit ${failed:-0}
"""
SRUN = r"""
alone=""
while [ "${1:0:2}" = -- ]; do alone="$alone $1"; shift; done
echo "srun$alone" >> "$LOG"
"$@"
"""
LINGULA = r"""
echo "lingula $* [$CUDA_VISIBLE_DEVICES] $(date +%s.%N)" >> "$LOG"
sleep 0.2
echo "end [$CUDA_VISIBLE_DEVICES] $(date +%s.%N)" >> "$LOG"
for word in "$@"; do [ "$word" = "$FAILING" ] && exit "$STATUS"; done
exit 0
"""


def test_a_script_for_slurm(
    tmp_path: Path, cheap: None, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site.sh"
    site.write_text(
        "#!/bin/bash\n#SBATCH --partition=a100 --time=24:00:00\n#SBATCH --gres=gpu:4\n"
        "module() { export MODULE=$1; }\nmodule cuda\n"
    )
    file, out = tmp_path / "my jobs.sh", tmp_path / "o o"
    asked: dict[str, Any] = {"out": out, "scale": "tiny", "rows": [3], "slurm": file}
    assert lingula.reproduce("table1", template=site, **asked) == file
    text = file.read_text()
    head = text.partition("\n\n")[0]
    assert head.startswith("#!/bin/bash\n#SBATCH") and "--partition=a100 --time=24:00:00" in head
    assert "--requeue" in head and "--signal=TERM@120" in head and "--gres=gpu:4" in head
    assert "--gres=gpu:1" not in head and text.index("module cuda") > text.index("submit()")
    done = subprocess.run(["bash", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = [line.split()[:3] for line in programs.read_text().splitlines()]
    assert [line[:2] for line in words if line[0] == "lingula"] == [
        ["lingula", "data"],
        *[["lingula", "train"]] * 2,
        *[["lingula", "predict"]] * 2,
        ["lingula", "reproduce"],
    ]
    after = [line[1] for line in words if line[0] == "sbatch"]
    assert after == [f"--dependency=afterok:{stage}-id" for stage in ("draw", "train", "score")]
    alone = [line for line in words if line[0] == "srun" and line[1:]]
    assert len(alone) == 2 and alone[0][1] == "--ntasks=1"  # drawing and joining
    assert (out / "logs").is_dir() and "scontrol" not in programs.read_text()


def test_a_job_of_slurm_that_is_told_to_stop_is_queued_again(
    tmp_path: Path, cheap: None, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "jobs.sh"
    lingula.reproduce("table1", out=tmp_path / "o", scale="tiny", rows=[1], slurm=file)
    monkeypatch.setenv("FAILING", "train")
    for status, again in (("143", True), ("2", False)):
        programs.unlink(missing_ok=True)
        monkeypatch.setenv("STATUS", status)
        done = subprocess.run(["bash", str(file)], capture_output=True, text=True)
        noted = programs.read_text()
        assert ("scontrol requeue train.0" in noted) == again
        assert done.returncode != 0 and "lingula reproduce" not in noted


def test_scripts_never_take_the_place_of_others(tmp_path: Path, cheap: None) -> None:
    file, site = tmp_path / "jobs.sh", tmp_path / "site.sh"
    asked: dict[str, Any] = {"out": tmp_path / "o", "scale": "tiny", "rows": [1], "slurm": file}
    file.write_text("precious")
    assert "is not a script of this command" in refused("table1", **asked)
    file.unlink()
    lingula.reproduce("table1", **asked)
    before = file.read_text()
    lingula.reproduce("table1", **asked)
    lingula.reproduce("table1", **asked | {"rows": [2]})
    assert (tmp_path / "jobs.sh.old-1").read_text() == before != file.read_text()
    for text, told in (
        ("module load cuda\n", "no line that starts with #SBATCH"),
        ("#SBATCH --time=1\nsrun python train.py\n", "line 2, starts work itself"),
    ):
        site.write_text(text)
        assert told in refused("table1", template=site, **asked)


def test_a_job_on_each_gpu_of_a_machine(
    tmp_path: Path, cheap: None, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = lingula.reproduce("table1", out=tmp_path / "o o", scale="tiny", seeds=2, gpus=3)
    assert isinstance(lines, list)
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    busy: set[str] = set()
    most, kinds = 0, []
    for line in programs.read_text().splitlines():
        gpu = line[line.rindex("[") : line.rindex("]") + 1]
        if line.startswith("lingula"):
            assert gpu not in busy  # one job at a time on each
            busy.add(gpu)
            kinds.append(line.split()[1])
        else:
            busy.remove(gpu)
        most = max(most, len(busy))
    assert most == 3 and kinds == ["data", *["train"] * 16, *["predict"] * 4, "reproduce"]
    assert len(list((tmp_path / "o o" / "logs").glob("*.log"))) == 20
    programs.unlink()
    monkeypatch.setenv("FAILING", "paper/t1r4")
    monkeypatch.setenv("STATUS", "1")
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True)
    noted = programs.read_text()
    assert done.returncode != 0 and "t1r4-s0 failed: see its log" in done.stderr
    assert noted.count("lingula train") == 16 and "lingula reproduce" not in noted


def trained_on(table: Path) -> int:
    return sum(row["split"] == "train" for row in csv.DictReader(table.read_text().splitlines()))


def test_the_whole_bill(
    tables: dict[str, Path], tmp_path: Path, cheap: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the table is there: no weights, no text encoder."""
    monkeypatch.setattr("lingula.settings.recipes.DENSENET", "test_resnet.r160_in1k")
    monkeypatch.setattr("lingula.bench.speed.STEPS", 3)
    monkeypatch.setattr("lingula.bench.speed.SECONDS", 1.0)
    settings = [*SMALL, "model.decoder.layers=1", "model.decoder.width=32"]
    asked: dict[str, Any] = {"out": tmp_path / "o", "scale": "paper", "seeds": 2, "estimate": True}
    asked |= {
        "data": tables["cxr-lt"],
        "settings": settings,
        "outside": [tables["nih"], tables["chexpert"]],
    }
    lines = lingula.reproduce("table2", **asked)
    assert isinstance(lines, list) and not (tmp_path / "o").exists()
    text = "\n".join(lines)
    rows = {line.split()[0]: line.split() for line in lines if re.match(r"(t1r|exo)", line)}
    assert len(rows) == 16  # eight trainings of two seeds
    counts = [trained_on(tables[style]) for style in ("cxr-lt", "nih", "chexpert")]
    assert [int(rows[name][1]) for name in ("t1r9-s1", "exo-both-s1")] == [counts[0], sum(counts)]
    assert float(rows["exo-both-s0"][-1]) > float(rows["t1r9-s0"][-1]) > 0
    assert "16 trainings and 4 predictions" in text and "free in" in text
    assert re.search(r"Disk: [\d.]+ [kMG]B", text) and "hours of this machine" in text
    assert re.search(r"[\d.]+ [MG]B", rows["t1r4-s0"][4] + " " + rows["t1r4-s0"][5])
    without = lingula.reproduce("table2", **asked | {"outside": ()})
    assert "Without exo-both, which need tables of outside data." in without


def test_what_an_epoch_reads_is_said(
    tables: dict[str, Path],
    tmp_path: Path,
    cheap: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("lingula.reproduction.readiness.MEMORY_LIMIT", 0)
    with caplog.at_level("INFO", "lingula"):
        jobs("table1", out=tmp_path / "o", data=tables["cxr-lt"], scale="tiny", rows=[1])
    count = trained_on(tables["cxr-lt"])
    size = sum(path.stat().st_size for path in tables["cxr-lt"].parent.glob("images/*"))
    told = re.search(rf"reads and decodes ([\d.]+) kB of image files \({count}\)", caplog.text)
    assert told and float(told[1]) == pytest.approx(count / 120 * size / 1000, rel=0.1)
    assert "lingula data cache" in caplog.text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_reproduce_a_table_together(tmp_path: Path) -> None:
    """One draws and writes, both train; what they made is what one process finds finished."""
    out = tmp_path / "o"
    words = ["reproduce", "table1", "--scale", "tiny", "--rows", "3", "--out", str(out)]
    done = torchrun(2, *words)
    assert done.returncode == 0, done.stderr
    rows = (out / "table1.csv").read_text()
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("finished.json")}
    assert len(stamps) == 2
    again = torchrun(2, *words)
    assert again.returncode == 0, again.stderr
    lingula.reproduce("table1", scale="tiny", rows=[3], out=out, join=True)
    assert (out / "table1.csv").read_text() == rows
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
