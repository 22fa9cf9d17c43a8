"""Image encoders: any timm model that gives a feature map (paper section 2.1, Image Encoder)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import timm
import torch
from torch import Tensor, nn

from lingula.system.errors import InputError, examples, nearest

# Families whose convolutions are dense enough that bfloat16 makes them faster on CPUs with bfloat16
# instructions; depthwise networks (EfficientNet, MobileNet) get slower in training.
_DENSE = ("resnet", "resnext", "wide_resnet", "densenet", "test_resnet", "vgg", "vit_", "deit")


@dataclass(frozen=True)
class Normalisation:
    """What an encoder expects of grey levels in [0, 1]: (v - mean) / std for each of 3 channels."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """The normalisation from the JSON object that `asdict` gives."""
        return cls(tuple(values["mean"]), tuple(values["std"]))


def is_dense(encoder: str) -> bool:
    """Whether bfloat16 speeds this encoder family up in training."""
    return encoder.startswith(_DENSE)


def build_encoder(
    name: str, image_size: int, stage: int = 0
) -> tuple[nn.Module, int, Normalisation]:
    """The encoder with random weights, its channels C, and its normalisation.

    `stage` 0 is the last map, 1 the one before it, which is finer, and so on; what comes after the
    map is not built.

    The module maps (B, 3, H, W) to (B, C, h, w). Classification heads that come after the map are
    left out; layers that belong to the map (EfficientNet's last 1x1 convolution) are kept.
    Raises `InputError` for names that timm does not know and for models without a map.
    """
    plain = name.partition(".")[0]
    if not timm.is_model(plain):
        raise InputError(f"timm has no model '{name}'.{nearest(plain, timm.list_models())}")
    last_map: dict[str, Any] = {"features_only": True, "out_indices": (-1 - stage,)}
    headless = {"num_classes": 0, "global_pool": ""}
    for kind in (headless, last_map) if stage == 0 else (last_map,):
        encoder = _create(plain, image_size, kind)
        channels = _map_channels(encoder, image_size) if encoder is not None else None
        if encoder is not None and channels is not None:
            return encoder, channels, _normalisation(name)
    which = "" if stage == 0 else f" of stage {stage} before the last"
    raise InputError(f"The timm model '{name}' gives no feature map{which} at {image_size} pixels.")


class _LastMap(nn.Module):
    """The last of the maps of a timm `features_only` model, channels first."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body
        self.num_features: int = body.feature_info.channels()[-1]

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.body(images)[-1]
        # Some families (Swin) keep channels last.
        last = features.shape[-1] == self.num_features != features.shape[1]
        return features.permute(0, 3, 1, 2) if last else features


def _create(name: str, image_size: int, kind: dict[str, Any]) -> nn.Module | None:
    """timm's model of a kind; None if timm has none of that kind."""
    # Only models with position embeddings take `img_size`; the others raise TypeError for it.
    for settings in ({**kind, "img_size": image_size}, kind):
        try:
            model: nn.Module = timm.create_model(name, pretrained=False, **settings)
            return _LastMap(model) if "features_only" in kind else model
        except (TypeError, RuntimeError, AssertionError, IndexError):
            continue
    return None


def _map_channels(encoder: nn.Module, image_size: int) -> int | None:
    """C if the encoder gives an NCHW map, else None (tokens, or channels last as Swin has them)."""
    encoder.eval()
    with torch.no_grad():
        features = encoder(torch.zeros(1, 3, image_size, image_size))
    encoder.train()
    if not isinstance(features, Tensor) or features.ndim != 4:
        return None
    stated = getattr(encoder, "num_features", None)
    channels = int(features.shape[1])
    return channels if stated in (None, channels) else None


def pretrained_settings(name: str) -> Any:
    """What timm knows of an encoder's published weights (`PretrainedCfg`), or None.

    Raises `InputError` for a tag (what follows the first dot) that timm doesn't know.
    """
    try:
        return timm.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError:
        plain = name.partition(".")[0]
        known = timm.list_models(f"{plain}.*", pretrained=True)
        raise InputError(
            f"timm has no weights '{name}'.{nearest(name, known)} There are "
            f"{examples(known)}; or give the name without a tag, {plain}."
        ) from None


def _normalisation(name: str) -> Normalisation:
    settings = pretrained_settings(name)
    if settings is None:
        return Normalisation()
    (a, b, c), (x, y, z) = settings.mean, settings.std
    return Normalisation((a, b, c), (x, y, z))


def recompute_activations(encoder: nn.Module) -> None:
    """Turn on timm's gradient checkpointing; `InputError` if the encoder has none."""
    body = getattr(encoder, "body", encoder)
    switch = getattr(body, "set_grad_checkpointing", None)
    try:
        if switch is None:
            raise AttributeError("no set_grad_checkpointing")
        switch(True)
        for module in body.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                _count_once(module)
    except (AssertionError, AttributeError, NotImplementedError):
        raise InputError(
            "This encoder can't recompute its activations: model.checkpointing=false; a smaller "
            "optim.batch_size or optim.accumulate saves memory too."
        ) from None


def _count_once(norm: nn.modules.batchnorm._BatchNorm) -> None:
    """Keep a batch norm from counting a batch again while its activations are computed again."""
    momentum = norm.momentum

    def before(module: nn.Module, _: object) -> None:
        again = torch._C._current_graph_task_id() != -1  # within a backward pass
        norm.momentum = 0.0 if again else momentum
        if again and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.sub_(1)

    norm.register_forward_pre_hook(before)
