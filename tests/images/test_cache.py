"""The image cache: the very pixels, kept through kills, never stale, and the same training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import lingula
from builders import write_tiny
from lingula.images.cache import CachedImages, CacheSettings, locate, open_cache
from lingula.images.cache_writing import Part, claim_cache, fill_cache
from lingula.images.reading import read_image
from lingula.loading.batches import Radiographs, concatenate, decode_all, load
from lingula.settings.config import Config, vary
from lingula.system import files
from lingula.system.errors import ImageError, InputError
from lingula.verbs.predict import refuse_films

NAMES = [f"images/{i:03}.png" for i in range(40)]


def located(cache: Path, root: Path, names: list[str] = NAMES) -> CachedImages:
    return locate(open_cache(cache), root, names, [root / name for name in names])


def images_of(cache: Path, root: Path, names: list[str] = NAMES) -> NDArray[np.uint8]:
    cached = located(cache, root, names)
    dataset = Radiographs([root / name for name in names], cached.settings.size, None, cached)
    return np.stack([dataset[i] for i in range(len(names))])


def read(root: Path, size: int, names: list[str] = NAMES) -> NDArray[np.uint8]:
    return np.stack([read_image(root / name, size) for name in names])


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """A folder of smooth pictures of several kinds and sizes: 8- and 16-bit, JPEG and PNG."""
    random = np.random.default_rng(0)
    (tmp_path / "films").mkdir()
    for i in range(6):
        small = Image.fromarray(random.integers(0, 255, (6, 5), dtype=np.uint8))
        grey = np.asarray(small.resize((150 + 10 * i, 200), Image.Resampling.BICUBIC))
        if i % 3 == 0:
            deep = Image.fromarray(grey.astype(np.uint16) * 257)
            deep.save(tmp_path / "films" / f"{i}.png")
        else:
            Image.fromarray(grey).save(tmp_path / "films" / f"{i}.{'jpg' if i % 3 == 1 else 'png'}")
    return tmp_path / "films"


def test_raw_is_the_very_pixels_and_jpeg_is_close(films: Path, tmp_path: Path) -> None:
    before = files_of(films)
    raw = lingula.data_cache(films, out=tmp_path / "raw", size=96)
    assert (raw.made, raw.kept, raw.failures) == (6, 0, {})
    names = sorted(path.name for path in films.iterdir())
    right = read(films, 96, names)
    assert right.std() > 20
    assert (images_of(tmp_path / "raw", films, names) == right).all()
    lossy = lingula.data_cache(films, out=tmp_path / "jpeg", size=96, codec="jpeg", quality=95)
    close = images_of(tmp_path / "jpeg", films, names)
    difference = np.abs(close.astype(int) - right)
    assert 0 < difference.max() <= 16 and difference.mean() < 1.5
    sizes = [sum(p.stat().st_size for p in c.folder.glob("*.pixels")) for c in (raw, lossy)]
    assert sizes[0] == 6 * 96 * 96 and sizes[1] < sizes[0] / 3
    # The raw file is plain uint8, so that anything can map it.
    (pixels,) = (tmp_path / "raw").glob("*.pixels")
    assert (np.memmap(pixels, np.uint8, "r", shape=(6, 96, 96)) == right).all()
    assert files_of(films) == before


def test_a_finished_cache_is_kept_and_other_settings_are_refused(
    tiny_table: Path, tmp_path: Path
) -> None:
    out = tmp_path / "cache"
    lingula.data_cache(tiny_table, out=out, size=32)
    before = files_of(out), next(out.glob("*.pixels")).stat().st_mtime_ns
    again = lingula.data_cache(tiny_table, out=out, size=32)
    assert (again.made, again.kept) == (0, 40)
    assert (files_of(out), next(out.glob("*.pixels")).stat().st_mtime_ns) == before
    with pytest.raises(InputError, match=r"(?s)size: 32 there, 48 now.*--overwrite"):
        lingula.data_cache(tiny_table, out=out, size=48)
    lingula.data_cache(tiny_table, out=out, size=48, overwrite=True)
    assert {p.name for p in (tmp_path / "cache.old-1").iterdir()} == {p.name for p in out.iterdir()}
    assert (images_of(out, tiny_table.parent) == read(tiny_table.parent, 48)).all()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is there already, with something else in it"):
        lingula.data_cache(tiny_table, out=tmp_path / "mine", size=32)
    assert files_of(tmp_path / "mine") == {"thesis.txt": b"mine"}


def test_a_kill_costs_only_the_file_being_written(tiny_table: Path, tmp_path: Path) -> None:
    out, settings = tmp_path / "cut", CacheSettings(32)
    script = (
        "import time\nfrom pathlib import Path\n"
        "from lingula.images.cache import CacheSettings\n"
        "from lingula.images.cache_writing import claim_cache, fill_cache\n"
        f"out = Path({str(out)!r})\n"
        "claim_cache(out, CacheSettings(32))\n"
        "def slow(done, total):\n    print(done, flush=True)\n    time.sleep(0.02)\n"
        f"names = {NAMES!r}\n"
        f"fill_cache(out, CacheSettings(32), Path({str(tiny_table.parent)!r}), names, workers=1,"
        " images_per_file=8, progress=slow)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 20:  # two files finished, the third begun
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    left = {path.name: path.stat().st_mtime_ns for path in out.glob("[0-9]*.pixels")}
    assert len(left) == 2 and list(out.glob(".001-of-001-00002.*"))
    with pytest.raises(InputError, match=r"24 of 40 images are not in the cache"):
        located(out, tiny_table.parent)
    done = fill_cache(out, settings, tiny_table.parent, NAMES, images_per_file=8)
    assert (done.made, done.kept, done.failures) == (24, 16, {})
    assert {n: (out / n).stat().st_mtime_ns for n in left} == left  # kept, not made again
    assert not list(out.glob(".001-of-001-00002.*"))
    whole = tmp_path / "whole"
    claim_cache(whole, settings)
    fill_cache(whole, settings, tiny_table.parent, NAMES, images_per_file=8)
    pixels = [{p.name: p.read_bytes() for p in f.glob("*.pixels")} for f in (out, whole)]
    assert pixels[0] == pixels[1] and len(pixels[0]) == 5
    assert (images_of(out, tiny_table.parent) == read(tiny_table.parent, 32)).all()


def test_a_changed_source_is_refused_then_made_again(
    tiny_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = tiny_table.parent, tmp_path / "cache"
    lingula.data_cache(tiny_table, out=out, size=32)
    touched = root / NAMES[1]
    os.utime(touched, ns=(1, 1))  # another time, the same content
    assert (images_of(out, root) == read(root, 32)).all()
    Image.fromarray(np.full((40, 40), 7, np.uint8)).save(root / NAMES[3])
    with pytest.raises(InputError, match=r"(?s)1 of 40 images have changed .*003.png.*data cache"):
        located(out, root)
    again = lingula.data_cache(tiny_table, out=out, size=32)
    assert (again.made, again.kept) == (1, 39)
    assert (images_of(out, root) == read(root, 32)).all()
    assert (images_of(out, root)[3] == 7).all()
    # The new time stands in the cache now, so that the content need not be compared again.
    monkeypatch.setattr(files, "sha256", lambda path: pytest.fail(f"{path} was read"))
    assert (images_of(out, root)[1] == read_image(touched, 32)).all()
    assert lingula.data_cache_verify(out) == {"images": 40, "failed": {}, "damaged": {}}
    third = files_of(out)
    assert lingula.data_cache(tiny_table, out=out, size=32).kept == 40 and files_of(out) == third


def test_same_size_and_another_content_is_stale(tmp_path: Path) -> None:
    root = tmp_path / "films"
    root.mkdir()
    Image.fromarray(np.full((40, 40), 7, np.uint8)).save(root / "a.bmp")
    lingula.data_cache(root, out=tmp_path / "cache", size=32)
    time = (root / "a.bmp").stat().st_mtime_ns
    Image.fromarray(np.full((40, 40), 8, np.uint8)).save(root / "a.bmp")
    os.utime(root / "a.bmp", ns=(time + 1, time + 1))
    with pytest.raises(InputError, match="have changed"):
        located(tmp_path / "cache", root, ["a.bmp"])


def test_a_cache_serves_without_its_sources(tiny_table: Path, tmp_path: Path) -> None:
    root, out = tiny_table.parent, tmp_path / "cache"
    right = read(root, 32)
    lingula.data_cache(tiny_table, out=out, size=32)
    (root / "images").rename(root / "elsewhere")
    assert (images_of(out, root) == right).all()


def test_two_tables_with_images_of_one_name_are_told_apart(tmp_path: Path) -> None:
    roots = []
    for i, level in enumerate((10, 200)):
        root = tmp_path / f"set{i}"
        root.mkdir()
        Image.fromarray(np.full((40, 40), level, np.uint8)).save(root / "a.png")
        lingula.data_cache(root, out=tmp_path / "cache", size=32)
        roots.append(root)
    parts = [
        Radiographs([root / "a.png"], 32, None, located(tmp_path / "cache", root, ["a.png"]))
        for root in roots
    ]
    both = concatenate(parts)
    assert [int(both[i].max()) for i in range(2)] == [10, 200]
    for root in roots:  # an archive may give all its files one time
        os.utime(root / "a.png", ns=(1, 1))
        lingula.data_cache(root, out=tmp_path / "cache", size=32)
    assert [images_of(tmp_path / "cache", r, ["a.png"]).max() for r in roots] == [10, 200]
    for root in roots:
        (root / "a.png").unlink()
    with pytest.raises(InputError, match="have changed"):  # which is meant is not known
        located(tmp_path / "cache", roots[0], ["a.png"])


def test_parts_made_apart_join(tiny_table: Path, tmp_path: Path) -> None:
    root, out = tiny_table.parent, tmp_path / "cache"
    for shard in ("3/3", "1/3"):
        lingula.data_cache(tiny_table, out=out, size=32, shard=shard)
    with pytest.raises(InputError, match=r"parts 2/3 are not finished"):
        lingula.data_cache_join(out)
    with pytest.raises(InputError, match=r"13 of 40 images are not in the cache"):
        located(out, root)
    done = lingula.data_cache(tiny_table, out=out, size=32, shard="2/3")
    assert (done.made, done.kept) == (13, 0)
    assert lingula.data_cache_join(out).kept == 40
    assert len(list(out.glob("*.pixels"))) == 3
    assert (images_of(out, root) == read(root, 32)).all()
    for wrong in ("0/3", "4/3", "3", "a/b"):
        with pytest.raises(InputError, match="such as 3/16"):
            lingula.data_cache(tiny_table, out=out, size=32, shard=wrong)
    with pytest.raises(InputError, match="set aside what the other parts wrote"):
        lingula.data_cache(tiny_table, out=out, size=32, shard="2/3", overwrite=True)


def test_what_cannot_be_read_is_named_and_never_black(tiny_table: Path, tmp_path: Path) -> None:
    root, out = tiny_table.parent, tmp_path / "cache"
    good = (root / NAMES[5]).read_bytes()
    (root / NAMES[5]).write_bytes(good[:-40])
    (root / NAMES[6]).unlink()
    done = lingula.data_cache(tiny_table, out=out, size=32)
    assert done.made == 38 and set(done.failures) == {NAMES[5], NAMES[6]}
    assert "truncated" in done.failures[NAMES[5]] and "no file" in done.failures[NAMES[6]]
    assert done.failed is not None and NAMES[6] in done.failed.read_text()
    batches = [np.arange(4, 8)]
    plain = Radiographs([root / name for name in NAMES], 32)
    cached = Radiographs([root / name for name in NAMES], 32, None, located(out, root))
    for workers in (0, 1):
        (one,), (two,) = (list(load(d, batches, workers=workers)) for d in (plain, cached))
        assert torch.equal(one.images, two.images) and one.failures == two.failures
        assert [i for i, _ in two.failures] == [5, 6]
    index = files_of(out)
    again = lingula.data_cache(tiny_table, out=out, size=32)
    assert set(again.failures) == set(done.failures) and again.made == 0
    assert {n: b for n, b in files_of(out).items() if "-0000" in n} == {
        n: b for n, b in index.items() if "-0000" in n
    }
    (root / NAMES[5]).write_bytes(good)
    with pytest.raises(InputError, match=r"005\.png"):  # mended, so what the cache says is stale
        located(out, root)
    (root / NAMES[6]).write_bytes(good)
    mended = lingula.data_cache(tiny_table, out=out, size=32)
    assert (mended.made, mended.kept, mended.failures) == (2, 38, {})
    assert not (out / "001-of-001.failed.csv").exists()
    assert (images_of(out, root) == read(root, 32)).all()


def test_a_film_that_gets_damaged_later_fails_by_name(tiny_table: Path, tmp_path: Path) -> None:
    root, out = tiny_table.parent, tmp_path / "cache"
    lingula.data_cache(tiny_table, out=out, size=32)
    good = (root / NAMES[4]).read_bytes()
    (root / NAMES[4]).write_bytes(good[:60] + bytes([good[60] ^ 255]) + good[61:])  # as many bytes
    for _ in range(2):
        assert list(lingula.data_cache(tiny_table, out=out, size=32).failures) == [NAMES[4]]
        assert len(list(out.glob("*-0000?.jsonl"))) == 2  # recorded once
        memory = decode_all(Radiographs([root / n for n in NAMES], 32, None, located(out, root)))
        assert list(memory.failures) == [4] and "checksum" in memory.failures[4]


def test_real_films_are_the_very_pixels(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "nih-mini"
    names = sorted(f"images/{path.name}" for path in (root / "images").iterdir())[:60]
    table = tmp_path / "labels.csv"
    table.write_text("image\n" + "\n".join(Path(name).name for name in names) + "\n")
    (tmp_path / "labels.json").write_text(json.dumps({"format": 1, "root": str(root / "images")}))
    done = lingula.data_cache(table, out=tmp_path / "cache", size=224)
    assert (done.made, done.failures) == (60, {})
    (tmp_path / "labels.json").unlink()
    again = lingula.data_cache(table, out=tmp_path / "cache", size=224, root=root / "images")
    assert (again.kept, again.failures) == (60, {})
    short = [Path(name).name for name in names]
    assert (images_of(tmp_path / "cache", root / "images", short) == read(root, 224, names)).all()


def test_a_name_that_leads_out_of_the_root_is_a_failure(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "out.png")
    (tmp_path / "root").mkdir()
    table = tmp_path / "root" / "labels.csv"
    table.write_text("image\n../out.png\n")
    done = lingula.data_cache(table, out=tmp_path / "cache", size=32)
    assert done.made == 0 and "not a path inside the data root" in done.failures["../out.png"]


def test_damage_is_found(tiny_table: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    lingula.data_cache(tiny_table, out=out, size=32)
    assert lingula.data_cache_verify(out) == {"images": 40, "failed": {}, "damaged": {}}
    (pixels,) = out.glob("*.pixels")
    whole = pixels.read_bytes()
    pixels.write_bytes(
        whole[: 32 * 32 * 7 + 5] + bytes([whole[32 * 32 * 7 + 5] ^ 1]) + whole[32 * 32 * 7 + 6 :]
    )
    assert list(lingula.data_cache_verify(out)["damaged"]) == [NAMES[7]]
    pixels.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"has 40959 bytes of 40960"):
        open_cache(out)
    pixels.write_bytes(whole)
    (index,) = out.glob("*-00000.jsonl")
    text = index.read_text()
    index.write_text(text.replace("images/007", "images/107"))
    with pytest.raises(InputError, match=r"is damaged \(wrong checksum\)"):
        open_cache(out)
    index.write_text(text)
    cached = located(out, tiny_table.parent)
    dataset = Radiographs([tiny_table.parent / n for n in NAMES], 32, None, cached)
    pixels.write_bytes(whole[: 32 * 32 * 20])  # under the reader's feet
    os.utime(pixels, ns=(cached.files[0][1],) * 2)
    memory = decode_all(dataset)
    assert sorted(memory.failures) == list(range(20, 40))
    assert "ends within the image" in memory.failures[20]


def test_a_damaged_jpeg_of_the_cache_is_an_error(films: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    lingula.data_cache(films, out=out, size=96, codec="jpeg")
    names = sorted(path.name for path in films.iterdir())
    cached = located(out, films, names)
    (pixels,) = out.glob("*.pixels")
    data = bytearray(pixels.read_bytes())
    start = int(cached.places["start"][2])
    data[start : start + 40] = bytes(40)
    pixels.write_bytes(bytes(data))
    memory = decode_all(
        Radiographs([films / n for n in names], 96, None, located(out, films, names))
    )
    assert list(memory.failures) == [2] and "--verify" in memory.failures[2]


WEIGHTS = Path("best") / "model.safetensors"


def test_training_and_prediction_are_the_same_with_and_without(
    tiny_config: Config, tiny_table: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    lingula.data_cache(tiny_table, out=cache, size=tiny_config.model.image_size)
    config = vary(tiny_config, optim__epochs=1)
    plain = lingula.train(config, out=tmp_path / "plain")
    args = {"data": tiny_table, "allow_phantom_model": True}
    lingula.predict(plain, out=tmp_path / "plain.csv", **args)  # type: ignore[arg-type]
    (tiny_table.parent / "images").rename(tiny_table.parent / "away")  # nothing else can be read
    run = lingula.train(vary(config, data__cache=str(cache)), out=tmp_path / "run")
    lingula.predict(run, out=tmp_path / "cached.csv", cache=cache, **args)  # type: ignore[arg-type]
    assert (tmp_path / "cached.csv").read_bytes() == (tmp_path / "plain.csv").read_bytes()
    for name in (WEIGHTS, Path("scores/dev.csv"), Path("scores/test.csv")):
        assert (run / name).read_bytes() == (plain / name).read_bytes()


@pytest.mark.slow
def test_training_with_workers_and_a_cache_is_the_same(
    tiny_config: Config, tiny_table: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    lingula.data_cache(tiny_table, out=cache, size=tiny_config.model.image_size)
    plain = lingula.train(tiny_config, out=tmp_path / "plain")
    config = vary(tiny_config, data__cache=str(cache), data__workers=2)
    run = lingula.train(config, out=tmp_path / "run")
    assert (run / WEIGHTS).read_bytes() == (plain / WEIGHTS).read_bytes()


def test_a_cache_that_does_not_fit_is_refused(
    tiny_config: Config, tiny_table: Path, tmp_path: Path
) -> None:
    size = tiny_config.model.image_size
    lingula.data_cache(tiny_table, out=tmp_path / "other", size=size + 8)
    lingula.data_cache(tiny_table, out=tmp_path / "bits", size=size, bits=12)
    lingula.data_cache(tiny_table, out=tmp_path / "part", size=size, shard="1/2")
    for name, message in (
        ("other", rf"made with size={size + 8}, but model.image_size is {size}"),
        ("bits", r"made with bits=12, but data.bits is None"),
        ("part", r"are not in the cache .*images/.*lingula data cache .*labels.csv --size"),
        ("absent", r"is not an image cache"),
    ):
        config = vary(tiny_config, data__cache=str(tmp_path / name))
        with pytest.raises(InputError, match=message):
            lingula.train(config, out=tmp_path / f"run-{name}")


def test_a_phantoms_model_refuses_cached_films_that_are_not_there(tmp_path: Path) -> None:
    lingula.data_phantom(tmp_path / "phantom", n=30, size=40)
    films = tmp_path / "films"
    films.mkdir()
    Image.fromarray(np.eye(40, dtype=np.uint8)).save(films / "film.png")
    names = [
        p.relative_to(tmp_path / "phantom").as_posix()
        for p in (tmp_path / "phantom").rglob("*.png")
    ]
    for folder in ("phantom", "films"):
        lingula.data_cache(tmp_path / folder, out=tmp_path / "cache", size=32)
    phantoms = located(tmp_path / "cache", tmp_path / "phantom", names)
    assert phantoms.places["phantom"].all() and len(phantoms) == 30
    refuse_films([tmp_path / "phantom" / name for name in names], phantoms)
    (films / "film.png").unlink()
    film = located(tmp_path / "cache", films, ["film.png"])
    with pytest.raises(InputError, match=r"film\.png"):
        refuse_films([films / "film.png"], film)


def run_cli(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lingula", *words], capture_output=True, text=True, timeout=60
    )


def test_the_command_line(tiny_table: Path, tmp_path: Path) -> None:
    (tiny_table.parent / NAMES[0]).write_bytes(b"")
    out = str(tmp_path / "cache")
    done = run_cli("data", "cache", str(tiny_table), "--size", "32", "--out", out)
    assert done.returncode == 3 and done.stdout.strip() == out
    assert "40 images to 32 px raw: about 41 kB" in done.stderr
    assert "1 images could not be read" in done.stderr
    right = run_cli("data", "cache", "--verify", out)
    assert right.returncode == 0 and "39 images, every checksum right; 1 failed" in right.stdout
    (pixels,) = Path(out).glob("*.pixels")
    pixels.write_bytes(b"\x01" + pixels.read_bytes()[1:])
    wrong = run_cli("data", "cache", "--verify", out)
    assert wrong.returncode == 2 and NAMES[1] in wrong.stderr and "Traceback" not in wrong.stderr
    nothing = run_cli("data", "cache", str(tiny_table))
    assert nothing.returncode == 2 and "--out" in nothing.stderr


def test_the_settings_are_plain_json(tiny_table: Path, tmp_path: Path) -> None:
    lingula.data_cache(tiny_table, out=tmp_path / "c", size=32, codec="jpeg", quality=80, bits=12)
    assert json.loads((tmp_path / "c" / "cache.json").read_text()) == {
        "size": 32, "codec": "jpeg", "quality": 80, "bits": 12, "reading": 1,
    }  # fmt: skip
    with pytest.raises(InputError, match=r"--codec jpeg --quality 80 --bits 12"):
        located(tmp_path / "c", tiny_table.parent, ["absent.png"])


def test_parts_share_the_images(tiny_table: Path, tmp_path: Path) -> None:
    settings = CacheSettings(32)
    claim_cache(tmp_path / "c", settings)
    done = [
        fill_cache(tmp_path / "c", settings, tiny_table.parent, NAMES, part=Part(n, 16)).made
        for n in range(1, 17)
    ]
    assert sum(done) == 40 and set(done) == {2, 3}


def test_the_bench_measures_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    threads = torch.get_num_threads()
    found = lingula.bench_data(size=64, rounds=1)
    assert torch.get_num_threads() == threads and not list(tmp_path.iterdir())
    assert found["ratio"] == pytest.approx(found["images_per_s"] / found["baseline"], rel=0.01)
    assert set(found["parts"]) == {"films", "raw", "jpeg", "raw_load", "jpeg_load", "warp"}
    parts = {name: part["images_per_s"] for name, part in found["parts"].items()}
    # Caches are a hundred times as fast as films here; whether a warp makes them slower, one round
    # beside other tests can't tell.
    assert 5 * parts["films"] < min(parts["raw"], parts["jpeg"])
    assert json.loads(json.dumps(found)) == found
    for wrong in ({"size": 8}, {"rounds": 0}):
        with pytest.raises(InputError, match="must be"):
            lingula.bench_data(**wrong)


@pytest.mark.usefixtures("no_page")
def test_a_cache_serves_tables_from_outside_too(
    tiny_config: Config, tiny_table: Path, tmp_path: Path
) -> None:
    """One cache of both tables, or one of each: the weights are those of the files, bit for bit."""
    size = tiny_config.model.image_size
    # The same names for other films, so that each must be found by what it is.
    other = write_tiny(tmp_path / "other", n=12, size=36)
    for table in (tiny_table, other):
        head, *rows = table.read_text().splitlines()
        lines = [f"{head},source", *(f"{row},{table.parent.name}" for row in rows)]
        table.write_text("\n".join(lines) + "\n")
    config = vary(tiny_config, optim__epochs=1, data__outside=[str(other)])
    plain = lingula.train(config, out=tmp_path / "plain")
    lingula.data_cache(tiny_table, out=tmp_path / "both", size=size)
    lingula.data_cache(tiny_table, out=tmp_path / "one", size=size)
    both, one, two = (str(tmp_path / name) for name in ("both", "one", "two"))
    for cache in (one, both):
        with pytest.raises(InputError, match=rf"data cache {other} --size {size} --out {cache}"):
            lingula.train(vary(config, data__cache=cache), out=tmp_path / f"not-{Path(cache).name}")
    lingula.data_cache(other, out=both, size=size)
    lingula.data_cache(other, out=two, size=size)
    for name, cache in (("both", both), ("apart", [one, two])):
        run = lingula.train(vary(config, data__cache=cache), out=tmp_path / f"run-{name}")
        assert (run / WEIGHTS).read_bytes() == (plain / WEIGHTS).read_bytes()
        assert (run / "scores/dev.csv").read_bytes() == (plain / "scores/dev.csv").read_bytes()


def test_images_of_two_caches_of_one_name_are_never_mixed_up(tmp_path: Path) -> None:
    roots = tmp_path / "a", tmp_path / "b"
    for seed, root in enumerate(roots):
        pixels = np.random.default_rng(seed).integers(0, 255, (40, 40), dtype=np.uint8)
        root.mkdir()
        Image.fromarray(pixels).save(root / "x.png")
        lingula.data_cache(root, out=tmp_path / f"cache-{root.name}", size=32)
    index = open_cache([tmp_path / "cache-a", tmp_path / "cache-b"])
    for root in roots:
        cached = locate(index, root, ["x.png"], [root / "x.png"])
        dataset = Radiographs([root / "x.png"], 32, None, cached)
        assert (dataset[0] == read_image(root / "x.png", 32)).all()
    for root in roots:
        (root / "x.png").unlink()
    with pytest.raises(InputError, match="1 of 1 images"):  # which is meant is not known now
        locate(index, roots[1], ["x.png"], [roots[1] / "x.png"])


def test_what_one_cache_could_not_read_another_may_hold(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_decoder(path: Path, size: int, *, bits: int | None) -> NDArray[np.uint8]:
        raise ImageError("unsupported", f"{path} needs a decoder.")

    names = sorted(path.name for path in films.iterdir())
    lingula.data_cache(films, out=tmp_path / "good", size=32)
    monkeypatch.setattr("lingula.images.cache_writing.read_image", without_decoder)
    lingula.data_cache(films, out=tmp_path / "bad", size=32)
    paths = [films / name for name in names]
    assert (locate(open_cache(tmp_path / "bad"), films, names, paths).places["file"] < 0).all()
    for order in (("good", "bad"), ("bad", "good")):
        index = open_cache([tmp_path / place for place in order])
        assert (locate(index, films, names, paths).places["file"] >= 0).all()


def test_caches_of_different_settings_are_refused(films: Path, tmp_path: Path) -> None:
    lingula.data_cache(films, out=tmp_path / "a", size=32)
    lingula.data_cache(films, out=tmp_path / "b", size=40)
    with pytest.raises(InputError, match=r"a and .*b are caches with different settings:\n.*size"):
        open_cache([tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize("codec", ["raw", "jpeg", None])
def test_batches_hold_every_readable_image_in_its_place(
    films: Path, tmp_path: Path, codec: str | None
) -> None:
    names = sorted(path.name for path in films.iterdir())
    (films / names[1]).write_bytes(b"no image")
    cached = None
    if codec is not None:
        lingula.data_cache(films, out=tmp_path / "cache", size=64, codec=codec)
        cached = located(tmp_path / "cache", films, names) if codec else None
    dataset = Radiographs([films / name for name in names], 64, None, cached)
    order = [np.array([5, 1, 0, 1, 3]), np.array([1]), np.array([2, 4])]
    loaded = list(load(dataset, order))
    assert [found.indices.tolist() for found in loaded] == [[5, 0, 3], [], [2, 4]]
    assert [[i for i, _ in found.failures] for found in loaded] == [[1, 1], [1], []]
    for found in loaded:
        assert found.images.shape == (len(found.indices), 1, 64, 64)
        for image, index in zip(found.images[:, 0], found.indices.tolist(), strict=True):
            assert (image.numpy() == dataset[index]).all()
