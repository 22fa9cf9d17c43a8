"""The query network: class queries attend to the image's tokens (paper section 2.1).

Shapes: B batch, L image tokens, K classes, D width. Layers are pre-norm; the defaults are those of
the nearest public code (4 layers, 4 heads, feed-forward 1024, dropout 0.1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
