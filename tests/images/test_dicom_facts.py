"""DICOM facts: what comes out of a header, and that nobody's name does."""

from __future__ import annotations

import dataclasses
import logging
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

import lingula
from dicom_files import dcm, save
from lingula.images import files as image_files
from lingula.images.dicom.facts import (
    ODDITIES,
    find_oddities,
    pseudonym,
    read_dicom_facts,
    read_facts_if_dicom,
    read_or_make_key,
)
from lingula.images.reading import read_image
from lingula.settings.config import Config, vary
from lingula.system.errors import ImageError, InputError
from lingula.tables.checking import check, to_text
from lingula.tables.folder import scan

KEY = bytes(range(32))
FILM = np.arange(64, dtype=np.uint16).reshape(8, 8)

TEXT = ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI")
TEXT += ("UR", "UT")


def facts(folder: Path, **tags: Any) -> Any:
    return read_dicom_facts(save(dcm(FILM, 12, **tags), folder / "x.dcm"), KEY)


def test_every_fact(tmp_path: Path) -> None:
    found = read_dicom_facts(
        save(
            dcm(
                FILM,
                12,
                "MONOCHROME1",
                PatientID=" SECRET123 ",
                StudyInstanceUID="1.2.3",
                SeriesInstanceUID="1.2.4",
                SOPInstanceUID="1.2.5",
                AccessionNumber="A7",
                ViewPosition="pa",
                Laterality="L",
                Modality="DX",
                BodyPartExamined="CHEST",
                PresentationIntentType="FOR PRESENTATION",
                BurnedInAnnotation="NO",
                PatientAge="018M",
                PatientSex="F",
            ),
            tmp_path / "x.dcm",
        ),
        KEY,
        demographics=True,
    )
    assert dataclasses.asdict(found) == {
        "patient": pseudonym(KEY, "patient", "SECRET123"),
        "study": pseudonym(KEY, "study", "1.2.3"),
        "series": pseudonym(KEY, "series", "1.2.4"),
        "instance": pseudonym(KEY, "instance", "1.2.5"),
        "accession": pseudonym(KEY, "accession", "A7"),
        "view": "PA",
        "laterality": "L",
        "modality": "DX",
        "body_part": "CHEST",
        "intent": "FOR PRESENTATION",
        "sop_class": "Digital X-Ray Image Storage - For Presentation",
        "syntax": "Explicit VR Little Endian",
        "photometric": "MONOCHROME1",
        "burned_in": False,
        "rows": 8,
        "columns": 8,
        "frames": 1,
        "age": 1.5,
        "sex": "F",
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.view = "AP"  # type: ignore[misc]


def test_ids_and_the_person_only_when_asked_for(tmp_path: Path) -> None:
    tags = {"PatientID": "SECRET123", "PatientAge": "062Y", "PatientSex": "M"}
    path = save(dcm(FILM, 12, **tags), tmp_path / "x.dcm")
    plain = read_dicom_facts(path)
    assert (plain.patient, plain.study, plain.age, plain.sex) == ("", "", None, None)
    assert read_dicom_facts(path, keep_ids=True).patient == "SECRET123"
    assert read_dicom_facts(path, demographics=True).age == 62


# Case 42


@pytest.mark.parametrize(
    ("stated", "view"),
    [
        ("LL", "LL"),
        ("LATERAL", "LATERAL"),
        ("", "UNKNOWN"),
        ("PA LLD", "PA LLD"),
        ("SMITH", "OTHER"),
        (None, "UNKNOWN"),
    ],
)
def test_the_view_is_never_dropped(tmp_path: Path, stated: str | None, view: str) -> None:
    assert facts(tmp_path, **({} if stated is None else {"ViewPosition": stated})).view == view


@pytest.mark.parametrize(
    ("code", "view"), [("399348003", "AP"), ("R-10214", "PA"), ("399173006", "LL"), ("9", "OTHER")]
)
def test_the_view_by_its_code(tmp_path: Path, code: str, view: str) -> None:
    item = Dataset()
    item.CodeValue = code
    assert facts(tmp_path, ViewPosition="", ViewCodeSequence=Sequence([item])).view == view


@pytest.mark.parametrize(
    ("stated", "years"),
    [
        ("062Y", 62),
        ("62", 62),
        ("006M", 0.5),
        ("000D", 0),
        ("411Y", None),
        ("OLD", None),
        ("", None),
    ],
)
def test_ages(tmp_path: Path, stated: str, years: float | None) -> None:
    path = save(dcm(FILM, 12, PatientAge=stated), tmp_path / "x.dcm")
    assert read_dicom_facts(path, demographics=True).age == years


def test_pixels_are_not_read(tmp_path: Path) -> None:
    path = save(dcm(FILM, 12, PatientID="p"), tmp_path / "x.dcm")
    whole = read_dicom_facts(path, KEY)
    path.write_bytes(path.read_bytes()[:-100])  # cut inside the pixels
    assert read_dicom_facts(path, KEY) == whole


def test_what_is_no_dicom_is_named(tmp_path: Path) -> None:
    kinds = {}
    for name, data in {"empty": b"", "text": b"hello", "cut": bytes(128) + b"DICM"}.items():
        (tmp_path / name).write_bytes(data)
    for name in ("empty", "text", "cut", "absent"):
        with pytest.raises(ImageError, match=name) as caught:
            read_dicom_facts(tmp_path / name, KEY)
        kinds[name] = caught.value.kind
    assert kinds == {
        "empty": "empty",
        "text": "not an image",
        "cut": "damaged",
        "absent": "missing",
    }


# Keyed hashes


def test_pseudonyms_are_hmac_sha256() -> None:
    # By `printf 'patient\0SECRET123' | openssl dgst -sha256 -mac HMAC -macopt hexkey:0001...1f`.
    assert pseudonym(KEY, "patient", "SECRET123") == "01ec876efee9c741"
    assert pseudonym(KEY, "study", "SECRET123") != pseudonym(KEY, "patient", "SECRET123")
    assert pseudonym(bytes(32), "patient", "SECRET123") != pseudonym(KEY, "patient", "SECRET123")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=20), unique=True, max_size=10))
def test_distinct_values_have_distinct_pseudonyms(values: list[str]) -> None:
    found = {pseudonym(KEY, "patient", value) for value in values}
    assert len(found) == len(values)
    assert all(len(one) == 16 and int(one, 16) >= 0 for one in found)


def test_the_key_is_made_once_and_for_its_owner_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys" / "dicom.key"
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: read_or_make_key(path), range(16)))
    assert len(keys) == 1
    assert len(keys.pop()) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]
    assert read_or_make_key(path) != read_or_make_key(tmp_path / "other.key")
    assert not caplog.records
    path.chmod(0o644)
    read_or_make_key(path)
    assert "chmod 600" in caplog.text


def test_a_file_that_is_no_key_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("diary")
    with pytest.raises(InputError, match="has no key"):
        read_or_make_key(path)
    assert path.read_text() == "diary"
    with pytest.raises(InputError, match="can't be read or made"):
        read_or_make_key(path / "x")


# Case 144


PLACE = "PLACEH^OLDER"  # as long as the names


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A film with PLACE in every text element that the standard has, one in a sequence too."""
    dataset = dcm(FILM, 12)
    for tag, (vr, _, _, retired, _) in DicomDictionary.items():
        group = tag >> 16
        keep = group in (0x00, 0x02, 0x28) or group > 0x50 or retired
        if vr in TEXT and not keep and tag not in (0x00080005, 0x00080016):
            dataset[tag] = element(tag, vr)
    for numeric in ("WindowCenter", "RescaleSlope", "VOILUTFunction", "BurnedInAnnotation"):
        tag = pydicom.tag.Tag(numeric)
        dataset[tag] = element(tag, pydicom.datadict.dictionary_VR(tag))
    item = Dataset()
    item.PatientName, item.CodeValue, item.CodeMeaning = PLACE, PLACE, PLACE
    dataset.ViewCodeSequence = dataset.OtherPatientIDsSequence = Sequence([item])
    data = save(dataset, tmp_path_factory.mktemp("t") / "film.dcm").read_bytes()
    assert data.count(PLACE.encode()) > 500
    return data


def element(tag: int, vr: str) -> RawDataElement:
    return RawDataElement(pydicom.tag.Tag(tag), vr, len(PLACE), PLACE.encode(), 0, False, True)


@settings(max_examples=20, deadline=None)
@given(st.from_regex(r"[A-Z]{6}\^[A-Z]{5}", fullmatch=True), st.integers(0, 30_000))
def test_a_name_comes_out_nowhere(
    tmp_path_factory: pytest.TempPathFactory, template: bytes, name: str, cut: int
) -> None:
    """In facts, messages, logs and warnings, of sound and of damaged files alike."""
    image_files.warned.clear()
    folder = tmp_path_factory.mktemp("d")
    data = template.replace(PLACE.encode(), name.encode())
    (folder / "film.dcm").write_bytes(data)
    (folder / "cut.dcm").write_bytes(data[: max(len(data) - cut, 200)])
    (folder / "wild.dcm").write_bytes(data.replace(b"MONOCHROME2", name.encode()[:11]))
    (folder / "class.dcm").write_bytes(
        data.replace(b"1.2.840.10008.5.1.4.1.1.1.1", name.encode().ljust(27, b"\0"))
    )
    (folder / "syntax.dcm").write_bytes(
        data.replace(b"1.2.840.10008.1.2.1\0", name.encode().ljust(20, b"\0"))
    )
    (folder / "frames.dcm").write_bytes(data.replace(b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00LO"))
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for file in sorted(folder.iterdir()):
                for act in (read_image, read_dicom_facts, _with_person):
                    try:
                        said.append(repr(act(file)))
                    except ImageError as error:
                        said += traceback.format_exception(error)
            said.append(repr(scan(folder)))
        said += [str(warning.message) for warning in seen]
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
    everything = "\n".join(said)
    for part in (name, *name.split("^")):
        assert part not in everything
    assert len(said) > 3 * 6


def _with_person(path: Path) -> Any:
    return read_dicom_facts(path, KEY, demographics=True)


def test_real_headers(real_data: Path) -> None:
    found = {
        path.name: read_dicom_facts(path, KEY, demographics=True)
        for path in sorted((real_data / "dicom").glob("*.dcm"))
    }
    assert len(found) == 4
    shown = repr(found)
    for secret in ("CompressedSamples", "9RG1", "11RG3", "19400305", "16d7f894", "FUJI95706"):
        assert secret not in shown
    leg, fake, chest, film = found.values()
    assert (leg.body_part, leg.view, leg.laterality) == ("EXTREMITY", "AP", "R")
    assert (chest.body_part, chest.view, chest.modality) == ("CHEST", "PA", "CR")
    assert (chest.photometric, chest.rows, chest.columns) == ("MONOCHROME1", 1955, 1841)
    assert film == dataclasses.replace(fake, photometric="MONOCHROME2")
    assert (film.age, film.sex, leg.age) == (62, "M", None)


def test_a_run_on_dicom_holds_no_patient(
    tiny_config: Config,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Case 144: trained, checked, predicted and failed; then every byte of every output."""
    table = Path(tiny_config.data.table)
    secrets = {
        "PatientName": "ZZTEST^SECRET",
        "PatientID": "SECRET123",
        "PatientBirthDate": "19400305",
        "StudyDescription": "SECRET123 film",
    }
    for path in (table.parent / "images").iterdir():
        save(dcm(read_image(path), 8, BurnedInAnnotation="YES", **secrets), path)
    sound = {}
    for name, end in (("001.png", -50), ("002.png", 450)):  # in the pixels, in the header
        path = table.parent / "images" / name
        sound[path] = path.read_bytes()
        path.write_bytes(sound[path][:end])
    caplog.clear()
    image_files.warned.clear()
    with caplog.at_level(logging.DEBUG):
        report = lingula.data_check(table)
        with pytest.raises(InputError, match="can't be read") as caught:
            lingula.train(tiny_config, out=tmp_path / "out" / "none")
        damaged = {path: path.read_bytes() for path in sound}
        for path, data in sound.items():
            path.write_bytes(data)
        run = lingula.train(vary(tiny_config, optim__epochs=1), out=tmp_path / "out" / "run")
        for path, data in damaged.items():
            path.write_bytes(data)
        done = lingula.predict(run, data=table.parent / "images", out=tmp_path / "out" / "s.csv")
    assert set(done.failures) == {"001.png", "002.png"}
    assert done.images == 40
    said = (
        repr(report) + repr(done) + str(caught.value) + caplog.text + "".join(capsys.readouterr())
    )
    assert "burned into its pixels" in caplog.text
    files = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) > 8
    for secret in ("ZZTEST", "SECRET", "19400305"):
        assert secret not in said
        assert not any(secret.encode() in data for data in files)


# What headers say against a frontal chest radiograph: counted and named, never refused

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


def save_frontal(path: Path, seed: int = 0, **tags: str | int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 4096, (20, 20), np.uint16)
    return save(dcm(pixels, 12, **{**FRONTAL, "PatientName": "ZZTEST^SECRET", **tags}), path)


@pytest.mark.parametrize(("tags", "expected"), CASES)
def test_what_a_header_says_against_a_film(
    tags: dict[str, str | int], expected: set[str], tmp_path: Path
) -> None:
    facts = read_dicom_facts(save_frontal(tmp_path / "x.dcm", **tags))
    assert set(find_oddities(facts)) == expected <= set(ODDITIES)


def test_check_counts_and_names_them_and_the_table_stays_fit(tmp_path: Path) -> None:
    rows = []
    for i, (tags, _) in enumerate(CASES):
        save_frontal(tmp_path / f"{i}.dcm", i, **tags)
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
    lateral, front = (
        save_frontal(tmp_path / "l.dcm", ViewPosition="LL"),
        save_frontal(tmp_path / "f.dcm"),
    )
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
