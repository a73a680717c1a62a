"""Models of any task are measured side by side and promoted; the numbers are Keras' own."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from sklearn.metrics import roc_auc_score

import mlflow_keras_adv as mka
from mlflow_keras_adv import cli, registry
from mlflow_keras_adv.compression.conversion import convert
from mlflow_keras_adv.registry import Measurements, Samples
from tests.metrics.test_score import (
    CLOSE,
    KINDS,
    RNG,
    N,
    X,
    binary,
    dense,
    expected,
    multi_label,
    own_step,
    regression,
    tokens,
    two_outputs,
)


def measured(*uris: str, samples: Samples) -> list[Measurements]:
    folders = [Path(mlflow.artifacts.download_artifacts(uri)) for uri in uris]
    return mka.measure_models(folders, samples, rounds=1, repeats=1)


def logged(model: keras.Model, x: Any, **options: Any) -> str:
    example = keras.tree.map_structure(lambda array: array[:2], x)
    return str(mka.log_model(model, name="net", input_example=example, **options).model_uri)


def moved(model: keras.Model, by: float) -> keras.Model:
    """The same model, a little worse or better."""
    weights = [each + by * RNG.normal(size=each.shape) for each in model.get_weights()]
    model.set_weights(weights)
    return model


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_model_scores_what_keras_says_when_it_comes_from_the_store(
    experiment: str, kind: Callable[[], Any]
) -> None:
    model, x, y = kind()
    truth = expected(model, x, y)
    (found,) = measured(logged(model, x), samples=Samples(x, y))
    assert (found.problem, found.unscored) == ("", "")
    for name, value in truth.items():
        assert found.metrics[name] == pytest.approx(value, **CLOSE), name
    assert found.metrics["latency_ms_p50"] > 0
    if kind is not own_step:  # of its own metric nobody knows the direction
        assert found.directions[found.deciding] == ("max" if "acc" in found.deciding else "min")


def test_sample_weights_count(experiment: str) -> None:
    model, x, y = regression()
    weight = RNG.random(N).astype(np.float32)
    (found,) = measured(logged(model, x), samples=Samples(x, y, sample_weight=weight))
    for name, value in expected(model, x, y, weight).items():
        assert found.metrics[name] == pytest.approx(value, **CLOSE), name


@pytest.mark.parametrize("kind", [regression, binary, multi_label, two_outputs])
def test_a_file_is_scored_by_what_its_source_was_compiled_with(
    experiment: str, client: MlflowClient, kind: Callable[[], Any]
) -> None:
    model, x, y = kind()
    content = convert(model, x).content
    with mka.track("file") as run:
        finished = mka.log_finished_file(content, x, y, name="file", reference=model)
    truth = expected(model, x, y)
    for name, value in truth.items():
        assert finished.final[name] == pytest.approx(value, rel=1e-4), name
    file, source = measured(str(finished.info.model_uri), logged(model, x), samples=Samples(x, y))
    for name, value in truth.items():
        assert file.metrics[name] == pytest.approx(value, rel=1e-4), name
        assert source.metrics[name] == pytest.approx(value, **CLOSE), name
    assert file.beside["difference_max"] < 1e-4
    assert set(file.per_sample) == set(source.per_sample) != set()
    assert client.get_run(run.run_id).data.metrics["final/loss"] == finished.final["loss"]


def test_outputs_and_inputs_in_lists_keep_their_order(experiment: str) -> None:
    """A file orders its inputs and outputs by name, Keras as they were given."""
    z, a = keras.Input((2,), name="z"), keras.Input((6,), name="a")
    both = keras.layers.Concatenate()([z, a])
    outputs = [keras.layers.Dense(3, name="y")(both), keras.layers.Dense(1, name="b")(both)]
    model = keras.Model([z, a], outputs)
    classes = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=[classes, "mse"], metrics=[["accuracy"], ["mae"]])
    x, y = [X[:, :2], X], [X[:, :3].argmax(1), X[:, :1]]
    content = convert(model, x).content
    with mka.track("file"):
        finished = mka.log_finished_file(content, x, y, name="file", reference=model)
    truth = expected(model, x, y)
    assert set(truth) == {"loss", "y/loss", "b/loss", "y/accuracy", "b/mae"}
    uris = str(finished.info.model_uri), logged(model, x)
    for found in measured(*uris, samples=Samples(x, y)):
        assert found.unscored == ""
        for name, value in truth.items():
            assert found.metrics[name] == pytest.approx(value, rel=1e-4), name


def test_both_are_scored_by_what_the_first_was_compiled_with(experiment: str) -> None:
    model, x, y = regression()
    champion = keras.models.clone_model(model)
    champion.compile(loss="huber", metrics=["mape"])
    ours, theirs = measured(logged(model, x), logged(champion, x), samples=Samples(x, y))
    champion.compile(loss="mse", metrics=["mae"])
    truth = expected(champion, x, y)
    assert theirs.metrics["mae"] == pytest.approx(truth["mae"], **CLOSE)
    assert set(ours.per_sample) == set(theirs.per_sample)
    answers, other = np.asarray(model(x)), np.asarray(champion(x))
    apart = np.sqrt(np.mean((answers - other) ** 2) / np.mean(other**2))
    assert ours.beside["difference"] == pytest.approx(apart, rel=1e-5)
    assert "agreement" not in ours.beside


def test_models_with_an_evaluation_of_their_own_are_held_against_each_other(
    experiment: str,
) -> None:
    model, x, _ = own_step()
    ours, theirs = logged(model, x), logged(moved(own_step()[0], 0.1), x)
    found, _ = measured(ours, theirs, samples=Samples(x))
    assert found.metrics["reconstruction"] > 0
    assert found.beside["difference"] > 0


def test_metrics_are_given_for_a_model_that_keeps_none(experiment: str) -> None:
    _, x, y = binary()
    model = dense(1)
    (found,) = measured(logged(model, x), samples=Samples(x, y))
    assert "was not compiled" in found.unscored
    folder = Path(mlflow.artifacts.download_artifacts(logged(model, x)))
    (found,) = mka.measure_models(
        [folder], Samples(x, y), metrics=[roc_auc_score], rounds=1, repeats=1
    )
    assert found.metrics["roc_auc_score"] == roc_auc_score(y, np.asarray(model(x)))
    assert found.deciding == "roc_auc_score"


def test_metrics_that_a_model_was_finished_with_are_kept_beside_it(experiment: str) -> None:
    _, x, y = binary()
    model = dense(1)
    with mka.track("finished"):
        finished = mka.log_finished_model(
            model,
            x,
            y,
            name="net",
            metrics=[roc_auc_score, keras.metrics.BinaryAccuracy(threshold=0.0)],
        )
    (found,) = measured(str(finished.info.model_uri), samples=Samples(x, y))
    for name in ("roc_auc_score", "binary_accuracy"):
        assert found.metrics[name] == pytest.approx(finished.final[name], **CLOSE)


def test_groups_of_samples_are_measured_by_themselves(experiment: str) -> None:
    for kind in (regression, tokens, two_outputs):
        model, x, y = kind()
        side = np.where(np.arange(N) % 3 == 0, "left", "right")
        samples = Samples(x, y, slices={"side": side})
        (found,) = measured(logged(model, x), samples=samples)
        assert set(found.slices) == {"side=left", "side=right"}
        for value in ("left", "right"):
            rows = side == value
            picked = (
                {key: each[rows] for key, each in y.items()} if isinstance(y, dict) else y[rows]
            )
            group = found.slices[f"side={value}"]
            assert group.samples == rows.sum()
            for name, truth in expected(model, x[rows], picked).items():
                assert group.metrics[name] == pytest.approx(truth, **CLOSE), (kind, name)


def promote(name: str, uri: str, samples: Samples, *gates: Any, **options: Any) -> Any:
    return mka.promote(name, uri, data=samples, gates=gates, **options)


@pytest.mark.slow
def test_a_regressor_is_promoted_by_its_error_and_refused_in_a_group(
    experiment: str, client: MlflowClient
) -> None:
    keras.utils.set_random_seed(0)
    model = dense(1)
    model.compile("adam", "mse", metrics=["mae"])
    y = (X @ np.arange(6)).astype(np.float32)[:, None]
    model.fit(X, y, epochs=30, verbose=0)
    side = np.where(np.arange(N) < 6, "left", "right")
    samples = Samples(X, y, "toy", "d1", slices={"side": side})
    first = logged(model, X)
    gates = [registry.non_inferiority(margin=0.05), registry.loads_and_serves()]
    assert promote("regressor", first, samples, *gates).outcome == "promoted"

    worse = logged(moved(keras.models.clone_model(model), 1.0), X)
    refused = promote("regressor", worse, samples, *gates)
    assert refused.outcome == "refused"
    assert "FAIL  the deciding metric worse by at most 0.05" in str(refused)
    assert "mae" in str(refused)
    both = [registry.per_slice(registry.non_inferiority("mae", 0.05), "side")]
    assert "side=left (6 samples)" in str(promote("regressor", worse, samples, *both, dry_run=True))
    run = client.get_run(refused.run_id).data.metrics
    found = refused.evidence.measured
    assert run["final/mae"] == found["candidate"].metrics["mae"]
    assert run["champion/mae"] == pytest.approx(expected(model, X, y)["mae"], **CLOSE)
    assert run["versus_champion/difference"] == found["candidate"].beside["difference"]
    assert run["final/slice/side/left/mae"] == found["candidate"].slices["side=left"].metrics["mae"]
    page = mlflow.artifacts.load_text(f"runs:/{refused.run_id}/promotion/evidence.html")
    assert "mae, side=left (6 samples)" in page


@pytest.mark.slow
def test_the_best_of_an_experiment_by_a_metric_that_falls(experiment: str) -> None:
    y = X[:, :1]
    uris: Mapping[float, str] = {}
    with mka.track("search"):
        for units in (1, 2):
            keras.utils.set_random_seed(units)
            model = dense(1)
            model.compile("adam", "mse", metrics=["mae"])
            data = mka.Dataset("toy", "d1")
            finished = mka.log_finished_model(model, X, y, name=f"n{units}", dataset=data)
            uris = {**uris, finished.final["mae"]: str(finished.info.model_uri)}
    samples = Samples(X, y, "toy", "d1")
    done = promote(
        "lowest", "best-of-experiment", samples, registry.loads_and_serves(), monitor="mae"
    )
    assert done.outcome == "promoted"
    assert done.evidence.candidate == uris[min(uris)]


@pytest.mark.slow
def test_from_the_shell_any_model_can_be_promoted(experiment: str, tmp_path: Path) -> None:
    model, x, y = two_outputs()
    uri = logged(model, x)
    file, bare = str(tmp_path / "test.npz"), str(tmp_path / "bare.npz")
    side = np.arange(N) % 2
    arrays = {"x_test": x, "y_test.price": y["price"], "y_test.kind": y["kind"], "side": side}
    np.savez(file, **arrays)
    np.savez(bare, x_test=x)

    def call(*arguments: str) -> Any:
        return CliRunner().invoke(cli.main, ["promote", "shell", *arguments])

    budget = ["--max-size-bytes", "1000000", "--max-latency-ratio", "99", "--max-flops"]
    done = call(uri, "--data", file, "--max", "price/mae=100", *budget, "1e6", "--yes")
    assert done.exit_code == 0, done.output
    assert "Promoted" in done.output
    worse = logged(moved(keras.models.clone_model(model), 3.0), x)
    options = ["--monitor", "price/mae", "--margin", "0.1", "--relative", "--slice", "side"]
    refused = call(worse, "--data", file, *options)
    assert refused.exit_code == 1
    assert "FAIL  in each side: price/mae worse by at most 10 %" in refused.output
    far = call(worse, "--data", bare, "--max-difference", "0.01", *budget, "1")
    assert far.exit_code == 1
    assert "FAIL  differs by at most 0.01" in far.output
    assert "FAIL  at most 1 FLOPs" in far.output
    unknown = call(uri, "--data", bare, "--slice", "age")
    assert unknown.exit_code == 1
    assert "no column age" in unknown.output
