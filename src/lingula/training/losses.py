"""Multi-label losses: (B, K) logits and targets in [0, 1] to unreduced (B, K); and their mean."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of each cell, from logits, in fp32.

    The same as a two-way cross-entropy whose logit difference is the logit given. Where a target is
    not finite its loss is not either, and has no gradient: masked, it is as if it were not there.
    """
    x, y = logits.float(), _finite(targets)
    losses = F.binary_cross_entropy_with_logits(x, y, reduction="none")
    return _where_known(targets, losses)


def asymmetric(
    logits: Tensor,
    targets: Tensor,
    gamma_negative: float = 4.0,
    gamma_positive: float = 1.0,
    clip: float = 0.05,
) -> Tensor:
    """Asymmetric loss (Ridnik et al. 2021, equations 4 to 6), in fp32, finite for any logit.

    Negatives are shifted by `clip`; both terms are focused by their own exponent. With all three at
    zero it is `bce`, and a target that is not finite is treated as there.
    """
    x, y = logits.float(), _finite(targets)
    p = torch.sigmoid(x)
    shifted = (p - clip).clamp(min=0)
    # log(1 - shifted) from the logit where nothing was shifted, so that p = 1 stays finite.
    log_not = torch.log1p(-shifted.clamp(max=1 - 1e-7)) if clip > 0 else F.logsigmoid(-x)
    positive = y * F.logsigmoid(x) * (1 - p).pow(gamma_positive)
    negative = (1 - y) * log_not * shifted.pow(gamma_negative)
    return _where_known(targets, -(positive + negative))


def _finite(targets: Tensor) -> Tensor:
    return torch.nan_to_num(targets.float(), nan=0.0, posinf=0.0, neginf=0.0)


def _where_known(targets: Tensor, losses: Tensor) -> Tensor:
    """The losses, and NaN where the target was not finite, by a way that has no gradient."""
    return torch.where(targets.isfinite(), losses, torch.full_like(losses, torch.nan))


def reduce_loss(
    losses: Tensor, mask: Tensor, class_weights: Tensor | None = None, cells: Tensor | None = None
) -> Tensor:
    """The mean over known cells, each class's loss times its weight first (paper section 2.2).

    Args:
        losses: (B, K), from a loss above.
        mask: (B, K), True where the target is known.
        class_weights: (K,) factors on both terms of a class's loss, or None. The mean is not
            divided by them.
        cells: what to divide by instead of this batch's known cells (several devices, mixtures),
            which need not be whole, or None.
    """
    kept = torch.where(mask, losses, torch.zeros_like(losses))
    if class_weights is not None:
        kept = kept * class_weights
    total = mask.sum() if cells is None else cells
    return kept.sum() / total.clamp(min=1e-6)  # where nothing is known the sum is zero


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"bce": bce, "asymmetric": asymmetric}
