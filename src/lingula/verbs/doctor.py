"""`lingula doctor`: the versions, devices and formats that lingula has on this machine."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import Any

from lingula import about
from lingula.images.dicom.pixels import readable_syntaxes
from lingula.images.reading import FORMATS
from lingula.training.run_folder import PACKAGES, installed_version

_OTHERS = ("safetensors", "pydantic", "omegaconf")
_EXTRAS = {"text": "transformers", "dicom": "pydicom", "xlsx": "fastexcel"}


def doctor() -> dict[str, Any]:
    """Versions, devices, memory, disk and extras, as one dictionary of plain values."""
    facts: dict[str, Any] = {
        "lingula": about.__version__,
        "notice": about.NOTICE,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "memory_GiB": _memory(),
        "disk_free_GiB": round(shutil.disk_usage(Path.cwd()).free / 2**30, 1),
        "packages": {name: installed_version(name) for name in (*PACKAGES, *_OTHERS)},
        "extras": {extra: installed_version(package) for extra, package in _EXTRAS.items()},
        "image_formats": list(FORMATS),
        "dicom_syntaxes": readable_syntaxes(),
    }
    facts["devices"] = _devices()
    facts["problems"] = _problems(facts)
    return facts


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None  # not a POSIX system


def _devices() -> dict[str, Any]:
    try:
        import torch

        from lingula.model.devices import cpu_has_bfloat16
    except (ImportError, RuntimeError) as error:
        return {"error": str(error)}
    return {
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "mps": bool(torch.backends.mps.is_available()),
        "cpu_bfloat16": cpu_has_bfloat16(),
        "threads": torch.get_num_threads(),
    }


def _problems(facts: dict[str, Any]) -> list[str]:
    problems = [f"{name} is not installed" for name, v in facts["packages"].items() if v is None]
    if "error" in facts["devices"]:
        problems.append(
            f"torch can't be used: {facts['devices']['error']} (torch and torchvision must be a "
            "matching pair; install them together)"
        )
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).total < 2**30:
        problems.append(
            "/dev/shm is smaller than 1 GiB: keep data.workers=0, or give the container more "
            "(docker: --shm-size=2g)"
        )
    return problems


def to_text(facts: dict[str, Any]) -> str:
    """The facts as lines for a terminal."""
    lines = [f"lingula {facts['lingula']} on Python {facts['python']}, {facts['platform']}"]
    lines.append(
        f"{facts['cpus']} CPUs, {facts['memory_GiB']} GiB memory, "
        f"{facts['disk_free_GiB']} GiB free on disk"
    )
    for group in ("packages", "extras"):
        shown = ", ".join(f"{k} {v or 'absent'}" for k, v in facts[group].items())
        lines.append(f"{group}: {shown}")
    devices = facts["devices"]
    if "error" not in devices:
        lines.append(
            f"CUDA: {', '.join(devices['cuda']) or 'none'}; Apple GPU: "
            f"{'yes' if devices['mps'] else 'no'}; CPU bfloat16: "
            f"{'yes' if devices['cpu_bfloat16'] else 'no'}; {devices['threads']} threads"
        )
    lines.append(f"reads: {', '.join(facts['image_formats'])}")
    readable = facts["dicom_syntaxes"]
    absent = [f"not {name}" for name, there in readable.items() if not there]
    count = f"{sum(readable.values())} transfer syntaxes" if readable else "no (extra: dicom)"
    lines.append("; ".join([f"DICOM: {count}", *absent]))
    lines += [f"PROBLEM: {problem}" for problem in facts["problems"]] or ["no problems found"]
    lines.append(facts["notice"])
    return "\n".join(lines)
