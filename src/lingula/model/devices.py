"""Devices and number formats, through Lightning Fabric; the choice is written into the config."""

from __future__ import annotations

import atexit
import logging
import os
import warnings
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from numpy.typing import NDArray
from torch import Tensor

from lingula.model.encoders import is_dense
from lingula.settings.config import Config
from lingula.system import processes
from lingula.system.errors import InputError
from lingula.system.meeting import leave, meet
from lingula.system.processes import Ranks, is_first

log = logging.getLogger("lingula")


def resolve_device(config: Config) -> Config:
    """The config with `device`, `precision` and `channels_last` decided instead of `auto`.

    Decided by device and encoder family, never by a timing, so that the same machine always decides
    the same. bfloat16 is chosen where the device has instructions for it: on CUDA, and on CPUs for
    encoders with dense convolutions; it slows depthwise networks down. Channels-last is faster for
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
    if precision != "fp32" and device == "cuda" and not cuda_has_bfloat16():
        emulated = f"{torch.cuda.get_device_name()} has no bfloat16 instructions"
        if precision == "auto":
            precision = "fp32"
            log.info("%s: precision=fp32.", emulated)
        else:
            log.warning("%s: precision=bf16 is emulated, and slow. Use fp32.", emulated)
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


def cuda_has_bfloat16() -> bool:
    """Whether the CUDA device multiplies bfloat16 in hardware (Ampere and later)."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def make_fabric(device: str, precision: str) -> Fabric:
    """A launched Fabric: one device, or every process that torchrun or srun started.

    One process uses one device, whichever others are there; `CUDA_VISIBLE_DEVICES` chooses it. fp32
    means fp32: the TensorFloat-32 that cuDNN takes for convolutions by default is turned off, since
    it moves scores in the third decimal.
    """
    if device == "cpu" and precision == "bf16" and not cpu_has_bfloat16() and is_first():
        log.warning(
            "bf16 on a CPU without instructions for it (AVX512-BF16 or AMX): torch emulates it, at "
            "a tenth to a half of the speed of fp32, which is exact too. Use precision=fp32 "
            "(--precision fp32) here."
        )
    together = processes.read_ranks()
    processes.warn_if_alone()
    here, nodes = _devices(device, together)
    # Named, for Fabric's own look at the environment takes left-over variables for a cluster.
    environment: ClusterEnvironment = LightningEnvironment()
    place = None
    torch.backends.cudnn.allow_tf32 = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice about clusters that are not in use
        if together.count > 1:
            place = meet(together)
            environment = TorchElasticEnvironment()
            atexit.register(leave)
        fabric = Fabric(
            accelerator={"cpu": "cpu", "cuda": "cuda", "mps": "mps"}[device],
            devices=here,
            num_nodes=nodes,
            strategy="ddp" if together.count > 1 else "auto",
            precision="bf16-mixed" if precision == "bf16" else "32-true",
            plugins=[environment],
        )
        fabric.launch()
    del place  # torch keeps its own reference to it
    return fabric


def _devices(device: str, together: Ranks) -> tuple[int, int]:
    """Devices on a node and nodes, as Fabric counts them, and this process's place among them."""
    if together.count == 1:
        return 1, 1
    if device == "mps":
        raise InputError(f"{together.count} processes need device=cpu or cuda, not mps.")
    here, place, seen = together.local, together.local_rank, torch.cuda.device_count()
    if device == "cuda" and seen == 1:  # each sees its own alone, as `srun --gpus-per-task=1` does
        here, place = 1, 0
    elif device == "cuda" and seen < here:
        raise InputError(
            f"{here} processes on this node, but torch sees {seen} CUDA devices: start as many "
            "processes as devices, or use device=cpu."
        )
    os.environ["LOCAL_RANK"] = str(place)
    return here, together.count // here


def send(values: Tensor | NDArray[Any], device: torch.device) -> Tensor:
    """The values on `device`; to a CUDA device by way of pinned memory.

    A copy from ordinary memory waits until the device has done all that was asked of it before; one
    from pinned memory takes its place in the queue, so that the next batch is made meanwhile.
    """
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
