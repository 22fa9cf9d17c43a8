"""Text encoders and files of embeddings: whole, safe, one embedding a class, and never stale."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from builders import TINY_CLASSES
from lingula.model.text import embed, orthogonal
from lingula.model.text_encoder import phrase, save_tiny
from lingula.system.errors import InputError

NAMES = ("Edema", "Mass", "Fracture")
KINDS = ("bert", "t5")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for kind in KINDS:
        save_tiny(folder / kind, kind, NAMES)  # type: ignore[arg-type]
    return folder


def copied(encoders: Path, kind: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(encoders / kind, tmp_path / kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_without_a_tokenizer_is_refused(encoders: Path, kind: str, tmp_path: Path) -> None:
    """Case 105: the library makes up a tokenizer to which every word is unknown."""
    folder = copied(encoders, kind, tmp_path)
    for path in folder.glob("*token*"):
        path.unlink()
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    for names in (NAMES, NAMES[:1]):
        with pytest.raises(InputError, match="knows no word of Edema") as refused:
            embed(names, str(folder), cache=tmp_path / "c")
        assert all(name in str(refused.value) for name in names)
        assert str(folder) in str(refused.value)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_words_outside_the_vocabulary_are_named(encoders: Path, kind: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no word of Hernia, Nodule:"):
        embed(("Edema", "Hernia", "Nodule"), str(encoders / kind))
    # Half of the words known: two names of which the same half is known are one.
    with pytest.raises(InputError, match=r"same embedding to Big Mass, Tiny Mass:"):
        embed(("Edema", "Big Mass", "Tiny Mass"), str(encoders / kind))
    assert len(embed(("Edema", "Big Mass"), str(encoders / kind)).values) == 2


@pytest.mark.parametrize(
    ("vectors", "named"),
    [
        ({"Edema": torch.ones(4), "Mass": torch.ones(4), "Fracture": torch.zeros(4)}, "Edema, M"),
        ({"Edema": torch.zeros(4), "Mass": torch.ones(4), "Fracture": torch.zeros(4)}, "Edema, F"),
        (dict.fromkeys(NAMES, torch.full((4,), 0.1)), "Edema, Mass, Fracture"),
        (
            {
                "Edema": torch.ones(4),
                "Mass": torch.zeros(4),
                "Fracture": torch.full((4,), 1 + 1e-7),
            },
            "Edema, F",
        ),
    ],
)
def test_classes_that_share_a_vector_of_a_file_are_named(
    tmp_path: Path, vectors: dict[str, torch.Tensor], named: str
) -> None:
    place = tmp_path / "e.safetensors"
    save_file({name: vector.clone() for name, vector in vectors.items()}, place)
    with pytest.raises(InputError, match=f"same embedding to {named}"):
        embed(NAMES, str(place))
    assert embed(("Mass",), str(place)).values.shape == (1, 4)


def test_a_file_that_is_damaged_or_ambiguous_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "e.safetensors"
    bad = torch.tensor([1.0, float("nan")])
    save_file({"Edema": torch.ones(2), "Mass": bad}, place)
    with pytest.raises(InputError, match=r"not finite are Mass\."):
        embed(("Edema", "Mass"), str(place))
    whole = place.read_bytes()
    for cut in (b"", whole[:5], whole[:-3], b"\xff" * 40):
        place.write_bytes(cut)
        with pytest.raises(InputError, match=r"e\.safetensors can't be read as class embeddings"):
            embed(("Edema",), str(place))
    save_file({"Edema": torch.ones(2), "oedema": torch.zeros(2)}, place)
    with pytest.raises(InputError, match="two embeddings for 'Edema'"):
        embed(("Edema",), str(place))


def _add_words(folder: Path) -> None:
    """Two words change places in the vocabulary: the same names are other tokens."""
    path = folder / "tokenizer.json"
    text = path.read_text().replace('"edema"', '"x"').replace('"mass"', '"edema"')
    path.write_text(text.replace('"x"', '"mass"'))


CHANGES: dict[str, Callable[[Path], object]] = {
    "vocab.txt": lambda folder: (folder / "vocab.txt").write_text("[UNK]\nedema\n"),
    "spiece.model": lambda folder: (folder / "spiece.model").write_bytes(b"pieces"),
    "merges.txt": lambda folder: (folder / "merges.txt").write_text("e d\n"),
    "1_Pooling/config.json": lambda folder: (
        (folder / "1_Pooling").mkdir(),
        (folder / "1_Pooling" / "config.json").write_text("{}"),
    ),
    "renamed": lambda folder: (folder / "tokenizer_config.json").rename(folder / "t.json"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_cache_of_embeddings_knows_every_file(
    encoders: Path, change: str, tmp_path: Path
) -> None:
    """Case 106: whatever the encoder reads may change what it gives."""
    folder = copied(encoders, "bert", tmp_path)
    cache = tmp_path / "c"
    first = embed(NAMES, str(folder), cache=cache)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "lock").touch()  # the hub's own, which is no part of the encoder
    assert torch.equal(embed(NAMES, str(folder), cache=cache).values, first.values)
    assert len(list(cache.iterdir())) == 1
    CHANGES[change](folder)
    again = embed(NAMES, str(folder), cache=cache)
    assert len(list(cache.iterdir())) == 2 and again.origin != first.origin
    assert torch.equal(again.values, embed(NAMES, str(folder)).values)
    if change == "1_Pooling/config.json":
        assert ", mean," in again.origin and not torch.equal(again.values, first.values)


def test_a_changed_vocabulary_changes_the_embeddings(encoders: Path, tmp_path: Path) -> None:
    folder = copied(encoders, "bert", tmp_path)
    first = embed(NAMES, str(folder), cache=tmp_path / "c").values
    _add_words(folder)
    again = embed(NAMES, str(folder), cache=tmp_path / "c").values
    torch.testing.assert_close(again, first[[1, 0, 2]], atol=1e-6, rtol=0)


def test_a_damaged_cache_is_made_anew(encoders: Path, tmp_path: Path) -> None:
    first = embed(NAMES, str(encoders / "bert"), cache=tmp_path)
    (kept,) = tmp_path.glob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:-7])
    again = embed(NAMES, str(encoders / "bert"), cache=tmp_path)
    assert torch.equal(again.values, first.values)
    assert torch.equal(load_file(kept)["values"], first.values)


def _cut(name: str, share: float) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return damage


def _other_tensors(folder: Path) -> None:
    save_file({"foo": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})


def _other_sizes(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace("32", "64"))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "cut weights": _cut("model.safetensors", 0.7),
    "cut header": _cut("model.safetensors", 0.001),
    "other weights": _other_tensors,
    "other sizes": _other_sizes,
    "cut config": _cut("config.json", 0.5),
    "config of a list": lambda folder: (folder / "config.json").write_text("[]"),
    "cut tokenizer": _cut("tokenizer.json", 0.5),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_is_not_whole_is_refused(
    encoders: Path, kind: str, damage: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copied(encoders, kind, tmp_path)
    DAMAGE[damage](folder)
    capfd.readouterr()
    with pytest.raises(InputError, match=r"[Dd]ownload (it|the folder) again") as refused:
        embed(NAMES, str(folder), cache=tmp_path / "c")
    assert str(folder) in str(refused.value) and "(model.text)" in str(refused.value)
    assert len(str(refused.value)) < 700 and not (tmp_path / "c").exists()
    assert "".join(capfd.readouterr()) == ""  # one message, and no library's table beside it


def test_a_pooler_without_weights_is_none(encoders: Path, tmp_path: Path) -> None:
    """Many published encoders have none; the library would fill it with random numbers."""
    folder = copied(encoders, "bert", tmp_path)
    weights = folder / "model.safetensors"
    kept = {name: t for name, t in load_file(weights).items() if not name.startswith("pooler")}
    save_file(kept, weights, metadata={"format": "pt"})
    first, again = (embed(NAMES, str(folder)) for _ in range(2))
    assert ", mean," in first.origin and torch.equal(first.values, again.values)
    with pytest.raises(InputError, match=r"has no pooler; use model\.text_pooling=cls or mean"):
        embed(NAMES, str(folder), pooling="pooler")


def test_orthogonal_rows_are_orthogonal_and_belong_to_names() -> None:
    rows = orthogonal(TINY_CLASSES, 64)
    torch.testing.assert_close(rows @ rows.T / 64, torch.eye(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(orthogonal(TINY_CLASSES[::-1], 64), rows.flip(0))
    assert phrase("Pleural_Thickening") == phrase("pleural thickening ") == "pleural thickening"


def test_embeddings_from_a_file(tmp_path: Path) -> None:
    save_file({"edema": torch.ones(4), "Mass": torch.zeros(4)}, tmp_path / "e.safetensors")
    found = embed(("Mass", "Edema"), str(tmp_path / "e.safetensors"))
    assert found.values.tolist() == [[0] * 4, [1] * 4]
    with pytest.raises(InputError, match="no embedding for Hernia"):
        embed(("Hernia",), str(tmp_path / "e.safetensors"))
    with pytest.raises(InputError, match="text=orthogonal"):
        embed(("Hernia",), "nobody/no-such-model")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "pooling"), [("bert", "pooler"), ("bert", "cls"), ("t5", "mean")])
def test_text_encoders_from_a_folder(tmp_path: Path, kind: str, pooling: str) -> None:
    folder = save_tiny(tmp_path / kind, kind, ("Mass", "Pleural Thickening"))  # type: ignore[arg-type]
    found = embed(
        ("Mass", "Pleural_Thickening"), str(folder), pooling=pooling, cache=tmp_path / "c"
    )
    swapped = embed(("Pleural Thickening", "Mass"), str(folder), pooling=pooling)
    torch.testing.assert_close(found.values, swapped.values.flip(0), atol=1e-6, rtol=0)
    # The masked mean must not see padding: alone, the shorter name has none.
    alone = embed(("Mass",), str(folder), pooling=pooling)
    torch.testing.assert_close(found.values[:1], alone.values, atol=1e-6, rtol=0)
    cached = embed(
        ("Mass", "Pleural_Thickening"), str(folder), pooling=pooling, cache=tmp_path / "c"
    )
    assert torch.equal(cached.values, found.values) and len(list((tmp_path / "c").iterdir())) == 1
    auto = embed(("Mass",), str(folder))
    assert (", pooler," in auto.origin) == (kind == "bert")
