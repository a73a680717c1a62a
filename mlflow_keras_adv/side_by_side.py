"""Keras and LiteRT models measured side by side, for the gates of the registry."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from mlflow.models import Model

from mlflow_keras_adv import litert
from mlflow_keras_adv.compression.file_footprint import file_footprint
from mlflow_keras_adv.compression.footprint import (
    accuracy,
    highest,
    latency_ms,
    scores_of,
    sizes,
)
from mlflow_keras_adv.compression.runtime import LiteRTModel
from mlflow_keras_adv.extras import MissingExtraError
from mlflow_keras_adv.models import load_model
from mlflow_keras_adv.random_state import keeps_random_state
from mlflow_keras_adv.registry.samples import Measurements, Samples

_LONGEST_PROBLEM = 600
_LAMBDA = (
    "its file holds a Lambda layer, which is Python code of whoever wrote the file, and Keras' "
    "safe mode, which stays on, does not run it. Put the function in a layer of its own, a "
    "subclass of keras.layers.Layer, or use keras.ops in a functional model; log the model again"
)


@keeps_random_state()
def measure_models(
    folders: Sequence[Path],
    samples: Samples,
    *,
    batch_size: int = 256,
    rounds: int = 20,
    repeats: int = 10,
) -> list[Measurements]:
    """Measures Keras and LiteRT models on the same samples, in this process.

    Pass it as `measure` to `registry.promote`. With labels the models have to be classifiers with
    one output of scores.

    Args:
        folders: Models in MLflow's format.
        samples: What to measure on.
        batch_size: Samples per call when a Keras model predicts.
        rounds: How often the models take turns when their latency is measured.
        repeats: Calls of a model in each of its turns.

    Returns:
        Measurements in the order of `folders`, with the names of `compression.footprint.footprint`
        and, for a `.tflite` file, `peak_memory_bytes`; latencies are those of one sample, measured
        in turns. A model that cannot be loaded or fails on the samples has a `problem`.

    Raises:
        UserError: One of them is a `.tflite` file, and LiteRT is not installed.
    """
    found = [_guarded(folder, samples, batch_size) for folder in folders]
    times: list[list[np.ndarray]] = [[] for _ in found]
    for number in range(rounds):
        order = range(len(found)) if number % 2 == 0 else reversed(range(len(found)))
        for index in order:
            call = found[index].call
            if call is not None:
                times[index].append(latency_ms(call, repeats=repeats, warm_up=2))
    return [_measurements(each, series) for each, series in zip(found, times, strict=True)]


@dataclass(frozen=True, eq=False)
class _Loaded:
    """A model on the scales: what it weighs and scored, and a call of one sample."""

    folder: Path
    weights: dict[str, float]
    call: Callable[[], Any] | None = None
    chosen: np.ndarray | None = None
    correct: np.ndarray | None = None
    problem: str = ""


def _measurements(loaded: _Loaded, times: list[np.ndarray]) -> Measurements:
    metrics, per_sample = dict(loaded.weights), {}
    if loaded.correct is not None:
        per_sample["accuracy"] = loaded.correct
    if times:
        middle, slow = np.percentile(np.concatenate(times), [50, 95]).tolist()
        metrics |= {"latency_ms_p50": middle, "latency_ms_p95": slow}
    return Measurements(
        metrics, per_sample, loaded.chosen, loaded.problem, partial(_serve, loaded.folder)
    )


def _guarded(folder: Path, samples: Samples, batch_size: int) -> _Loaded:
    try:
        return _weighed(folder, samples, batch_size)
    except MissingExtraError:
        raise  # no fault of the model
    except Exception as error:  # what a broken model raises has no end
        text = " ".join(str(error).split())
        known = _LAMBDA if "safe_mode" in text and "ambda" in text else text
        problem = f"{type(error).__name__}: {known}"
        return _Loaded(folder, {}, problem=problem[:_LONGEST_PROBLEM])


def _weighed(folder: Path, samples: Samples, batch_size: int) -> _Loaded:
    one = keras.tree.map_structure(lambda array: np.asarray(array)[:1], samples.x)
    scores: Any
    if litert.FLAVOR_NAME in Model.load(str(folder)).flavors:
        # Not as it was logged: its params may ask for classes instead of scores.
        file = LiteRTModel(litert.load_model(str(folder)).content)
        weights = file_footprint(file.content, one, repeats=1)
        scores = file.predict(samples.x)
        named = file.named(one)
        if file.rows in (-1, 1):  # else it takes more samples a call than this one
            encoded = {tensor.name: tensor.encode(named[tensor.name]) for tensor in file.inputs}
            call: Callable[[], Any] = partial(file.invoke, encoded)
        else:
            call = partial(file.predict, named)
    else:
        model = load_model(str(folder))
        weights = sizes(model)
        scores = scores_of(model, samples.x, batch_size)
        sample = keras.tree.map_structure(tf.convert_to_tensor, one)
        compiled = tf.function(lambda inputs: model(inputs, training=False))
        call = partial(compiled, sample)
    weights = {key: value for key, value in weights.items() if not key.startswith("latency")}
    chosen = correct = None
    if samples.y is not None:
        chosen = highest(scores)
        score = accuracy(chosen, samples.y)  # checks the labels
        labels = np.asarray(samples.y).reshape(chosen.shape)
        correct = (chosen == labels).reshape(len(chosen), -1).mean(axis=1)
        weights = {"accuracy": score, **weights}
    elif isinstance(scores, np.ndarray) and scores.ndim > 1 and scores.shape[-1] > 1:
        chosen = highest(scores)
    return _Loaded(folder, weights, call, chosen, correct)


_SERVE = """
import sys, mlflow.models
folder, payload, answer = sys.argv[1:]
mlflow.models.predict(folder, input_path=payload, output_path=answer, env_manager="local")
"""


def _serve(folder: Path) -> str:
    """Has a new process answer the model's input example as a server would; says what is wrong.

    New, because what this process has imported might be all that lets the model load.
    """
    with tempfile.TemporaryDirectory() as temporary:
        payload, answer = Path(temporary, "request.json"), Path(temporary, "answer.json")
        content = Model.load(str(folder)).get_serving_input(str(folder))
        if content is None:
            return "it has no input example to answer: log it with input_example="
        payload.write_text(content)
        command = [sys.executable, "-c", _SERVE, str(folder.absolute()), str(payload), str(answer)]
        done = subprocess.run(command, cwd=temporary, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
            return f"mlflow.models.predict failed: {' '.join(last)}"[:_LONGEST_PROBLEM]
        answered = json.loads(answer.read_text())
    numbers = np.asarray(list(_numbers(answered["predictions"])), dtype=float)
    finite = numbers.size > 0 and bool(np.isfinite(numbers).all())
    return "" if finite else "it answers its input example with numbers that are not finite"


def _numbers(nested: Any) -> Any:
    if isinstance(nested, dict):
        nested = list(nested.values())
    if isinstance(nested, list):
        for each in nested:
            yield from _numbers(each)
    else:
        yield np.nan if nested is None else nested
