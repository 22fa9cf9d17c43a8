"""lingula: long-tailed multi-label classification of chest radiographs.

Every command of the command line is a function here, with the same name and arguments
(`lingula data check` is `lingula.data_check`). Functions are imported when they are first used, so
that `import lingula` costs nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from lingula.about import NOTICE, __version__

# Threads that wait for work sleep. By default they spin, which takes the cores from whatever else
# runs there. OpenMP reads this once, when torch loads it; child processes inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from lingula.bench.data import bench_data as bench_data
    from lingula.bench.frozen import bench_frozen as bench_frozen
    from lingula.bench.metrics import bench_metrics as bench_metrics
    from lingula.bench.predict import bench_predict as bench_predict
    from lingula.bench.train import bench_train as bench_train
    from lingula.verbs.calibrate import apply_calibration as apply_calibration
    from lingula.verbs.calibrate import calibrate as calibrate
    from lingula.verbs.data_cache import data_cache as data_cache
    from lingula.verbs.data_cache import data_cache_join as data_cache_join
    from lingula.verbs.data_cache import data_cache_verify as data_cache_verify
    from lingula.verbs.data_check import data_check as data_check
    from lingula.verbs.data_folder import data_folder as data_folder
    from lingula.verbs.data_phantom import data_phantom as data_phantom
    from lingula.verbs.data_tables import data_chexpert as data_chexpert
    from lingula.verbs.data_tables import data_cxr_lt as data_cxr_lt
    from lingula.verbs.data_tables import data_filter as data_filter
    from lingula.verbs.data_tables import data_join as data_join
    from lingula.verbs.data_tables import data_medmnist as data_medmnist
    from lingula.verbs.data_tables import data_mimic as data_mimic
    from lingula.verbs.data_tables import data_nih as data_nih
    from lingula.verbs.data_tables import data_padchest as data_padchest
    from lingula.verbs.data_tables import data_split as data_split
    from lingula.verbs.data_tables import data_vindr as data_vindr
    from lingula.verbs.demo import demo as demo
    from lingula.verbs.doctor import doctor as doctor
    from lingula.verbs.ensemble import ensemble as ensemble
    from lingula.verbs.ensemble import ensemble_apply as ensemble_apply
    from lingula.verbs.evaluate import evaluate as evaluate
    from lingula.verbs.explain import explain as explain
    from lingula.verbs.fetch import fetch as fetch
    from lingula.verbs.predict import predict as predict
    from lingula.verbs.recipes import recipes as recipes
    from lingula.verbs.report import report as report
    from lingula.verbs.reproduce import reproduce as reproduce
    from lingula.verbs.review import data_correct as data_correct
    from lingula.verbs.review import review as review
    from lingula.verbs.start import start as start
    from lingula.verbs.submit import submit as submit
    from lingula.verbs.train import train as train

# The module of each verb, in the order in which `lingula --help` lists them.
MODULES = {
    "demo": "verbs.demo",
    "start": "verbs.start",
    "recipes": "verbs.recipes",
    "fetch": "verbs.fetch",
    "train": "verbs.train",
    "predict": "verbs.predict",
    "explain": "verbs.explain",
    "evaluate": "verbs.evaluate",
    "review": "verbs.review",
    "calibrate": "verbs.calibrate",
    "apply_calibration": "verbs.calibrate",
    "ensemble": "verbs.ensemble",
    "ensemble_apply": "verbs.ensemble",
    "report": "verbs.report",
    "submit": "verbs.submit",
    "reproduce": "verbs.reproduce",
    "doctor": "verbs.doctor",
    "bench_data": "bench.data",
    "bench_frozen": "bench.frozen",
    "bench_metrics": "bench.metrics",
    "bench_predict": "bench.predict",
    "bench_train": "bench.train",
    "data_cache": "verbs.data_cache",
    "data_cache_join": "verbs.data_cache",
    "data_cache_verify": "verbs.data_cache",
    "data_check": "verbs.data_check",
    "data_chexpert": "verbs.data_tables",
    "data_correct": "verbs.review",
    "data_cxr_lt": "verbs.data_tables",
    "data_filter": "verbs.data_tables",
    "data_folder": "verbs.data_folder",
    "data_join": "verbs.data_tables",
    "data_medmnist": "verbs.data_tables",
    "data_mimic": "verbs.data_tables",
    "data_nih": "verbs.data_tables",
    "data_padchest": "verbs.data_tables",
    "data_phantom": "verbs.data_phantom",
    "data_split": "verbs.data_tables",
    "data_vindr": "verbs.data_tables",
}

__all__ = ["NOTICE", "__version__", *MODULES]


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module 'lingula' has no attribute '{name}'")
    return getattr(importlib.import_module(f"lingula.{MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
