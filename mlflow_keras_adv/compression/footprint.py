"""What a finished model scores, weighs and takes: the `final/…` values of a run, without MLflow."""

import gzip
import operator
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mlflow_keras_adv.training.saving import save_without_optimizer


def footprint(
    model: keras.Model,
    x: Any,
    y: np.ndarray | None = None,
    *,
    reference: keras.Model | None = None,
    batch_size: int = 32,
    repeats: int = 200,
) -> dict[str, float]:
    """Measures a finished model on given data.

    Args:
        model: A built model; it stays as it is. With `y` or `reference` it must be a classifier
            with one output of scores (logits or probabilities), shape (samples, …, classes).
        x: What `model` takes: an array of shape (samples, …), or a list or dict of such arrays.
        y: Integer labels from 0, shape (samples, …) or (samples, …, 1): the scores' shape without
            the classes.
        reference: Another classifier of the same classes, as the teacher or the unpruned model.
        batch_size: Samples a call of the second latency.
        repeats: Calls whose latency is measured, for each of the two.

    Returns:
        By name:

        - accuracy: share of labels with the highest score; only with `y`. Where a score is NaN the
          answer is wrong.
        - agreement: share of samples on which `model` and `reference` choose the same class; only
          with `reference`. Where a score is NaN they do not.
        - parameters: count of numbers in the weights, trainable or not.
        - nonzeros: how many of these numbers are not exactly 0.
        - sparsity: share of exact zeros in the weights of rank 2 and more, frozen ones too (kernels
          and embeddings; not biases or statistics); 0 if there are none.
        - size_bytes: of the `.keras` file without optimizer state.
        - gzip_bytes: of that file after gzip at level 9. The file holds the time at which it was
          written, so this varies by a few bytes.
        - latency_ms_p50, latency_ms_p95: median and 95th percentile of the milliseconds that the
          compiled model takes for one sample; see `latency_ms`.
        - latency_batch_ms_p50, latency_batch_ms_p95: the same of `batch_size` samples.

    Raises:
        ValueError: No samples, labels that do not fit the scores, or fewer than two classes.
    """
    if any(len(array) == 0 for array in keras.tree.flatten(x)):
        raise ValueError("footprint needs at least one sample in x; got none")
    measured: dict[str, float] = {}
    if y is not None or reference is not None:
        chosen = highest(scores_of(model, x))
        if y is not None:
            measured["accuracy"] = accuracy(chosen, y)
        if reference is not None:
            other = highest(scores_of(reference, x))
            measured["agreement"] = agreement(chosen, other)
    measured |= sizes(model)
    for key, samples in (("latency", 1), ("latency_batch", batch_size)):
        times = _latencies(model, x, samples, repeats)
        for percent in (50, 95):
            measured[f"{key}_ms_p{percent}"] = float(np.percentile(times, percent))
    return measured


def sizes(model: keras.Model) -> dict[str, float]:
    """The part of `footprint` that needs no data: parameters, nonzeros, sparsity and bytes."""
    measured: dict[str, float] = {}
    measured["parameters"] = float(model.count_params())
    weights = model.get_weights()
    measured["nonzeros"] = float(sum(np.count_nonzero(weight) for weight in weights))
    measured["sparsity"] = sparsity(weights)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.keras")
        save_without_optimizer(model, file)
        content = file.read_bytes()
    measured["size_bytes"] = float(len(content))
    measured["gzip_bytes"] = float(len(gzip.compress(content, compresslevel=9, mtime=0)))
    return measured


def highest(scores: Any) -> np.ndarray:
    """The class with the highest score.

    Args:
        scores: Floats of shape (samples, …, classes).

    Returns:
        int64 of shape (samples, …); -1 where a score is NaN.

    Raises:
        ValueError: Not one array, or fewer than two classes: a single sigmoid has no highest.
    """
    if not isinstance(scores, np.ndarray) or scores.ndim < 2 or scores.shape[-1] < 2:
        shape = getattr(scores, "shape", None)
        raise ValueError(
            "accuracy and agreement need one output of shape (samples, …, classes) with at least "
            f"two classes; got {type(scores).__name__ if shape is None else f'shape {shape}'}"
        )
    return np.where(np.isnan(scores).any(axis=-1), -1, scores.argmax(axis=-1))


def accuracy(chosen: np.ndarray, y: np.ndarray) -> float:
    """Share of `chosen` classes that equal the labels `y`.

    Args:
        chosen: From `highest`, shape (samples, …).
        y: Integers from 0, of that shape or with a last axis of 1.

    Raises:
        ValueError: Labels of another shape (such as one-hot), negative, or not whole numbers.
    """
    labels = np.asarray(y)
    if labels.shape == (*chosen.shape, 1):
        labels = labels[..., 0]
    if labels.shape != chosen.shape:
        raise ValueError(
            f"labels of shape {chosen.shape} fit these predictions; got {labels.shape}. "
            "One-hot labels become integers by y.argmax(axis=-1)."
        )
    if not np.array_equal(labels, labels.astype(np.int64)) or labels.min() < 0:
        raise ValueError(f"labels must be whole numbers from 0; got {labels.dtype} {labels.min()}…")
    return float(np.mean(chosen == labels))


def agreement(chosen: np.ndarray, other: np.ndarray) -> float:
    """Share of samples on which two models choose the same class; where one has NaN they do not.

    Args:
        chosen: From `highest`, shape (samples, …).
        other: Of the same shape.
    """
    if chosen.shape != other.shape:
        raise ValueError(f"two models' choices differ in shape: {chosen.shape} and {other.shape}")
    return float(np.mean((chosen == other) & (chosen >= 0)))


def sparsity(weights: list[np.ndarray]) -> float:
    """Share of exact zeros among the weights of rank 2 and more; 0 if there are none."""
    kernels = [weight for weight in weights if weight.ndim >= 2]
    zeros = sum(int(np.count_nonzero(kernel == 0)) for kernel in kernels)
    return zeros / max(1, sum(kernel.size for kernel in kernels))


def weight_rows(model: keras.Model) -> list[dict[str, Any]]:
    """The weights of a model as rows, for a table: what each layer stores.

    Returns:
        By weight: its path, dtype, shape, numbers, nonzeros, sparsity (share of exact zeros) and
        size_bytes.
    """
    rows = []
    for weight in model.weights:
        values = np.asarray(weight)
        nonzeros = int(np.count_nonzero(values))
        rows.append(
            {
                "weight": weight.path,
                "dtype": str(weight.dtype),
                "shape": "x".join(map(str, values.shape)),
                "numbers": values.size,
                "nonzeros": nonzeros,
                "sparsity": 1 - nonzeros / max(1, values.size),
                "size_bytes": values.nbytes,
            }
        )
    return rows


def latency_ms(call: Callable[[], Any], *, repeats: int, warm_up: int = 10) -> np.ndarray:
    """How long single calls take, from the input's tensors to the output's numbers in NumPy.

    Threads and device are those of the process: TensorFlow's thread settings are global and are
    left alone. So compare numbers of one process, on an idle machine.

    Args:
        call: Returns a tensor, or a list or dict of tensors; compiled on its first call.
        repeats: Calls that are measured.
        warm_up: Calls before them, which are not.

    Returns:
        Milliseconds, float64 of shape (repeats,).
    """
    if repeats < 1:
        raise ValueError(f"latency needs at least 1 repeat; got {repeats}")
    times = np.empty(warm_up + repeats)
    for position in range(len(times)):
        start = time.perf_counter_ns()
        keras.tree.map_structure(keras.ops.convert_to_numpy, call())  # waits for the device
        times[position] = (time.perf_counter_ns() - start) / 1e6
    return times[warm_up:]


def scores_of(model: keras.Model, x: Any, batch_size: int = 256) -> np.ndarray:
    """What a model with one output answers to `x`, in inference mode, in batches."""
    # Not by predict(): with several models in a process TensorFlow takes the one function that each
    # of them needs for retracing, and warns.
    answers = []
    for start in range(0, len(keras.tree.flatten(x)[0]), batch_size):
        rows = slice(start, start + batch_size)
        batch = keras.tree.map_structure(operator.itemgetter(rows), x)
        answers.append(keras.ops.convert_to_numpy(model(batch, training=False)))
    return np.concatenate(answers)


def _latencies(model: keras.Model, x: Any, samples: int, repeats: int) -> np.ndarray:
    """Of the compiled model; the samples of `x` are repeated if there are too few."""
    fed = keras.tree.map_structure(
        lambda array: tf.convert_to_tensor(np.resize(array[:samples], (samples, *array.shape[1:]))),
        x,
    )
    call = tf.function(lambda inputs: model(inputs, training=False))
    return latency_ms(lambda: call(fed), repeats=repeats)
