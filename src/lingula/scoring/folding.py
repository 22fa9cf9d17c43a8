"""A copy of a network for scoring: batch norm folded into convolutions, weights cast once.

What is folded is seen, not guessed from names: one image goes through the encoder, and a batch norm
whose input is a convolution's output is folded into it. A batch norm that comes first (DenseNet's,
of whole blocks) stays. The copy is compared with the original on that image before it is used.
"""

from __future__ import annotations

import copy

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from lingula.model.network import Network

_APART = 1e-3  # of the largest feature; folding itself moves features by about 1e-6 of it


@torch.no_grad()
def for_scoring(
    network: Network,
    image_size: int,
    layout: torch.memory_format = torch.contiguous_format,
    cast: torch.dtype | None = None,
) -> Network:
    """A copy in eval mode that scores as `network` does, to about 1e-6 in fp32, and faster.

    Args:
        network: left as it is, weights and mode alike.
        image_size: side of the square images that it takes, in pixels.
        layout: the memory layout of the images that it will take.
        cast: the format that autocast computes in, if it does. Weights that autocast would cast
            anew for each batch (convolutions' and linear layers') are cast to it once: the same.
    """
    ready = copy.deepcopy(network).eval()
    device = network.embeddings.device
    noise = torch.Generator().manual_seed(0)
    probe = torch.randn(1, 3, image_size, image_size, generator=noise).to(device)
    pairs, before = _pairs(ready.encoder, probe)
    if pairs:
        _fold(ready.encoder, pairs)
        after: Tensor = ready.encoder(probe)
        # A network that also uses the convolution's output itself gives something else when folded.
        if not (after - before).abs().max() <= _APART * before.abs().max():
            ready.encoder = copy.deepcopy(network.encoder).eval()
    if cast is not None:
        for module in ready.modules():
            # The heads stay in fp32 (`network.in_fp32`); of them `pooled` alone is a linear layer.
            if isinstance(module, nn.Conv2d | nn.Linear) and module is not ready.pooled:
                module.to(cast)
    return ready.to(memory_format=layout)


def _pairs(encoder: nn.Module, probe: Tensor) -> tuple[list[tuple[str, str]], Tensor]:
    """Names of convolutions and of the batch norms that take their output; the encoder's output."""
    convolutions: dict[int, str] = {}
    held: list[Tensor] = []  # kept alive, so that an id stands for one tensor
    pairs: list[tuple[str, str]] = []
    uses: dict[str, int] = {}
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        def look(_: nn.Module, given: tuple[Tensor, ...], found: Tensor) -> None:
            uses[name] = uses.get(name, 0) + 1
            if isinstance(module, nn.Conv2d):
                convolutions[id(found)] = name
                held.append(found)
            elif id(given[0]) in convolutions:
                pairs.append((convolutions[id(given[0])], name))

        handles.append(module.register_forward_hook(look))

    for name, module in encoder.named_modules():
        # Types with other arithmetic derive from these two; only the two themselves are known.
        if isinstance(module, nn.Conv2d) or type(module) in (nn.BatchNorm2d, BatchNormAct2d):
            watch(name, module)
    try:
        features: Tensor = encoder(probe)
    finally:
        for handle in handles:
            handle.remove()
    once = [pair for pair in pairs if uses[pair[0]] == uses[pair[1]] == 1]
    return once, features


def _fold(encoder: nn.Module, pairs: list[tuple[str, str]]) -> None:
    """Put each batch norm of `pairs` into its convolution, leaving its activation in its place."""
    for convolution, norm in pairs:
        conv, bn = encoder.get_submodule(convolution), encoder.get_submodule(norm)
        assert isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d)
        if bn.running_mean is None or bn.running_var is None:
            continue  # it normalises by the batch's own statistics
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
        )
        rest = nn.Sequential(bn.drop, bn.act) if isinstance(bn, BatchNormAct2d) else nn.Identity()
        encoder.set_submodule(norm, rest)
