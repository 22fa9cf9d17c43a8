"""`lingula data cxr-lt`, `nih`, ... and `join`, `split`, `filter`: making tables."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import typer

import lingula
from lingula.cli.options import TABLE, IgnoreColumns, Json, Overwrite, dumped

app = typer.Typer()

Root = Annotated[Path, typer.Argument(help="Folder of the images.")]
OutTable = Annotated[Path, typer.Option("--out", help="Table to write: .csv or .parquet.")]
LabelFiles = Annotated[
    list[Path] | None,
    typer.Option("--labels", help="Label file, or their folder; repeatable. Default: ROOT."),
]
Classes = Annotated[
    str | None,
    typer.Option("--classes", help="Label space, e.g. cxr-lt-2023, or names with commas between."),
]
Map = Annotated[
    Path | None, typer.Option("--map", help="YAML: terms and the classes that they stand for.")
]
OneTable = Annotated[Path, typer.Argument(help=TABLE)]
Images = Annotated[bool, typer.Option(help="Look whether the images are there.")]
Drop = Annotated[bool, typer.Option("--drop-missing", help="Leave out rows without their image.")]
Soft = Annotated[bool, typer.Option("--soft", help="Label cells may be probabilities.")]


class Labeler(enum.StrEnum):
    """Whose labels of MIMIC-CXR-JPG."""

    chexpert = "chexpert"
    negbio = "negbio"


class Readers(enum.StrEnum):
    """How several readers become one."""

    any = "any"
    majority = "majority"
    all = "all"


def asked(classes: str | None) -> Any:
    """A name of a label space, or a list of classes; `["a, b"]` has one with a comma in it."""
    if classes is not None and classes.strip().startswith("["):
        from lingula.settings.values import texts

        return texts(classes.strip())
    if classes is None or "," not in classes:
        return classes
    return [name.strip() for name in classes.split(",") if name.strip()]


def _tell(found: Any, as_json: bool) -> None:
    from lingula.tables.making import made_json, made_text

    typer.echo(dumped(made_json(found)) if as_json else made_text(found))


def _make(verb: Any, root: Path, labels: list[Path] | None, as_json: bool, **options: Any) -> None:
    ignored = options.pop("ignore_columns", None)
    if ignored is not None:
        options["ignore_columns"] = ignored
    options["classes"] = asked(options["classes"])
    _tell(verb(root, labels=labels or (), **options), as_json)


@app.command("cxr-lt")
def _data_cxr_lt(
    root: Root,
    out: OutTable,
    labels: LabelFiles = None,
    classes: Classes = None,
    mapping: Map = None,
    ignore_columns: IgnoreColumns = None,
    images: Images = True,
    drop_missing: Drop = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """CXR-LT 2023 or 2024: ROOT is MIMIC-CXR-JPG, --labels the challenge's folder."""
    _make(
        lingula.data_cxr_lt,
        root,
        labels,
        as_json,
        out=out,
        classes=classes,
        mapping=mapping,
        ignore_columns=ignore_columns,
        images=images,
        drop_missing=drop_missing,
        overwrite=overwrite,
    )


@app.command("mimic")
def _data_mimic(
    root: Root,
    out: OutTable,
    labels: LabelFiles = None,
    labeler: Annotated[
        Labeler | None, typer.Option("--labeler", help="Whose labels; default: chexpert.")
    ] = None,
    classes: Classes = None,
    mapping: Map = None,
    ignore_columns: IgnoreColumns = None,
    images: Images = True,
    drop_missing: Drop = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """MIMIC-CXR-JPG with its own labels and split."""
    _make(
        lingula.data_mimic,
        root,
        labels,
        as_json,
        out=out,
        labeler=None if labeler is None else labeler.value,
        classes=classes,
        mapping=mapping,
        ignore_columns=ignore_columns,
        images=images,
        drop_missing=drop_missing,
        overwrite=overwrite,
    )


@app.command("nih")
def _data_nih(
    root: Root,
    out: OutTable,
    labels: LabelFiles = None,
    classes: Classes = None,
    mapping: Map = None,
    ignore_columns: IgnoreColumns = None,
    images: Images = True,
    drop_missing: Drop = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """NIH ChestX-ray14, with NIH-CXR-LT's further labels where given."""
    _make(
        lingula.data_nih,
        root,
        labels,
        as_json,
        out=out,
        classes=classes,
        mapping=mapping,
        ignore_columns=ignore_columns,
        images=images,
        drop_missing=drop_missing,
        overwrite=overwrite,
    )


@app.command("chexpert")
def _data_chexpert(
    root: Root,
    out: OutTable,
    labels: LabelFiles = None,
    classes: Classes = None,
    mapping: Map = None,
    ignore_columns: IgnoreColumns = None,
    images: Images = True,
    drop_missing: Drop = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """CheXpert (small or full) and CheXpert Plus."""
    _make(
        lingula.data_chexpert,
        root,
        labels,
        as_json,
        out=out,
        classes=classes,
        mapping=mapping,
        ignore_columns=ignore_columns,
        images=images,
        drop_missing=drop_missing,
        overwrite=overwrite,
    )


@app.command("padchest")
def _data_padchest(
    root: Root,
    out: OutTable,
    labels: LabelFiles = None,
    classes: Classes = None,
    mapping: Map = None,
    images: Images = True,
    drop_missing: Drop = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """PadChest: a class for every term, or those of --classes."""
    _make(
        lingula.data_padchest,
        root,
        labels,
        as_json,
        out=out,
        classes=classes,
        mapping=mapping,
        images=images,
        drop_missing=drop_missing,
        overwrite=overwrite,
    )


@app.command("vindr")
def _data_vindr(
    root: Root,
    out: OutTable,
    labels: LabelFiles = None,
    readers: Annotated[
        Readers | None, typer.Option("--readers", help="How several readers become one.")
    ] = None,
    classes: Classes = None,
    mapping: Map = None,
    images: Images = True,
    drop_missing: Drop = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """VinDr-CXR, from PhysioNet or Kaggle; boxes go to TABLE.boxes.csv."""
    _make(
        lingula.data_vindr,
        root,
        labels,
        as_json,
        out=out,
        readers=None if readers is None else readers.value,
        classes=classes,
        mapping=mapping,
        images=images,
        drop_missing=drop_missing,
        overwrite=overwrite,
    )


@app.command("medmnist")
def _data_medmnist(
    root: Annotated[Path, typer.Argument(help="chestmnist*.npz, or its folder.")],
    out: OutTable,
    classes: Classes = None,
    mapping: Map = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """ChestMNIST: images become PNG files beside the table."""
    found = lingula.data_medmnist(
        root, out=out, classes=asked(classes), mapping=mapping, overwrite=overwrite
    )
    _tell(found, as_json)


@app.command("join")
def _data_join(
    tables: Annotated[list[Path], typer.Argument(help=f"{TABLE} Several.")],
    out: OutTable,
    classes: Classes = None,
    mapping: Map = None,
    images: Annotated[bool, typer.Option(help="Compare the tables' image files.")] = True,
    ignore_columns: IgnoreColumns = None,
    soft: Soft = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """One table of several; classes go by name."""
    found = lingula.data_join(
        tables,
        out=out,
        classes=asked(classes),
        mapping=mapping,
        images=images,
        ignore_columns=ignore_columns or (),
        soft=soft,
        overwrite=overwrite,
    )
    _tell(found, as_json)


@app.command("split")
def _data_split(
    table: OneTable,
    out: OutTable,
    fractions: Annotated[
        tuple[float, float, float], typer.Option("--fractions", help="Train, dev and test.")
    ] = (0.7, 0.1, 0.2),
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    within: Annotated[
        str | None, typer.Option("--within", help="Split only the rows of this split.")
    ] = None,
    images_are_patients: Annotated[
        bool, typer.Option("--images-are-patients", help="Rows without a patient are each one.")
    ] = False,
    ignore_columns: IgnoreColumns = None,
    soft: Soft = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Split by patient, with the rare classes in every part."""
    found = lingula.data_split(
        table,
        out=out,
        fractions=fractions,
        seed=seed,
        within=within,
        images_are_patients=images_are_patients,
        ignore_columns=ignore_columns or (),
        soft=soft,
        overwrite=overwrite,
    )
    _tell(found, as_json)


@app.command("filter")
def _data_filter(
    table: OneTable,
    out: OutTable,
    where: Annotated[
        str, typer.Option("--where", help="E.g. \"view in ('PA', 'AP') and age >= 18\".")
    ],
    ignore_columns: IgnoreColumns = None,
    soft: Soft = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """The rows that fulfil a condition."""
    found = lingula.data_filter(
        table,
        out=out,
        where=where,
        ignore_columns=ignore_columns or (),
        soft=soft,
        overwrite=overwrite,
    )
    _tell(found, as_json)
