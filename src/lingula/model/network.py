"""The whole network: encoder, per-token MLP, decoder over class queries, classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from lingula.model.decoder import Decoder, sine_positions
from lingula.model.encoders import Normalisation, build_encoder
from lingula.model.heads import CLASSIFIERS, in_fp32


@dataclass(frozen=True)
class Architecture:
    """What it takes to build a `Network`, apart from its class embeddings."""

    encoder: str
    image_size: int
    classifier: str
    width: int
    layers: int
    heads: int
    feedforward: int
    dropout: float
    positions: str
    start: str
    pooled_path: bool
    stage: int = 0


class Network(nn.Module):
    """Grey levels in, a logit a class out (paper figure 1).

    Args:
        architecture: sizes and kinds.
        embeddings: (K, E) class embeddings from the frozen text encoder; a constant of the
            network, never trained. For `classifier="linear"` only K is used.
    """

    embeddings: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, architecture: Architecture, embeddings: Tensor) -> None:
        super().__init__()
        a = architecture
        classes, embedded = embeddings.shape
        self.encoder, channels, normalisation = build_encoder(a.encoder, a.image_size, a.stage)
        self.frozen = False
        self.set_normalisation(normalisation)
        self.register_buffer("embeddings", embeddings.detach().clone().float())
        self.pooled = nn.Linear(channels, classes) if _pools(a) else None
        if self.pooled is not None:
            nn.init.normal_(self.pooled.weight, std=0.02)
            nn.init.zeros_(self.pooled.bias)
        self.positions = a.positions
        if a.classifier == "linear":
            return
        self.mlp = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, a.width)
        )
        self.projection = nn.Linear(embedded, a.width) if embedded != a.width else nn.Identity()
        self.decoder = Decoder(
            width=a.width,
            layers=a.layers,
            heads=a.heads,
            feedforward=a.feedforward,
            dropout=a.dropout,
            start=a.start,
        )
        self.classifier = CLASSIFIERS[a.classifier](a.width, classes)

    def set_normalisation(self, normalisation: Normalisation) -> None:
        """Set the constants that `prepare` uses; they travel in the model's description."""
        self.normalisation = normalisation
        for name in ("mean", "std"):
            values = torch.tensor(getattr(normalisation, name)).view(1, 3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    @property
    def bias(self) -> nn.Parameter:
        """The bias of the last linear: (K,), or (1,) with a shared classifier."""
        last = self.classifier if hasattr(self, "classifier") else self.pooled
        assert isinstance(last, nn.Module) and isinstance(last.bias, nn.Parameter)
        return last.bias

    def prepare(
        self, grey: Tensor, layout: torch.memory_format = torch.contiguous_format
    ) -> Tensor:
        """Grey levels (B, 1, H, W), uint8 or float in [0, 255], to normalised (B, 3, H, W).

        Written once, in the memory layout that the network takes.
        """
        levels = grey.to(self.mean.dtype) / 255.0
        shape = (len(grey), self.mean.shape[1], *grey.shape[-2:])
        out = torch.empty(shape, dtype=levels.dtype, device=grey.device, memory_format=layout)
        return torch.sub(levels, self.mean, out=out).div_(self.std)

    def freeze_encoder(self) -> None:
        """Take the encoder out of training: no gradient, and batch norm keeps its statistics."""
        self.frozen = True
        for parameter in self.encoder.parameters():
            parameter.requires_grad_(False)
        self.encoder.eval()

    def train(self, mode: bool = True) -> Self:
        """As for any module, but that a frozen encoder stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, images: Tensor, encoded: bool = False) -> Tensor:
        """Normalised images (B, 3, H, W) to logits (B, K).

        With `encoded` the input is the encoder's output (B, C, h, w), computed before.
        """
        features = images if encoded else self.encoder(images)
        return self._logits(features, attention=False)[0]

    def look(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (B, K), and where each class looked, (B, K, h, w), each map summing to 1.

        The maps are the last layer's cross-attention; None for a network without a decoder.
        """
        return self._logits(self.encoder(images), attention=True)

    def _logits(self, features: Tensor, attention: bool) -> tuple[Tensor, Tensor | None]:
        pooled = (
            None if self.pooled is None else in_fp32(self.pooled, features.float().mean((2, 3)))
        )
        if not hasattr(self, "decoder"):
            assert pooled is not None
            return pooled, None
        height, width = features.shape[-2:]
        tokens = self.mlp(features.flatten(2).transpose(1, 2))
        if self.positions == "sine2d":
            positions = sine_positions(height, width, tokens.shape[-1], tokens.device)
            tokens = tokens + positions.to(tokens.dtype)
        states, weights = self.decoder(self.projection(self.embeddings), tokens, attention)
        logits = in_fp32(self.classifier, states)
        maps = None if weights is None else weights.unflatten(-1, (height, width))
        return logits if pooled is None else logits + pooled, maps


def _pools(architecture: Architecture) -> bool:
    return architecture.classifier == "linear" or architecture.pooled_path
