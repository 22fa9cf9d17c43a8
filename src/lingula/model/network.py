"""The model: encoder, per-token MLP, decoder over class queries, classifier (paper section 2.1).

Shapes: B batch, L image tokens, K classes, D width, E length of a class embedding. The decoder's
layers are pre-norm; their defaults are those of the nearest public code (4 layers, 4 heads,
feed-forward 1024, dropout 0.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lingula.model.encoders import Normalisation, build_encoder


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
    """Grey levels in, one logit per class out (paper figure 1).

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
        self.classifier = Classifier(a.width, classes, shared=a.classifier == "shared")

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
        """As for any module, except that a frozen encoder stays in eval mode."""
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

        The maps are the last layer's cross-attention; None for a model without a decoder.
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


class Classifier(nn.Module):
    """One linear unit for all classes, or one for each class (paper section 2.2)."""

    def __init__(self, width: int, classes: int, shared: bool) -> None:
        super().__init__()
        shape = (width,) if shared else (classes, width)
        self.weight = nn.Parameter(torch.empty(shape).normal_(std=0.02))
        self.bias = nn.Parameter(torch.zeros(1 if shared else classes))

    def forward(self, states: Tensor) -> Tensor:
        """Logits (B, K) from states (B, K, D)."""
        if self.weight.ndim == 1:
            return states @ self.weight + self.bias
        return (states * self.weight).sum(-1) + self.bias


def in_fp32(head: nn.Module, states: Tensor) -> Tensor:
    """The head's logits, computed in fp32 whatever format autocast gives to the rest.

    A logit rounded to bf16 ties scores, which costs as much AP as some of the paper's rows gain.
    """
    with torch.autocast(states.device.type, enabled=False):
        logits: Tensor = head(states.float())
    return logits


class Attention(nn.Module):
    """Multi-head attention on `scaled_dot_product_attention`, with the weights on request."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(
        self, query: Tensor, source: Tensor, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from (B, K, D) to (B, L, D): (B, K, D), and (B, K, L) averaged over heads."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(query), self.key(source), self.value(source))
        )
        if need_weights:
            scores = (q.float() @ k.float().transpose(-1, -2)) / math.sqrt(q.shape[-1])
            weights = scores.softmax(-1)
            mixed = weights.to(v.dtype) @ v
            return self.out(mixed.transpose(1, 2).flatten(2)), weights.mean(1)
        mixed = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.dropout if self.training else 0.0
        )
        return self.out(mixed.transpose(1, 2).flatten(2)), None


class DecoderLayer(nn.Module):
    """Self-attention over the queries, cross-attention to the image, feed-forward; pre-norm."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.norm_self = nn.LayerNorm(width)
        self.norm_cross = nn.LayerNorm(width)
        self.norm_feed = nn.LayerNorm(width)
        self.self_attention = Attention(width, heads, dropout)
        self.cross_attention = Attention(width, heads, dropout)
        self.feed = nn.Sequential(
            nn.Linear(width, feedforward),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(feedforward, width),
        )
        self.drop = nn.Dropout(dropout)

    def forward(
        self, queries: Tensor, tokens: Tensor, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """(B, K, D) and (B, L, D) to (B, K, D); with `need_weights` also (B, K, L)."""
        normed = self.norm_self(queries)
        queries = queries + self.drop(self.self_attention(normed, normed)[0])
        looked, weights = self.cross_attention(self.norm_cross(queries), tokens, need_weights)
        queries = queries + self.drop(looked)
        queries = queries + self.drop(self.feed(self.norm_feed(queries)))
        return queries, weights


class Decoder(nn.Module):
    """A stack of `DecoderLayer`s between one shared input norm and a final norm.

    `start="average"` sets all keys to zero, so that cross-attention begins as average pooling, and
    the last linear of each residual branch to zero, so that the stack begins as the identity.
    """

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        feedforward: int,
        dropout: float,
        start: str = "normal",
    ) -> None:
        super().__init__()
        # One norm for image tokens, queries and output, as the nearest public code shares it.
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            DecoderLayer(width, heads, feedforward, dropout) for _ in range(layers)
        )
        self.drop = nn.Dropout(dropout)
        self._initialise(start)

    def _initialise(self, start: str) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        if start == "average":
            for layer in self.layers:
                assert isinstance(layer, DecoderLayer)
                nn.init.zeros_(layer.cross_attention.key.weight)
                branch_ends = (layer.self_attention.out, layer.cross_attention.out, layer.feed[3])
                for end in branch_ends:
                    assert isinstance(end, nn.Linear)
                    nn.init.zeros_(end.weight)

    def forward(
        self, queries: Tensor, tokens: Tensor, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Queries (K, D) and tokens (B, L, D) to (B, K, D).

        With `need_weights` also the last layer's cross-attention (B, K, L), whose rows sum to 1.
        """
        state = self.norm(queries).expand(tokens.shape[0], -1, -1)
        tokens = self.norm(tokens)
        weights: Tensor | None = None
        for layer in self.layers:
            state, weights = layer(state, tokens, need_weights)
        return self.drop(self.norm(state)), weights


def sine_positions(
    height: int, width: int, channels: int, device: torch.device | None = None
) -> Tensor:
    """Two-dimensional sine positions (height * width, channels); channels divisible by 4."""
    if channels % 4:
        raise ValueError(f"2-D sine positions need a width divisible by 4, not {channels}.")
    quarter = channels // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float32, device=device) / quarter)
    scale = 2 * math.pi
    rows = (torch.arange(height, device=device) + 0.5) / height * scale
    columns = (torch.arange(width, device=device) + 0.5) / width * scale
    by_row = rows[:, None] * frequencies
    by_column = columns[:, None] * frequencies
    row_part = torch.cat([by_row.sin(), by_row.cos()], 1)[:, None].expand(-1, width, -1)
    column_part = torch.cat([by_column.sin(), by_column.cos()], 1)[None].expand(height, -1, -1)
    return torch.cat([row_part, column_part], 2).reshape(height * width, channels)
