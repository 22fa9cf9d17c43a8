"""The settings of one training: a frozen value that is printed, saved and compared as YAML.

An unknown key is an error that names the most similar one.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from lingula.settings.values import parse_value, read_yaml
from lingula.system import files
from lingula.system.errors import InputError, nearest

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Data(BaseModel):
    """The table to read, and what its unknown cells mean for the loss."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    table: str = Field("phantom", description="path of a table, or `phantom`")
    root: str | None = Field(None, description="folder of the images, if not the table's own")
    classes: str | tuple[str, ...] | None = Field(
        None, description="a label space by name, class names, or null: the table's class columns"
    )
    uncertain: Literal["ignore", "zero", "one"] = "ignore"
    blank: Literal["ignore", "zero"] | None = Field(None, description="null: as the table says")
    unmentioned: Literal["ignore", "zero"] = "ignore"
    soft: bool = Field(False, description="cells may be probabilities")
    ignore_columns: tuple[str, ...] = ()
    images_are_patients: bool = Field(False, description="no patient column: each image is one")
    outside: tuple[str, ...] = Field(
        (), description="more tables to train on, each with classes of its own, joined by name"
    )
    outside_ratio: Positive | None = Field(
        None, description="their images an epoch for each of the table's own; null: all of them"
    )
    bits: Annotated[int, Field(ge=9, le=16)] | None = Field(
        None, description="bits in use in 16-bit files, if not all 16"
    )
    workers: Annotated[int, Field(ge=0)] = Field(0, description="decoding processes; 0: threads")
    cache: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, description="folder that `lingula data cache` made, or several; null: none"
    )


class Decoder(BaseModel):
    """The decoder: one query per class attends to the image's tokens (paper section 2.1)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    layers: Annotated[int, Field(ge=1)] = 4
    width: Annotated[int, Field(ge=8)] = Field(768, description="D, the paper's d")
    heads: Annotated[int, Field(ge=1)] = 4
    feedforward: Annotated[int, Field(ge=8)] = 1024
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    positions: Literal["none", "sine2d"] = Field("none", description="added to image tokens")
    start: Literal["normal", "average"] = Field(
        "normal", description="average: attention starts uniform, residual branches at zero"
    )
    pooled_path: bool = Field(False, description="a linear path from the pooled features beside it")


class Model(BaseModel):
    """Image encoder, text encoder, decoder and classifier."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    encoder: str = Field("resnet50", description="any timm model that gives a feature map")
    stage: Annotated[int, Field(ge=0, le=3)] = Field(
        0, description="which of the encoder's maps: 0 the last, 1 the finer one before it, ..."
    )
    frozen: bool = Field(
        False, description="the encoder stays as it is; its features are computed once"
    )
    checkpointing: bool = Field(
        False, description="recompute the encoder's activations: less memory, slower"
    )
    sync_batch_norm: bool = Field(
        False, description="batch norm over the images of all CUDA devices, not of each alone"
    )
    weights: str = Field("none", description="imagenet, a file, a run folder, or none")
    image_size: Annotated[int, Field(ge=32, le=4096)] = Field(512, description="pixels, square")
    text: str = Field("orthogonal", description="orthogonal, hub name, folder or .safetensors")
    text_pooling: Literal["auto", "pooler", "cls", "mean"] = "auto"
    classifier: Literal["shared", "separate", "linear"] = Field(
        "separate", description="linear: pooled features, no decoder, no text"
    )
    bias: Literal["zero", "prior"] = Field(
        "zero", description="prior: the classifier's bias starts at the training log odds"
    )
    decoder: Decoder = Decoder()


class Augment(BaseModel):
    """Training-time augmentation; crop, flip and rotation are one affine warp."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    scale: tuple[Share, Share] = Field((0.6, 1.0), description="area of the crop")
    flip: Share = Field(0.5, description="probability of a left-right flip")
    rotation: Annotated[float, Field(ge=0, le=180)] = Field(15.0, description="degrees, either way")
    mixup: Positive | None = Field(None, description="alpha of Beta(alpha, alpha); null: off")

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> Augment:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError("augment.scale must be [low, high] with 0 < low <= high <= 1")
        return self


class Worst(BaseModel):
    """Up-weighting of the classes that an earlier run did worst on (paper section 2.2)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    run: str | None = Field(None, description="a finished run; its dev scores say which")
    k: Annotated[int, Field(ge=1)] = Field(9, description="how many classes, by AP on dev")
    factor: Positive = 2.0


class Loss(BaseModel):
    """The loss on (B, K) logits and the weight of each class."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["bce", "asymmetric"] = "bce"
    class_weights: dict[str, Positive] = Field(
        {}, description="class name: factor on both terms of its loss (paper section 2.2)"
    )
    worst: Worst = Worst()


class Optim(BaseModel):
    """AdamW with a warm-up and a cosine."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: Annotated[int, Field(ge=1)] = 50
    batch_size: Annotated[int, Field(ge=2)] = Field(32, description="global, over all devices")
    accumulate: Annotated[int, Field(ge=1)] = Field(
        1,
        description="pieces of two or more images that a batch is worked through in",
    )
    lr: Positive = 5e-5
    head_lr: Positive = Field(1.0, description="factor on lr for everything but the encoder")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.02, description="not on biases and norms")
    warmup_epochs: Annotated[float, Field(ge=0)] | None = Field(
        None, description="null: 5 % of the steps"
    )
    warmup: Literal["linear", "constant", "albef"] = Field(
        "linear", description="from warmup_lr up; or constant; or as ALBEF's code does it"
    )
    warmup_lr: Annotated[float, Field(ge=0)] = 1e-6
    min_lr: Annotated[float, Field(ge=0)] = 1e-6
    keep: Literal["best", "last"] = Field(
        "best", description="the epoch with the best dev mAP, or the last: nothing chosen on dev"
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="decay per step of averaged weights, which are scored and kept; null: off"
    )


class Evaluation(BaseModel):
    """How scores are made from a trained model."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tta: Literal["none", "flip", "paper"] = "none"
    merge: Literal["geometric", "arithmetic"] = "geometric"


class Config(BaseModel):
    """All settings of one training."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: Data = Data()
    model: Model = Model()
    augment: Augment = Augment()
    loss: Loss = Loss()
    optim: Optim = Optim()
    evaluation: Evaluation = Evaluation()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    channels_last: Literal["auto", "yes", "no"] = "auto"
    compile: bool = Field(False, description="torch.compile: minutes at first, faster after")

    @pydantic.model_validator(mode="after")
    def _schedule(self) -> Config:
        warmup = self.optim.warmup_epochs
        if warmup is not None and warmup >= self.optim.epochs:
            raise ValueError(
                f"optim.warmup_epochs={warmup:g} is as long as the run of {self.optim.epochs} "
                "epochs: the learning rate would never leave the warm-up"
            )
        least = 2 * self.optim.accumulate  # batch norm has no statistics of a single image
        if self.optim.batch_size < least:
            raise ValueError(
                f"optim.batch_size={self.optim.batch_size} in optim.accumulate="
                f"{self.optim.accumulate} pieces leaves fewer than two images a piece: "
                f"optim.batch_size={least} or more, or fewer pieces"
            )
        if self.model.frozen and self.model.weights == "none":
            raise ValueError("model.frozen with model.weights=none would train on random features")
        if self.model.decoder.width % self.model.decoder.heads:
            raise ValueError("model.decoder.width must be a multiple of model.decoder.heads")
        return self


def leaves(config: BaseModel | Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting as (`dotted.key`, plain value). A mapping of class weights is one leaf."""
    plain = config.model_dump(mode="json") if isinstance(config, BaseModel) else config
    for key, value in plain.items():
        if isinstance(value, Mapping) and key != "class_weights":
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


KEYS = tuple(key for key, _ in leaves(Config()))


def diff(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """The settings in which two configs differ: `{dotted.key: (before, after)}`."""
    new = dict(leaves(after))
    return {key: (old, new[key]) for key, old in leaves(before) if old != new[key]}


def vary(config: Config, **changes: Any) -> Config:
    """A copy with changes given as `section__key=value`, checked like any other input."""
    plain = config.model_dump(mode="json")
    for key, value in changes.items():
        *sections, leaf = key.split("__")
        place = plain
        for section in sections:
            place = place[section]
        place[leaf] = value
    return parse_config(plain)


def parse_config(plain: Mapping[str, Any], where: str = "the configuration") -> Config:
    """A config from nested plain values; `InputError` names every wrong key and how to fix it."""
    try:
        return Config.model_validate(dict(plain))
    except pydantic.ValidationError as error:
        lines = [_explain(detail) for detail in error.errors()]
        raise InputError(f"{where}: " + "\n".join(lines)) from None


def _nearest_key(key: str) -> str:
    """A hint at the most similar key, by its last part first, as sections are easily forgotten."""
    lasts = {known.rpartition(".")[2]: known for known in KEYS}
    found = difflib.get_close_matches(key.rpartition(".")[2], list(lasts), n=1, cutoff=0.75)
    return f" Did you mean '{lasts[found[0]]}'?" if found else nearest(key, KEYS)


def _explain(detail: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"unknown key '{key}'.{_nearest_key(key)}"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "string_type" and isinstance(detail["input"], int | float):
        message += f"; in a YAML file quote it: '{detail['input']}'"
    return f"{key}={detail['input']!r}: {message}" if key else message


def override_settings(config: Config, assignments: Sequence[str]) -> Config:
    """The config with `key=value` assignments applied, their values read by `parse_value`."""
    plain = config.model_dump(mode="json")
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(f"'{assignment}' is not key=value, such as optim.epochs=10.")
        if not is_key(key):
            raise InputError(f"Unknown key '{key}'.{_nearest_key(key)}")
        *sections, leaf = key.split(".", 2 if key.startswith(_WEIGHT) else -1)
        place = plain
        for section in sections:
            place = place[section]
        value = parse_value(key, text, float if key.startswith(_WEIGHT) else _annotation(key))
        place[leaf] = place[leaf] | value if isinstance(value, dict) else value
    return parse_config(plain, "the settings given")


_WEIGHT = "loss.class_weights."


def is_key(key: str) -> bool:
    """Whether there is a setting of this name."""
    return key in KEYS or (key.startswith(_WEIGHT) and key != _WEIGHT)


def _annotation(key: str) -> Any:
    """The type of a setting."""
    *sections, leaf = key.split(".")
    model: Any = Config
    for section in sections:
        model = model.model_fields[section].annotation
    return model.model_fields[leaf].annotation


def to_yaml(config: Config) -> str:
    """The config as YAML that `read_config` takes back unchanged."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))
    except OmegaConfBaseException as error:  # `${` opens what it would put another value for
        reason = str(error).partition("\n")[0]
        raise InputError(f"A setting's text can't be written as YAML: {reason}.") from None


def read_config(path: str | Path) -> Config:
    """Read a config written as YAML. Raises `InputError` if it is missing or wrong.

    What a plan of `lingula start` says under `start` is left out.
    """
    plain = read_plain(path)
    plain.pop("start", None)
    return parse_config(plain, str(path))


def read_plain(path: str | Path) -> dict[str, Any]:
    """The plain values of a YAML configuration, unchecked. Raises `InputError` if it is none."""
    form = "lines of `key: value`, in sections such as `optim:`"
    return dict(read_yaml(path, "configuration", form, empty_ok=True))


def write_config(config: Config, path: str | Path) -> None:
    """Write the config as YAML, completely or not at all."""
    files.write_text(path, to_yaml(config))


# Names that `data.outside` knows: the embedded stand-ins of the paper's outside data.
OUTSIDE_PHANTOMS = {"phantom:nih": "nih", "phantom:chexpert": "chexpert"}


def with_absolute_paths(config: Config) -> Config:
    """The config with paths made absolute, so that a run can be continued from any folder."""
    changes: dict[str, Any] = {}
    for key, value in leaves(config):
        if key in _PATHS and isinstance(value, str):
            changes[key.replace(".", "__")] = _absolute(key, value)
        elif key in _PATHS and value is not None:
            changes[key.replace(".", "__")] = [_absolute(key, one) for one in value]
    return vary(config, **changes)


# Settings that are paths, and the names that they may have instead.
_PATHS: dict[str, Collection[str]] = {
    "data.table": ("phantom",),
    "data.root": (),
    "data.cache": (),
    "data.outside": OUTSIDE_PHANTOMS,
    "loss.worst.run": (),
    "model.weights": ("none", "imagenet"),
    "model.text": ("orthogonal",),
}


def _absolute(key: str, text: str) -> str:
    """The absolute path that a setting gives; the text itself where it is a name."""
    place = files.expand_home(text)
    is_name = text in _PATHS[key] or (key.startswith("model.") and not place.exists())
    return text if is_name else str(place.resolve())
