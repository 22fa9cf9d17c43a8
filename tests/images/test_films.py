"""Images that by their headers are not frontal chest radiographs are counted and named, never refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dicom_files import dcm, save
from lingula.images.dicom.facts import (
    ODDITIES,
    find_oddities,
    read_dicom_facts,
    read_facts_if_dicom,
)
from lingula.system.errors import ImageError
from lingula.tables.checking import check, to_text

FRONTAL = {
    "Modality": "DX",
    "BodyPartExamined": "CHEST",
    "ViewPosition": "PA",
    "PresentationIntentType": "FOR PRESENTATION",
    "BurnedInAnnotation": "NO",
}
# Cases 42 and 144, and what else a header may say against a frontal chest film.
CASES: list[tuple[dict[str, str | int], set[str]]] = [
    ({}, set()),
    ({"ViewPosition": "AP"}, set()),
    ({"Modality": "CR", "BodyPartExamined": "CHEST PORTABLE"}, set()),
    ({"BodyPartExamined": "", "PresentationIntentType": "", "BurnedInAnnotation": ""}, set()),
    ({"ViewPosition": "LL"}, {"images of another view"}),
    ({"ViewPosition": "LATERAL"}, {"images of another view"}),
    ({"ViewPosition": "PA LLD"}, {"images of another view"}),
    ({"ViewPosition": ""}, {"images of an unknown view"}),
    ({"ViewPosition": "SMITH"}, {"images of an unknown view"}),
    ({"BodyPartExamined": "KNEE"}, {"images of another body part"}),
    ({"BodyPartExamined": "SMITH"}, {"images of another body part"}),
    ({"Modality": "CT"}, {"images of another modality"}),
    ({"PresentationIntentType": "FOR PROCESSING"}, {"images for processing"}),
    ({"BurnedInAnnotation": "YES"}, {"images with burned-in text"}),
    (
        {"BurnedInAnnotation": "yes", "ViewPosition": "LL", "BodyPartExamined": "HAND"},
        {"images with burned-in text", "images of another view", "images of another body part"},
    ),
]


def dicom(path: Path, seed: int = 0, **tags: str | int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 4096, (20, 20), np.uint16)
    return save(dcm(pixels, 12, **{**FRONTAL, "PatientName": "ZZTEST^SECRET", **tags}), path)


@pytest.mark.parametrize(("tags", "expected"), CASES)
def test_what_a_header_says_against_a_film(
    tags: dict[str, str | int], expected: set[str], tmp_path: Path
) -> None:
    facts = read_dicom_facts(dicom(tmp_path / "x.dcm", **tags))
    assert set(find_oddities(facts)) == expected <= set(ODDITIES)


def test_check_counts_and_names_them_and_the_table_stays_fit(tmp_path: Path) -> None:
    rows = []
    for i, (tags, _) in enumerate(CASES):
        dicom(tmp_path / f"{i}.dcm", i, **tags)
        rows.append(f"{i}.dcm,p{i},{i % 2}")
    Image.fromarray(np.eye(20, dtype=np.uint8) * 200).save(tmp_path / "film.png")
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["image,patient,Edema", *rows, "film.png,q,1"]) + "\n")
    report = check(table)
    assert report.fit
    for what in ODDITIES:
        expected = {f"{i}.dcm" for i, (_, found) in enumerate(CASES) if what in found}
        warned = [fault for fault in report.warnings if fault.what == what]
        assert [fault.count for fault in warned] == [len(expected)] * bool(expected)
        assert set(report.odd.get(what, ())) == expected
    text = to_text(report)
    assert "note: 4 images of another view: " in text and "4.dcm" in text
    assert "SMITH" not in text and "SECRET" not in text


def test_only_headers_are_read(tmp_path: Path) -> None:
    lateral, front = dicom(tmp_path / "l.dcm", ViewPosition="LL"), dicom(tmp_path / "f.dcm")
    for path, expected in ((lateral, ("images of another view",)), (front, ())):
        path.write_bytes(path.read_bytes()[:-400])  # without most of their pixels
        facts = read_facts_if_dicom(path)
        assert facts is not None and find_oddities(facts) == expected
    Image.fromarray(np.eye(20, dtype=np.uint8)).save(tmp_path / "film.png")
    assert read_facts_if_dicom(tmp_path / "film.png") is None
    (tmp_path / "empty.dcm").write_bytes(b"")
    for name, kind in (("empty.dcm", "empty"), ("none.dcm", "missing")):
        with pytest.raises(ImageError) as caught:
            read_facts_if_dicom(tmp_path / name)
        assert caught.value.kind == kind


def test_an_image_of_several_frames_is_named(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 255, (2, 20, 20), np.uint8)
    path = save(dcm(x, 8, NumberOfFrames=2, **FRONTAL), tmp_path / "x.dcm")
    assert find_oddities(read_dicom_facts(path)) == ("images of several frames",)
