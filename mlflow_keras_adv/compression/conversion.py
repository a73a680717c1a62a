"""Converts a Keras model to a float `.tflite` file, and compares a file with its source."""

import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mlflow_keras_adv.compat.keras import export_litert
from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.compression.artifact import Arrays, Artifact
from mlflow_keras_adv.compression.copying import check_weights
from mlflow_keras_adv.compression.kernels import check_not_quantized, matrices
from mlflow_keras_adv.compression.precision import half_tolerance, in_float32
from mlflow_keras_adv.compression.samples import read_samples
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.metrics.agreement import agreement, decides, difference, losses_by_output
from mlflow_keras_adv.metrics.criteria import criteria_of
from mlflow_keras_adv.tflite.layers import operations_of_layers
from mlflow_keras_adv.tflite.runtime import LiteRTModel

TOLERANCE = 1e-4  # of the largest absolute output: float32 in another order, by other kernels
_BATCH = 32


@keeps_random_state()
def convert(model: keras.Model, x: Any, *, batch_size: int | None = None) -> Artifact:
    """Converts a model to a float32 `.tflite` file, also one that computes in 16 bits.

    Args:
        model: A built Keras 3 model; it stays as it is.
        x: Samples of real data, on which model and file are compared: an array of shape
            (samples, …), or a list or dict of such arrays; a list of samples or of batches; or a
            `tf.data.Dataset`, a `keras.utils.PyDataset` or a generator, with or without labels, of
            which 1,000 samples are taken at most. Where the number of samples a call has to be
            fixed, every other axis that the model leaves free gets the size it has here.
        batch_size: Fixed number of samples per call. By default it is free, or 1 for a model that
            LiteRT cannot run otherwise, such as one with an LSTM.

    Returns:
        The file, compared with the model on the samples.

    Raises:
        TypeError: `x` is something else.
        ValueError: `x` is empty or does not fit the model.
        UserError: The model has no weights yet, NaN in its weights or answers, is quantized
            already, cannot be converted, or LiteRT cannot run the file or answers otherwise.
    """
    check_weights(model)
    check_not_quantized(model)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more; got {batch_size}")
    x = read_samples(model, x)
    exact = in_float32(model)
    runner = _runner(exact, x, batch_size)
    feeds = arrays_by_name(model, runner, x)
    # Of the dtypes that calibration takes; what does not fit is refused by name.
    feeds = {tensor.name: tensor.encode(feeds[tensor.name]) for tensor in runner.inputs}
    expected = answers_of(model, x)
    if exact is not model:
        compare(runner.content, "float32", feeds, answers_of(exact, x), tolerance=TOLERANCE)
    tolerance = half_tolerance(model) or TOLERANCE
    losses = losses_of(model)
    artifact = compare(
        runner.content, "float32", feeds, expected, tolerance=tolerance, losses=losses
    )
    operations = operations_of_layers(runner.content, matrices(exact))
    return replace(artifact, operations=operations)


def compare(
    content: bytes,
    scheme: str,
    feeds: Arrays,
    expected: Arrays,
    *,
    tolerance: float | None = None,
    float_layers: tuple[str, ...] = (),
    losses: Mapping[str, Any] | None = None,
) -> Artifact:
    """Runs a file and holds it against what its source answers.

    Args:
        content: The file.
        scheme: Its name.
        feeds: Samples by the names of the file's inputs.
        expected: What the source answers on them, by the names of the file's outputs.
        tolerance: The largest `difference_max` allowed; None: any.
        float_layers: Kept in the result.
        losses: What the source was compiled with, by the outputs' names: it says which of them
            decide.

    Raises:
        UserError: LiteRT cannot run the file, it answers NaN or infinity, or differs by more.
    """
    try:
        runner = LiteRTModel(content)
        answer = runner.predict(feeds)
    except ValueError as error:
        raise UserError(f"scheme {scheme}: the converted model does not run: {error}") from error
    answers = answer if isinstance(answer, dict) else {runner.outputs[0].name: answer}
    apart = {"difference": 0.0, "difference_max": 0.0}
    shares = []
    for name, values in answers.items():
        source, loss = expected[name], (losses or {}).get(name)
        if values.shape != source.shape or not np.isfinite(values).all():
            raise UserError(
                f"scheme {scheme}: output {name!r} has the shape {values.shape} where its source "
                f"has {source.shape}, or holds NaN or infinity; the file is of no use"
            )
        found = difference(values, source)
        apart = {key: max(worst, found[key]) for key, worst in apart.items()}
        share = agreement(values, source, decides(loss, source), loss)
        shares += [] if share is None else [share]
    if tolerance is not None and apart["difference_max"] > tolerance:
        raise UserError(
            f"scheme {scheme}: LiteRT answers differently from Keras, by "
            f"{apart['difference_max']:.2g} of the largest answer, expected at most {tolerance:g}. "
            "Does the model behave randomly, or keep a state?"
        )
    return Artifact(
        content,
        scheme,
        apart["difference"],
        apart["difference_max"],
        agreement=min(shares, default=None),
        float_layers=float_layers,
        expected=expected,
        feeds=dict(feeds),
        losses=dict(losses or {}),
    )


def losses_of(model: keras.Model) -> dict[str, Any]:
    """The compiled losses of a model, by the names of its outputs in a file."""
    return losses_by_output(criteria_of(model))


def _runner(model: keras.Model, x: Any, batch_size: int | None) -> LiteRTModel:
    """The float file, running: with a free number of samples a call if LiteRT can."""
    refused = None
    for size in (batch_size,) if batch_size is not None else (None, 1):
        try:
            runner = LiteRTModel(_exported(model, x, size))
        except ValueError as error:
            refused = refused or error
            continue
        one = keras.tree.map_structure(lambda array: np.asarray(array)[:1], x)
        given = arrays_by_name(model, runner, one)
        feeds = {tensor.name: tensor.encode(given[tensor.name]) for tensor in runner.inputs}
        try:  # some load, and fail when they are called
            runner.predict(feeds)
            return runner
        except ValueError as error:
            refused = refused or error
    raise UserError(
        f"model {model.name!r} cannot be run by LiteRT: {refused}. Which of its layers is the "
        "reason? Convert it without its last ones, or give it layers that LiteRT has."
    ) from refused


def _exported(model: keras.Model, x: Any, batch_size: int | None) -> bytes:
    signature: list[Any] | None = None
    if batch_size is not None:
        arrays = keras.tree.flatten(x)
        inputs = getattr(model, "inputs", None) or [None] * len(arrays)
        specs = [
            tf.TensorSpec(
                (batch_size, *array.shape[1:]),
                array.dtype if each is None else each.dtype,
                None if each is None else each.name,
            )
            for array, each in zip(arrays, inputs, strict=True)
        ]
        signature = [keras.tree.pack_sequence_as(x, specs)]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow's own, about what it does itself
        file = Path(folder, "model.tflite")
        try:
            export_litert(model, file, signature, x)
        except Exception as error:  # what the converter raises has no end
            message = str(error).strip().splitlines() or [repr(error)]
            raise ValueError(f"it cannot be converted: {message[0]}") from error
        return file.read_bytes()


def arrays_by_name(model: keras.Model, runner: LiteRTModel, x: Any) -> Arrays:
    """`x` by the names of the file's inputs."""
    names = [tensor.name for tensor in runner.inputs]
    given = [np.asarray(each) for each in keras.tree.flatten(x)]
    keras_names = [tensor.name for tensor in getattr(model, "inputs", None) or []]
    if isinstance(x, Mapping) and set(x) == set(names):
        return {name: np.asarray(value) for name, value in x.items()}
    if len(given) != len(names):
        raise ValueError(f"x holds {len(given)} arrays; the model has the inputs {names}")
    return dict(zip(keras_names if set(keras_names) == set(names) else names, given, strict=True))


def answers_of(model: keras.Model, x: Any) -> Arrays:
    """The outputs of the model, by TensorFlow's names for outputs in a signature."""
    count = len(keras.tree.flatten(x)[0])
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, count, _BATCH):
        rows = slice(start, start + _BATCH)
        batch = keras.tree.map_structure(lambda array, rows=rows: np.asarray(array[rows]), x)
        outputs = model(batch, training=False)
        if not isinstance(outputs, Mapping):
            listed = outputs if isinstance(outputs, (list, tuple)) else [outputs]
            outputs = {f"output_{position}": each for position, each in enumerate(listed)}
        for name, output in outputs.items():
            values = np.asarray(keras.ops.convert_to_numpy(output))
            if str(values.dtype) in ("float16", "bfloat16"):
                values = values.astype("float32")
            parts.setdefault(name, []).append(values)
    answers = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    for name, values in answers.items():
        if not np.isfinite(values).all():
            raise UserError(
                f"model {model.name!r} answers NaN or infinity in {name!r} on the given samples; "
                "there is nothing to compare a smaller model with"
            )
    return answers
