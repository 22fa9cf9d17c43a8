"""Devices and number formats, through Lightning Fabric; the choice is written into the config."""

from __future__ import annotations

import logging
import os
import warnings

import torch
from lightning_fabric import Fabric

from lingula.config import Config
from lingula.errors import InputError
from lingula.model.encoders import is_dense
from lingula.ranks import is_first

log = logging.getLogger("lingula")


def resolve_device(config: Config) -> Config:
    """The config with `device`, `precision` and `channels_last` decided instead of `auto`.

    Decided by device and encoder family, never by a timing, so that the same machine always decides
    the same. bfloat16 is chosen on CUDA, and on CPUs that have bfloat16 instructions for encoders
    with dense convolutions; it slows depthwise networks down. Channels-last is faster for
    convolutions of both kinds and is chosen everywhere but on Apple GPUs.
    """
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device=cuda, but torch sees no CUDA device; use device=cpu.")
    if device == "mps" and not torch.backends.mps.is_available():
        raise InputError("device=mps, but torch sees no Apple GPU; use device=cpu.")
    dense = is_dense(config.model.encoder)
    precision = config.precision
    if precision == "auto":
        fast = device == "cuda" or (device == "cpu" and dense and cpu_has_bfloat16())
        precision = "bf16" if fast else "fp32"
    layout = config.channels_last
    if layout == "auto":
        layout = "no" if device == "mps" else "yes"
    return config.model_copy(
        update={"device": device, "precision": precision, "channels_last": layout}
    )


def layout_of(config: Config) -> torch.memory_format:
    """The memory layout of images and weights that a resolved config names."""
    return torch.channels_last if config.channels_last == "yes" else torch.contiguous_format


def autocast_to(fabric: Fabric) -> torch.dtype | None:
    """The format that convolutions and products run in under `fabric.autocast()`, or None."""
    kind = fabric.device.type
    with fabric.autocast():
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX) and oneDNN may do so.

    `ONEDNN_MAX_CPU_ISA` keeps oneDNN, which does the multiplying, to older instructions.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", ""))
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    seen = any(bool(getattr(torch.cpu, probe, bool)()) for probe in probes)
    return seen and limit.upper() not in _WITHOUT_BFLOAT16


_WITHOUT_BFLOAT16 = (
    *("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"),
    *("AVX512_CORE", "AVX512_CORE_VNNI"),
)


def processes() -> tuple[int, int]:
    """Processes on this node and nodes, as torchrun or SLURM started them; (1, 1) by hand."""
    world = int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1")))
    here = os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("SLURM_NTASKS_PER_NODE"))
    local = int(here) if here is not None else world
    return (local, max(1, world // local)) if world > 1 else (1, 1)


def make_fabric(device: str, precision: str) -> Fabric:
    """A launched Fabric: one device, or every process that torchrun or SLURM started.

    One process uses one device, whichever others are there; `CUDA_VISIBLE_DEVICES` chooses it. fp32
    means fp32: the TensorFloat-32 that cuDNN takes for convolutions by default is turned off, since
    it moves scores in the third decimal.
    """
    accelerator = {"cpu": "cpu", "cuda": "cuda", "mps": "mps"}[device]
    if device == "cpu" and precision == "bf16" and not cpu_has_bfloat16() and is_first():
        log.warning(
            "bf16 on a CPU without instructions for it (AVX512-BF16 or AMX): torch emulates it, at "
            "a tenth to a half of the speed of fp32, which is exact too. Use precision=fp32 "
            "(--precision fp32) here."
        )
    here, nodes = processes()
    torch.backends.cudnn.allow_tf32 = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice about clusters that are not in use
        fabric = Fabric(
            accelerator=accelerator,
            devices=here,
            num_nodes=nodes,
            strategy="ddp" if here * nodes > 1 else "auto",
            precision="bf16-mixed" if precision == "bf16" else "32-true",
        )
        fabric.launch()
    return fabric
