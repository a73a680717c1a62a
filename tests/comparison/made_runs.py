"""Runs as a training leaves them, made of formulas: in memory, or logged to the store."""

import math
from collections.abc import Mapping

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunData, RunInfo, RunTag

from mlflow_keras_adv.comparison.histories import Curves
from mlflow_keras_adv.comparison.selection import Selection

# Name -> rate, width, size in bytes, latency in ms, accuracy it goes to.
TECHNIQUES = {
    "teacher": (0.01, 512, 412_000, 0.91, 0.981),
    "scratch": (0.01, 64, 21_500, 0.22, 0.952),
    "distilled": (0.01, 64, 21_500, 0.23, 0.969),
    "pruned_80": (0.003, 512, 98_000, 0.88, 0.977),
    "int8": (0.003, 512, 104_000, 0.35, 0.979),
    "clustered": (0.001, 512, 61_000, 0.9, 0.964),
}
STEPS = range(20, 401, 20)
SEEDS = (0, 1, 2)


def finals(name: str, seed: int = 0) -> dict[str, float]:
    """The `final/…` metrics of a technique."""
    _, width, size, latency, accuracy = TECHNIQUES[name]
    wobble = 0.003 * math.sin(7 * seed + len(name))
    return {
        "final/accuracy": accuracy + wobble,
        "final/loss": 0.9 - 0.8 * (accuracy + wobble),
        "final/gzip_bytes": float(size),
        "final/latency_ms_p50": latency * (1 + wobble),
        "final/flops": float(2 * width * 74),
        "final/parameters": float(width * 74 + 10),
    }


def curve_values(name: str, key: str, step: int, seed: int = 0) -> float:
    """A point of a curve."""
    rate, *_, accuracy = TECHNIQUES[name]
    progress = 1 - math.exp(-step * (4 + 400 * rate) / 500)
    wobble = 0.12 * math.sin(step / 9 + 3 * seed + len(name)) * (1.05 - progress)
    return {
        "val/accuracy": accuracy * progress + wobble,
        "val/loss": 2.3 * (1 - 0.95 * progress) - wobble,
        "train/loss": 2.3 * (1 - 0.98 * progress) - wobble,
        "batch/loss": 2.3 * (1 - 0.98 * progress) + 4 * wobble,
        "gradient/norm": 0.05 + 8 * rate**0.2 * (1 - progress) + abs(4 * wobble),
        "optimizer/learning_rate": rate * (1 - 0.9 * step / 400),
    }[key]


CURVE_KEYS = (
    "val/accuracy",
    "val/loss",
    "train/loss",
    "batch/loss",
    "gradient/norm",
    "optimizer/learning_rate",
)


def params_of(name: str, seed: int) -> dict[str, str]:
    """The params of a technique."""
    rate, width, *_ = TECHNIQUES[name]
    return {"lr": str(rate), "width": str(width), "epochs": "20", "seed": str(seed)}


def metrics_of(name: str, seed: int) -> dict[str, float]:
    """The last values of all metrics of a technique."""
    return finals(name, seed) | {key: curve_values(name, key, 400, seed) for key in CURVE_KEYS}


def entity(
    run_id: str,
    name: str,
    metrics: Mapping[str, float],
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> Run:
    """A run that no store holds."""
    info = RunInfo(run_id, "1", "user", "FINISHED", 0, 1, "active", run_name=name)
    points = [Metric(key, value, 0, 0) for key, value in metrics.items()]
    found = [Param(key, value) for key, value in (params or {}).items()]
    labels = [RunTag(key, value) for key, value in (tags or {}).items()]
    return Run(info, RunData(points, found, labels))


def in_memory() -> tuple[Selection, Curves]:
    """Each technique with each seed, and its curves."""
    runs, curves = [], {key: {} for key in CURVE_KEYS}
    for name in TECHNIQUES:
        for seed in SEEDS:
            run_id = f"{len(runs):032x}"
            runs.append(entity(run_id, name, metrics_of(name, seed), params_of(name, seed)))
            for key in CURVE_KEYS:
                points = {step: curve_values(name, key, step, seed) for step in STEPS}
                curves[key][run_id] = pd.Series(points)
    return Selection(runs, experiments={"1": "digits"}), curves


def many(count: int) -> Selection:
    """So many runs, of a search over two params; no two of a variant."""
    runs = []
    for number in range(count):
        rate, width = 10 ** (-1 - number % 40 / 13), 8 * (1 + number * 7 % 61)
        quality = 0.98 - 0.03 * (math.log10(rate) + 2.2) ** 2 - 3 / (width + 20)
        metrics = {
            "final/accuracy": quality + 0.004 * math.sin(13 * number),
            "final/loss": 1.1 - quality,
            "final/gzip_bytes": 600.0 + 82 * width,
            "final/latency_ms_p50": 0.08 + width / 900 + 0.01 * math.sin(number),
            "train/loss": 0.9 - 0.8 * quality,
        }
        params = {"lr": f"{rate:.3g}", "width": str(width)}
        runs.append(entity(f"{number:032x}", f"trial-{number:03d}", metrics, params))
    return Selection(runs, experiments={"1": "search"})


def log_technique(
    client: MlflowClient, experiment: str, name: str, seed: int, parent: str | None = None
) -> str:
    """A run in the store, with two calls."""
    tags = {"mlflow.parentRunId": parent} if parent else {}
    run_id = client.create_run(experiment, run_name=name, tags=tags).info.run_id
    points = [Metric(key, value, 1, 0) for key, value in finals(name, seed).items()]
    points += [
        Metric(key, curve_values(name, key, step, seed), step, step)
        for key in CURVE_KEYS
        for step in STEPS
    ]
    params = [Param(key, value) for key, value in params_of(name, seed).items()]
    client.log_batch(run_id, points, params)
    client.set_terminated(run_id)
    return run_id
