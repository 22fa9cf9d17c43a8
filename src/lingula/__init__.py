"""lingula: long-tailed multi-label classification of chest radiographs.

Every command of the command line is a function here, with the same name and arguments
(`lingula data check` is `lingula.data_check`). Functions are imported when they are first used, so
that `import lingula` costs nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

NOTICE = "Research use only; not a medical device."

# Threads that wait for work sleep. By default they spin, which takes the cores from whatever else
# runs there. OpenMP reads this once, when torch loads it; child processes inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from lingula.bench.data import bench_data
    from lingula.bench.frozen import bench_frozen
    from lingula.bench.metrics import bench_metrics
    from lingula.bench.predict import bench_predict
    from lingula.bench.train import bench_train
    from lingula.verbs.calibrate import apply_calibration, calibrate
    from lingula.verbs.data_cache import data_cache, data_cache_join, data_cache_verify
    from lingula.verbs.data_check import data_check
    from lingula.verbs.data_correct import data_correct
    from lingula.verbs.data_folder import data_folder
    from lingula.verbs.data_phantom import data_phantom
    from lingula.verbs.data_source import (
        data_chexpert,
        data_cxr_lt,
        data_medmnist,
        data_mimic,
        data_nih,
        data_padchest,
        data_vindr,
    )
    from lingula.verbs.data_tables import data_filter, data_join, data_split
    from lingula.verbs.demo import demo
    from lingula.verbs.doctor import doctor
    from lingula.verbs.ensemble import ensemble, ensemble_apply
    from lingula.verbs.evaluate import evaluate
    from lingula.verbs.explain import explain
    from lingula.verbs.fetch import fetch
    from lingula.verbs.predict import predict
    from lingula.verbs.recipes import recipes
    from lingula.verbs.report import report
    from lingula.verbs.reproduce import reproduce
    from lingula.verbs.review import review
    from lingula.verbs.submit import submit
    from lingula.verbs.train import train

_HOMES = {
    "apply_calibration": "verbs.calibrate",
    "calibrate": "verbs.calibrate",
    "bench_data": "bench.data",
    "bench_frozen": "bench.frozen",
    "data_cache": "verbs.data_cache",
    "data_cache_join": "verbs.data_cache",
    "data_cache_verify": "verbs.data_cache",
    "data_check": "verbs.data_check",
    "data_folder": "verbs.data_folder",
    "bench_metrics": "bench.metrics",
    "bench_predict": "bench.predict",
    "bench_train": "bench.train",
    "data_correct": "verbs.data_correct",
    "data_phantom": "verbs.data_phantom",
    "data_chexpert": "verbs.data_source",
    "data_cxr_lt": "verbs.data_source",
    "data_medmnist": "verbs.data_source",
    "data_mimic": "verbs.data_source",
    "data_nih": "verbs.data_source",
    "data_padchest": "verbs.data_source",
    "data_vindr": "verbs.data_source",
    "data_filter": "verbs.data_tables",
    "data_join": "verbs.data_tables",
    "data_split": "verbs.data_tables",
    "demo": "verbs.demo",
    "doctor": "verbs.doctor",
    "ensemble": "verbs.ensemble",
    "ensemble_apply": "verbs.ensemble",
    "evaluate": "verbs.evaluate",
    "explain": "verbs.explain",
    "fetch": "verbs.fetch",
    "predict": "verbs.predict",
    "recipes": "verbs.recipes",
    "report": "verbs.report",
    "reproduce": "verbs.reproduce",
    "review": "verbs.review",
    "submit": "verbs.submit",
    "train": "verbs.train",
}

__all__ = [
    "NOTICE",
    "__version__",
    "apply_calibration",
    "bench_data",
    "bench_frozen",
    "bench_metrics",
    "bench_predict",
    "bench_train",
    "calibrate",
    "data_cache",
    "data_cache_join",
    "data_cache_verify",
    "data_check",
    "data_chexpert",
    "data_correct",
    "data_cxr_lt",
    "data_filter",
    "data_folder",
    "data_join",
    "data_medmnist",
    "data_mimic",
    "data_nih",
    "data_padchest",
    "data_phantom",
    "data_split",
    "data_vindr",
    "demo",
    "doctor",
    "ensemble",
    "ensemble_apply",
    "evaluate",
    "explain",
    "fetch",
    "predict",
    "recipes",
    "report",
    "reproduce",
    "review",
    "submit",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lingula' has no attribute '{name}'")
    return getattr(importlib.import_module(f"lingula.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
