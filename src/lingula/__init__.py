"""lingula: long-tailed multi-label classification of chest radiographs.

Every command of the command line is a function here, with the same name and arguments
(`lingula data check` is `lingula.data_check`). Functions are imported when they are first used, so
that `import lingula` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

NOTICE = "Research use only; not a medical device."

if TYPE_CHECKING:
    from lingula.verbs.bench_metrics import bench_metrics
    from lingula.verbs.data_check import data_check
    from lingula.verbs.data_correct import data_correct
    from lingula.verbs.data_phantom import data_phantom
    from lingula.verbs.demo import demo
    from lingula.verbs.doctor import doctor
    from lingula.verbs.ensemble import ensemble, ensemble_apply
    from lingula.verbs.evaluate import evaluate
    from lingula.verbs.fetch import fetch
    from lingula.verbs.predict import predict
    from lingula.verbs.recipes import recipes
    from lingula.verbs.report import report
    from lingula.verbs.reproduce import reproduce
    from lingula.verbs.review import review
    from lingula.verbs.submit import submit
    from lingula.verbs.train import train

_HOMES = {
    "bench_metrics": "bench_metrics",
    "data_check": "data_check",
    "data_correct": "data_correct",
    "data_phantom": "data_phantom",
    "demo": "demo",
    "doctor": "doctor",
    "ensemble": "ensemble",
    "ensemble_apply": "ensemble",
    "evaluate": "evaluate",
    "fetch": "fetch",
    "predict": "predict",
    "recipes": "recipes",
    "report": "report",
    "reproduce": "reproduce",
    "review": "review",
    "submit": "submit",
    "train": "train",
}

__all__ = [
    "NOTICE",
    "__version__",
    "bench_metrics",
    "data_check",
    "data_correct",
    "data_phantom",
    "demo",
    "doctor",
    "ensemble",
    "ensemble_apply",
    "evaluate",
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
    return getattr(importlib.import_module(f"lingula.verbs.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
