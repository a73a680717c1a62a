"""Size, latency and FLOPs of a finished model: the `final/…` values of a run, without MLflow."""

import gzip
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mlflow_keras_adv.metrics.flops import flops_and_said, flops_of_call
from mlflow_keras_adv.serialization.saving import save_without_optimizer

_FEWEST = 10  # calls, of which a median says something


def footprint(
    model: keras.Model, x: Any, *, batch_size: int = 32, repeats: int = 200
) -> dict[str, float]:
    """Measures size, latency and FLOPs of a finished model.

    Args:
        model: A built model; it stays as it is.
        x: Input of the model: an array of shape (samples, …), or a list or dict of these.
        batch_size: Samples per call for the latency of a batch.
        repeats: Timed calls for each of the two latencies; fewer for a slow model, see
            `latency_ms`.

    Returns:
        By name:

        - parameters: count of numbers in the weights, trainable or not.
        - nonzeros: how many of these numbers are not exactly 0.
        - sparsity: share of exact zeros in the weights of rank 2 and more, frozen ones too (kernels
          and embeddings; not biases or statistics); 0 if there are none.
        - size_bytes: of the `.keras` file without optimizer state.
        - gzip_bytes: of that file after gzip at level 9. The file holds the time at which it was
          written, so this varies by a few bytes.
        - latency_ms_p50, latency_ms_p95: median and 95th percentile of the latency of the compiled
          model for one sample, in ms; see `latency_ms`.
        - latency_batch_ms_p50, latency_batch_ms_p95: the same for `batch_size` samples.
        - flops: floating-point operations of a forward pass of one sample, a multiply-add counted
          as 2; see `metrics.flops`. Missing if they cannot be counted.

    Raises:
        ValueError: There are no samples.
    """
    return footprint_and_said(model, x, batch_size=batch_size, repeats=repeats)[0]


def footprint_and_said(
    model: keras.Model, x: Any, *, batch_size: int = 32, repeats: int = 200
) -> tuple[dict[str, float], str]:
    """`footprint`, and what of its flops is not counted, in a sentence; empty if all is."""
    if any(len(array) == 0 for array in keras.tree.flatten(x)):
        raise ValueError("footprint needs at least one sample in x; got none")
    measured = sizes(model)
    said = ""
    for key, samples in (("latency", 1), ("latency_batch", batch_size)):
        call, fed = _compiled(model, x, samples)
        times = latency_ms(partial(call, fed), repeats=repeats)
        for percent in (50, 95):
            measured[f"{key}_ms_p{percent}"] = float(np.percentile(times, percent))
        if samples == 1 and "flops" not in measured:  # what has been traced is not traced anew
            counted, said = flops_and_said(
                partial(flops_of_call, model, partial(call.get_concrete_function, fed), fed)
            )
            measured |= counted
    return measured, said


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


def sparsity(weights: list[np.ndarray]) -> float:
    """Share of exact zeros among the weights of rank 2 and more; 0 if there are none."""
    kernels = [weight for weight in weights if weight.ndim >= 2]
    zeros = sum(int(np.count_nonzero(kernel == 0)) for kernel in kernels)
    return zeros / max(1, sum(kernel.size for kernel in kernels))


def weight_rows(model: keras.Model) -> list[dict[str, Any]]:
    """Tabulates the weights of a model.

    Returns:
        A row for each weight: its path, dtype, shape, numbers, nonzeros, sparsity (share of exact
        zeros) and size_bytes.
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


def latency_ms(
    call: Callable[[], Any], *, repeats: int, warm_up: int = 10, seconds: float = 5.0
) -> np.ndarray:
    """Times single calls, from the tensors of the input to NumPy arrays of the output.

    Threads and device are those of the process: TensorFlow's thread settings are global and are
    left unchanged. So compare numbers of one process, on an idle machine.

    Args:
        call: Returns a tensor, or a list or dict of tensors; compiled on its first call.
        repeats: Number of timed calls.
        warm_up: Number of calls before them that are not timed.
        seconds: Time limit, after which it stops, but not before two calls to warm up and ten timed
            calls, or as many as were asked for.

    Returns:
        Milliseconds, float64 of shape (calls,).
    """
    if repeats < 1:
        raise ValueError(f"latency needs at least 1 repeat; got {repeats}")
    begun = time.perf_counter()
    for count in range(warm_up):
        keras.tree.map_structure(keras.ops.convert_to_numpy, call())
        if count >= 1 and time.perf_counter() - begun > seconds / 4:
            break
    times: list[float] = []
    while len(times) < repeats:
        start = time.perf_counter_ns()
        keras.tree.map_structure(keras.ops.convert_to_numpy, call())  # waits for the device
        times.append((time.perf_counter_ns() - start) / 1e6)
        if len(times) >= _FEWEST and time.perf_counter() - begun > seconds:
            break
    return np.array(times)


def _compiled(model: keras.Model, x: Any, samples: int) -> tuple[Any, Any]:
    """The compiled model, and what to call it on; `x` is repeated if it has too few samples."""
    fed = keras.tree.map_structure(
        lambda array: tf.convert_to_tensor(np.resize(array[:samples], (samples, *array.shape[1:]))),
        x,
    )
    return tf.function(lambda inputs: model(inputs, training=False)), fed
