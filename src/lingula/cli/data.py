"""`lingula data`: making and checking tables."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import lingula
from lingula.cli import sources
from lingula.cli.options import TABLE, IgnoreColumns, Json, Overwrite, dumped
from lingula.system.errors import InputError, examples

if TYPE_CHECKING:
    from lingula.images.cache_writing import Cached


class Codec(enum.StrEnum):
    """How a cache keeps its pixels."""

    raw = "raw"
    jpeg = "jpeg"


app = typer.Typer(no_args_is_help=True, help="Make and check tables of images and labels.")
app.add_typer(sources.app)


@app.command("phantom")
def _data_phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    n: Annotated[int, typer.Option("--n", help="Images.")] = 2000,
    size: Annotated[int, typer.Option("--size", help="Pixels, square.")] = 128,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    imbalance: Annotated[
        float | None, typer.Option("--imbalance", help="Head : tail ratio; default: CXR-LT's 164.")
    ] = None,
    style: Annotated[
        str, typer.Option("--style", help="cxr-lt, or nih or chexpert: 14 labels, another look.")
    ] = "cxr-lt",
    dev: Annotated[float, typer.Option("--dev", help="Share of the images.")] = 0.15,
    test: Annotated[float, typer.Option("--test", help="Share of the images.")] = 0.25,
    overwrite: Overwrite = False,
) -> None:
    """Draw synthetic radiographs with all 26 findings of CXR-LT 2023."""
    typer.echo(
        lingula.data_phantom(
            out,
            n=n,
            size=size,
            seed=seed,
            imbalance=imbalance,
            style=style,
            shares=(dev, test),
            overwrite=overwrite,
        )
    )


@app.command("check")
def _data_check(
    table: Annotated[Path, typer.Argument(help=TABLE)],
    images: Annotated[bool, typer.Option(help="Read every image too.")] = True,
    page: Annotated[
        Path | None, typer.Option("--page", help="Write the report with films to this .html.")
    ] = None,
    drop_bad: Annotated[
        Path | None,
        typer.Option("--drop-bad", help="Write the table without unreadable images to this file."),
    ] = None,
    root: Annotated[
        Path | None, typer.Option("--root", help="Folder of the images: data.root.")
    ] = None,
    classes: sources.Classes = None,
    ignore_columns: IgnoreColumns = None,
    soft: sources.Soft = False,
    images_are_patients: Annotated[
        bool, typer.Option("--images-are-patients", help="Rows without a patient are each one.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Look for the faults that spoil a training; exit status 2 if there are any."""
    from lingula.tables.checking import to_json, to_text

    found = lingula.data_check(
        table,
        images=images,
        page=page,
        drop_bad=drop_bad,
        root=root,
        classes=sources.asked(classes),
        ignore_columns=ignore_columns or (),
        soft=soft,
        images_are_patients=images_are_patients,
    )
    typer.echo(dumped(to_json(found)) if as_json else to_text(found))
    if not found.fit:
        raise typer.Exit(2)


@app.command("folder")
def _data_folder(
    root: Annotated[Path, typer.Argument(help="Folder of images.")],
    labels: Annotated[Path, typer.Option("--labels", help="Table with a key and the labels.")],
    out: Annotated[Path, typer.Option("--out", help="Table to write: .csv or .parquet.")],
    key: Annotated[
        str,
        typer.Option(
            "--key",
            help="image, AccessionNumber, StudyInstanceUID, SOPInstanceUID, PatientID, or a column "
            "of paths or names of files, or of names of folders.",
        ),
    ] = "image",
    map_file: Annotated[
        Path | None,
        typer.Option("--map", help="YAML: which classes columns stand for."),
    ] = None,
    ignore_columns: IgnoreColumns = None,
    keep_ids: Annotated[
        bool, typer.Option("--keep-ids", help="Write patient and study ids of DICOM as they are.")
    ] = False,
    age_and_sex: Annotated[
        bool, typer.Option("--age-and-sex", help="Write the age and sex of DICOM files.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Join a label file to the images of a folder, by image, study or patient."""
    made = lingula.data_folder(
        root,
        labels=labels,
        key=key,
        map_file=map_file,
        ignore_columns=ignore_columns or (),
        keep_ids=keep_ids,
        age_and_sex=age_and_sex,
        out=out,
        overwrite=overwrite,
    )
    typer.echo(made.path)


@app.command("cache")
def _data_cache(
    table: Annotated[
        Path | None, typer.Argument(help="Table or folder whose images are cached.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The cache's folder.")] = None,
    root: Annotated[
        Path | None, typer.Option("--root", help="Folder of a table's images: data.root.")
    ] = None,
    size: Annotated[int, typer.Option("--size", help="Pixels, square: model.image_size.")] = 512,
    codec: Annotated[
        Codec, typer.Option("--codec", help="raw: the very pixels; jpeg: smaller, lossy.")
    ] = Codec.raw,
    quality: Annotated[int, typer.Option("--quality", help="Of the JPEG.")] = 90,
    bits: Annotated[
        int | None, typer.Option("--bits", help="Bits in use in 16-bit files: data.bits.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="3/16", help="Only this part of so many.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", help="Threads; 0: one a core.")] = 0,
    verify: Annotated[
        Path | None, typer.Option("--verify", metavar="DIR", help="Check a cache's checksums.")
    ] = None,
    join: Annotated[
        Path | None, typer.Option("--join", metavar="DIR", help="Check that all parts are there.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Decode images once, into a few large files; training reads them by data.cache=DIR."""
    if verify is not None or join is not None:
        if table is not None or out is not None or (verify is not None and join is not None):
            raise InputError("--verify DIR and --join DIR stand alone, without a table or --out.")
        if verify is not None:
            _verify(verify)
        elif join is not None:
            _told(lingula.data_cache_join(join))
        return
    if table is None or out is None:
        raise InputError("Say which table, and where to: lingula data cache TABLE --out DIR.")
    _told(
        lingula.data_cache(
            table,
            out=out,
            root=root,
            size=size,
            codec=codec.value,
            quality=quality,
            bits=bits,
            shard=shard,
            workers=workers,
            overwrite=overwrite,
        )
    )


def _told(cached: Cached) -> None:
    typer.echo(f"{cached.made} images made, {cached.kept} there already.", err=True)
    typer.echo(cached.folder)
    if cached.failures:
        where = cached.failed or examples(cached.failures.values(), 3)
        typer.echo(f"{len(cached.failures)} images could not be read: {where}", err=True)
        raise typer.Exit(3)


def _verify(folder: Path) -> None:
    found = lingula.data_cache_verify(folder)
    if found["damaged"]:
        raise InputError(
            f"{len(found['damaged'])} of {found['images']} images of {folder} are damaged: "
            f"{examples((f'{name} ({why})' for name, why in found['damaged'].items()), 3)}. Copy "
            "these files again, or delete them with their .jsonl and run the same "
            "`lingula data cache` line again."
        )
    typer.echo(f"{found['images']} images, every checksum right; {len(found['failed'])} failed")


@app.command("correct")
def _data_correct(
    table: Annotated[Path, typer.Argument(help="The table that was reviewed.")],
    corrections: Annotated[Path, typer.Argument(help="corrections.csv, filled in.")],
    out: Annotated[Path, typer.Option("--out", help="New table: .csv or .parquet.")],
    ignore_columns: IgnoreColumns = None,
    soft: Annotated[bool, typer.Option("--soft", help="Cells may be probabilities.")] = False,
) -> None:
    """Apply the decisions of a review to a table, as a new table."""
    done = lingula.data_correct(
        table, corrections, out=out, ignore_columns=ignore_columns or (), soft=soft
    )
    typer.echo(
        f"{done.changed} labels changed, {done.confirmed} confirmed, {done.undecided} undecided",
        err=True,
    )
    typer.echo(out)
