"""Size, latency, memory and FLOPs of a `.tflite` file in LiteRT."""

import gzip
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np

from mlflow_keras_adv.metrics.flops import flops_and_said
from mlflow_keras_adv.metrics.footprint import latency_ms
from mlflow_keras_adv.tflite import runtime
from mlflow_keras_adv.tflite.runtime import LiteRTModel
from mlflow_keras_adv.tflite.weights import file_weights


def file_footprint(
    content: bytes,
    x: Any,
    *,
    batch_size: int = 32,
    repeats: int = 200,
) -> dict[str, float]:
    """Measures size, latency, memory and FLOPs of a `.tflite` file in LiteRT.

    Args:
        content: The file.
        x: Input of `LiteRTModel.predict`, at least one sample.
        batch_size: Samples per call for the latencies of a batch.
        repeats: Timed calls for each of the four latencies.

    Returns:
        Values by the names of `footprint`: size_bytes and gzip_bytes of the file; parameters,
        nonzeros and sparsity of the weights stored in it (normalization is mostly folded into
        them); flops (for a quantized file: integer operations); latency_ms_p50 and p95 for one
        sample on one thread, in ms. Further:

        - latency_all_threads_ms_p50, …_p95: for one sample, on as many threads as this process has
          processors.
        - latency_batch_ms_p50, …_p95: for `batch_size` samples on one thread.
        - latency_batch_all_threads_ms_p50, …_p95: for `batch_size` samples on all threads.
        - peak_memory_bytes: peak growth of the memory of a new process that loads the file and
          predicts `batch_size` samples. On Linux only.

    Raises:
        ValueError: Not a `.tflite` file that LiteRT can run; else as in `footprint`.
    """
    return file_footprint_and_said(content, x, batch_size=batch_size, repeats=repeats)[0]


def file_footprint_and_said(
    content: bytes, x: Any, *, batch_size: int = 32, repeats: int = 200
) -> tuple[dict[str, float], str]:
    """`file_footprint`, and what of its flops is not counted, in a sentence; empty if all is."""
    model = LiteRTModel(content)
    named = {name: np.asarray(array) for name, array in model.named(x).items()}
    if any(len(array) == 0 for array in named.values()):
        raise ValueError("file_footprint needs at least one sample in x; got none")
    measured: dict[str, float] = {}
    weights = file_weights(content)
    kernels = [weight for weight in weights if weight.values.ndim >= 2]
    measured["parameters"] = float(sum(weight.values.size for weight in weights))
    zeros = sum(weight.zeros for weight in weights)
    measured["nonzeros"] = measured["parameters"] - zeros
    zeros = sum(weight.zeros for weight in kernels)
    measured["sparsity"] = zeros / max(1, sum(weight.values.size for weight in kernels))
    measured["size_bytes"] = float(len(content))
    measured["gzip_bytes"] = float(len(gzip.compress(content, compresslevel=9, mtime=0)))
    batch = {
        name: np.resize(array, (batch_size, *array.shape[1:])) for name, array in named.items()
    }
    for key, samples, threads in (
        ("latency", 1, 1),
        ("latency_all_threads", 1, _processors()),
        ("latency_batch", batch_size, 1),
        ("latency_batch_all_threads", batch_size, _processors()),
    ):
        fed = {name: array[:samples] for name, array in batch.items()}
        times = _latencies(content, fed, threads, repeats)
        for percent in (50, 95):
            measured[f"{key}_ms_p{percent}"] = float(np.percentile(times, percent))
    if sys.platform == "linux":
        measured["peak_memory_bytes"] = _peak_memory(content, batch)
    from mlflow_keras_adv.tflite.flops import file_flops  # needs LiteRT

    counted, said = flops_and_said(lambda: file_flops(content, named))
    return measured | counted, said


def weight_table(content: bytes) -> list[dict[str, Any]]:
    """Tabulates the weights of a `.tflite` file.

    Args:
        content: A file that LiteRT can run.

    Returns:
        A row for each weight: its name, dtype, shape, numbers, distinct numbers, nonzeros, sparsity
        (share that encodes 0) and size_bytes.
    """
    return [
        {
            "weight": each.name,
            "dtype": each.dtype,
            "shape": "x".join(map(str, each.values.shape)),
            "numbers": each.values.size,
            "distinct": len(np.unique(each.values)),
            "nonzeros": each.values.size - each.zeros,
            "sparsity": each.zeros / max(1, each.values.size),
            "size_bytes": each.size_bytes,
        }
        for each in file_weights(content)
    ]


def _latencies(
    content: bytes, fed: dict[str, np.ndarray], threads: int, repeats: int
) -> np.ndarray:
    model = LiteRTModel(content, num_threads=threads)
    samples = len(next(iter(fed.values())))
    if model.rows not in (-1, samples):  # the file takes another number a call
        params = {"num_threads": threads}
        return latency_ms(lambda: model.predict(fed, params), repeats=repeats)
    encoded = {tensor.name: tensor.encode(fed[tensor.name]) for tensor in model.inputs}
    return latency_ms(lambda: model.invoke(encoded), repeats=repeats)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


# The high-water mark of a process' own memory; getrusage would give its parent's, from before exec.
_CHILD = """
import runpy, sys
import numpy as np
LiteRTModel = runpy.run_path(sys.argv[1])["LiteRTModel"]

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

before = peak()
with np.load(sys.argv[3]) as feeds:
    batch = dict(feeds)
size = len(next(iter(batch.values())))
LiteRTModel(open(sys.argv[2], "rb").read()).predict(batch, {"batch_size": size})
print(peak() - before)
"""


def _peak_memory(content: bytes, batch: dict[str, np.ndarray]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        file, feeds = Path(folder, "model.tflite"), Path(folder, "batch.npz")
        file.write_bytes(content)
        np.savez(feeds, **cast(dict[str, Any], batch))
        command = [sys.executable, "-c", _CHILD, runtime.__file__, str(file), str(feeds)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)
