"""What is done with a model of any kind; each checks its own numbers against Keras' or NumPy's.

A feature returns nothing, or a sentence about what it does instead; it raises `UserError`, the
package's own refusal, where it cannot.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf
from mlflow import MlflowClient

import mlflow_keras_adv as mka
from mlflow_keras_adv import compression, registry
from mlflow_keras_adv.compression.conversion import answers_of
from mlflow_keras_adv.tflite.runtime import LiteRTModel
from tests.kinds.models import Kind

SEED = 1
# Means over 48 samples in float32, of numbers near 1, summed in another order; and of 16 bits.
CLOSE, HALF = 1e-5, 2e-3
EPOCHS = 2

Feature = Callable[[Kind], str | None]


def _made(kind: Kind) -> tuple[Any, Any, Any]:
    keras.utils.set_random_seed(SEED)
    return kind()


def _fitted(kind: Kind, *callbacks: Any) -> tuple[Any, Any, Any, Any]:
    model, x, y = _made(kind)
    keras.utils.set_random_seed(SEED)
    options = {"epochs": EPOCHS, "batch_size": 16, "verbose": 0, "callbacks": list(callbacks)}
    history = model.fit(x, y, **options)
    return model, x, y, history.history


def _trained(kind: Kind) -> tuple[Any, Any, Any]:
    model, x, y, _ = _fitted(kind)
    return model, x, y


def _numbers(nested: Any) -> list[np.ndarray]:
    return [np.asarray(each) for each in keras.tree.flatten(nested)]


def _evaluated(model: Any, x: Any, y: Any) -> dict[str, float]:
    """Keras' values under our names, of one batch."""
    count = len(keras.tree.flatten(x)[0])
    named = model.evaluate(x, y, verbose=0, return_dict=True, batch_size=count)
    outputs = model.output_names if len(getattr(model, "output_names", None) or []) > 1 else []
    found = {}
    for name, value in named.items():
        output = next((each for each in outputs if name.startswith(f"{each}_")), None)
        found[f"{output}/{name.removeprefix(f'{output}_')}" if output else name] = float(value)
    return found


def _is_half(model: Any) -> bool:
    return any("16" in layer.compute_dtype for layer in model._flatten_layers())


def _same(ours: Any, theirs: Any, what: str) -> None:
    assert ours == pytest.approx(theirs, rel=CLOSE, abs=1e-6, nan_ok=True), what


def recorded(kind: Kind) -> str | None:
    """`fit` with MlflowLogger: bit-equal to plain, epoch values on record as Keras has them."""
    plain, *_, history = _fitted(kind)
    with mka.track("recorded") as run:
        watched, *_, seen = _fitted(kind, mka.MlflowLogger())
    for ours, theirs in zip(watched.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert seen == history
    client = MlflowClient()
    metrics = client.get_run(run.run_id).data.metrics
    outputs = plain.output_names if len(getattr(plain, "output_names", None) or []) > 1 else []
    for name, values in history.items():
        output = next((each for each in outputs if name.startswith(f"{each}_")), None)
        key = f"{output}/{name.removeprefix(f'{output}_')}" if output else name
        there = [metrics.get(f"train/{each}") for each in (name, key)]
        assert values[-1] in there, (name, sorted(metrics))
    updates = client.get_metric_history(run.run_id, "gradient/norm")
    assert len(updates) in (3 * EPOCHS, 3 * EPOCHS // 2)  # half of them with accumulation
    return None


def layers_recorded(kind: Kind) -> str | None:
    """LayerNorms: the squares of all layers make up that of the global norm, at each update."""
    with mka.track("layers") as run:
        _fitted(kind, mka.MlflowLogger(), mka.LayerNorms())
    path = mlflow.artifacts.download_artifacts(f"runs:/{run.run_id}/gradients/layers.parquet")
    import pandas as pd

    rows = pd.read_parquet(path).dropna(subset="gradient_norm")
    totals = rows.groupby("step")["gradient_norm"].apply(lambda each: math.sqrt((each**2).sum()))
    points = MlflowClient().get_metric_history(run.run_id, "gradient/norm")
    assert totals.index.tolist() == [point.step for point in points]
    for point in points:
        assert totals[point.step] == pytest.approx(point.value, rel=1e-4)
    return None


def predicted(kind: Kind) -> str | None:
    """Predictions: pictures and a table while it trains; weights as without."""
    plain, x, y, _ = _fitted(kind)
    with mka.track("predictions") as run:
        watched, *_ = _fitted(kind, mka.Predictions(x, y))
    for ours, theirs in zip(watched.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    files = _files(run.run_id)
    if not any("predictions" in each for each in files):
        return "draws nothing, and says so"
    return None


def finished(kind: Kind) -> str | None:
    """`log_finished_model`: `final/…` is what `evaluate` says; it answers the same when loaded."""
    model, x, y = _trained(kind)
    truth = _evaluated(model, x, y)
    with mka.track("finished"):
        done = mka.log_finished_model(model, x, y, name="net", tolerance=_tolerance(kind))
    for name, value in truth.items():
        assert done.final[name] == pytest.approx(
            value, rel=HALF if _is_half(model) else CLOSE, abs=1e-6
        ), name
    loaded = mka.load_model(done.info.model_uri)
    few = keras.tree.map_structure(lambda array: tf.convert_to_tensor(array[:4]), x)
    for ours, theirs in zip(
        _numbers(loaded(few, training=False)), _numbers(model(few, training=False)), strict=True
    ):
        largest = float(np.abs(theirs).max()) or 1.0
        np.testing.assert_allclose(ours, theirs, atol=_tolerance(kind, 1e-4) * largest)
    return None


def promoted(kind: Kind) -> str | None:
    """`registry.promote`: the measured numbers are Keras', a worse model is refused."""
    model, x, y = _trained(kind)
    name = f"kind.{kind.__name__}"
    truth = _evaluated(model, x, y)
    arrays = keras.tree.map_structure(np.asarray, x)
    samples = registry.Samples(arrays, y, slices={"half": np.arange(len(_numbers(x)[0])) % 2})
    gates = [registry.non_inferiority(margin=0.05), registry.difference(1e-3)]
    with mka.track("promoted"):
        options = {"tolerance": _tolerance(kind)}
        uri = mka.log_finished_model(model, x, y, name="net", **options).info.model_uri
        first = registry.promote(name, uri, data=samples, gates=gates, measure=_measure)
        worse = [each + 0.5 * np.sign(each) for each in model.get_weights()]
        if kind.__name__ == "int8_layers":  # which rounding moves by steps
            worse = [each if each.dtype == np.int8 else each * 2 + 1 for each in worse]
            worse = [a.astype(b.dtype) for a, b in zip(worse, model.get_weights(), strict=True)]
        model.set_weights(worse)
        other = mka.log_finished_model(model, x, y, name="worse", **options).info.model_uri
        second = registry.promote(name, other, data=samples, gates=gates, measure=_measure)
    found = first.evidence.measured["candidate"]
    assert found.problem == "", found.problem
    for key, value in truth.items():
        assert found.metrics[key] == pytest.approx(value, rel=HALF, abs=1e-5), key
    assert first.outcome == "promoted", str(first)
    assert second.outcome == "refused", str(second)
    assert set(found.slices) == {"half=0", "half=1"}
    return None


def evaluated(kind: Kind) -> str | None:
    """`mlflow.models.evaluate` with the evaluator keras_adv."""
    import pandas as pd

    model, x, y = _trained(kind)
    if y is None or len(keras.tree.flatten(y)) > 1 or len(keras.tree.flatten(x)) > 1:
        return "MLflow's own call takes one input and one column of labels"
    if tf.as_dtype(getattr(x, "dtype", tf.float32)) == tf.string:
        return "MLflow's own call takes numbers"
    truth = _evaluated(model, x, y)
    with mka.track("evaluated"):
        uri = mka.log_finished_model(
            model, x, y, name="net", tolerance=_tolerance(kind)
        ).info.model_uri
    data = pd.DataFrame({"x": list(np.asarray(x)), "y": list(np.asarray(y))})
    real = np.asarray(y).dtype.kind == "f" and not np.isin(np.asarray(y), (0, 1)).all()
    with mlflow.start_run():
        result = mlflow.models.evaluate(
            uri,
            data,
            targets="y",
            model_type="regressor" if real else "classifier",
            evaluators="keras_adv",
            evaluator_config={"repeats": 2},
        )
    common = {key: value for key, value in truth.items() if f"final/{key}" in result.metrics}
    for key, value in common.items():
        assert result.metrics[f"final/{key}"] == pytest.approx(value, rel=HALF, abs=1e-5), key
    return (
        None if common else "measures its footprint; the metrics it was compiled with are its own"
    )


def converted(kind: Kind) -> str | None:
    """`convert`: the float file answers as Keras does."""
    model, x, _ = _trained(kind)
    artifact = compression.convert(model, x)
    _near(artifact.content, model, x, 1e-2 if _is_half(model) else 1e-3)
    return None


def quantized(kind: Kind) -> str | None:
    """`quantize(int8)`, held to what the model is for; scored by the model's own metrics."""
    model, x, y = _trained(kind)
    artifact = compression.quantize(model, compression.int8, x)
    with mka.track("int8"):
        done = mka.log_finished_file(artifact.content, x, y, name="int8", reference=model)
    if y is not None:
        expected = set(_evaluated(model, x, y))
        assert expected <= set(done.final), expected - set(done.final)
    _near(artifact.content, model, x, 0.2)
    return None


def pruned(kind: Kind) -> str | None:
    """`prune`: half of each kernel that serves is zero."""
    model, x, y = _trained(kind)
    result = compression.prune(model, _train(x, y), sparsity=0.5, verbose=0)
    assert [row for row in result.layers if row.target]
    kernels = [
        np.asarray(layer.kernel)
        for layer in result.model._flatten_layers()
        if isinstance(layer, keras.layers.Dense)
    ]
    zeros = [np.mean(kernel == 0) for kernel in kernels if kernel.size > 3]
    assert all(share >= 0.45 for share in zeros), zeros
    return None


def clustered(kind: Kind) -> str | None:
    """`cluster`: each kernel of a Dense layer has four values."""
    model, x, y = _trained(kind)
    result = compression.cluster(model, _train(x, y), clusters=4, verbose=0)
    for layer in result.model._flatten_layers():
        if isinstance(layer, keras.layers.Dense) and np.size(layer.kernel) > 8:
            assert len(np.unique(np.asarray(layer.kernel))) <= 4, layer.name
    return None


def trained_for_int8(kind: Kind) -> str | None:
    """`quantize_aware`: a file near the model that was trained with its rounding."""
    model, x, y = _trained(kind)
    artifact = compression.quantize_aware(model, _train(x, y), verbose=0)
    assert artifact.trained_difference is not None
    assert artifact.trained_difference < 0.05
    return None


FEATURES: dict[str, Feature] = {
    "record": recorded,
    "LayerNorms": layers_recorded,
    "Predictions": predicted,
    "finished": finished,
    "promote": promoted,
    "evaluator": evaluated,
    "convert": converted,
    "int8": quantized,
    "prune": pruned,
    "cluster": clustered,
    "QAT": trained_for_int8,
}


def _tolerance(kind: Kind, usual: float | None = None) -> Any:
    """Keras rounds int8 layers anew when they are saved."""
    return 0.05 if kind.__name__ == "int8_layers" else usual


def _measure(folders: Any, samples: Any) -> Any:
    return mka.measure_models([Path(each) for each in folders], samples, rounds=1, repeats=1)


def _train(x: Any, y: Any) -> Any:
    return (x, y) if y is not None else (x,)


def _near(content: bytes, model: Any, x: Any, tolerance: float) -> None:
    arrays = keras.tree.map_structure(np.asarray, x)
    runner = LiteRTModel(content)
    expected = answers_of(model, arrays)
    from mlflow_keras_adv.compression.conversion import arrays_by_name

    found = runner.predict(arrays_by_name(model, runner, arrays))
    named = found if isinstance(found, dict) else {next(iter(expected)): found}
    for name, values in expected.items():
        root = math.sqrt(float(np.mean((named[name] - values) ** 2)))
        assert root <= tolerance * math.sqrt(float(np.mean(values**2))), name


def _files(run_id: str, path: str = "") -> list[str]:
    client, found = MlflowClient(), []
    for each in client.list_artifacts(run_id, path or None):
        found += _files(run_id, each.path) if each.is_dir else [each.path]
    return found
