"""Classifiers on the decoder's output (paper section 2.2, Separate Classifier), and their format.

Every head computes in fp32, also where the rest of the network runs in bf16: a logit rounded to
bf16 ties scores, which costs as much AP as some of the paper's rows gain.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SharedClassifier(nn.Module):
    """One linear unit for all classes: (B, K, D) to (B, K)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, states: Tensor) -> Tensor:
        """Logits (B, K)."""
        return states @ self.weight + self.bias


class SeparateClassifier(nn.Module):
    """A linear unit of its own for each class: (B, K, D) to (B, K)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, width).normal_(std=0.02))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, states: Tensor) -> Tensor:
        """Logits (B, K)."""
        return (states * self.weight).sum(-1) + self.bias


def in_fp32(head: nn.Module, states: Tensor) -> Tensor:
    """The head's logits, computed in fp32 whatever format autocast gives to the rest."""
    with torch.autocast(states.device.type, enabled=False):
        logits: Tensor = head(states.float())
    return logits


CLASSIFIERS = {"shared": SharedClassifier, "separate": SeparateClassifier}
