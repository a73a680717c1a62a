"""What a model is scored by, kept as JSON: it scores as the model itself does."""

import json
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from mlflow_keras_adv.metrics.criteria import criteria_of, read, written
from mlflow_keras_adv.metrics.score import score
from tests.metrics.test_score import (
    CLOSE,
    RNG,
    N,
    X,
    binary,
    dense,
    multi_label,
    one_hot,
    regression,
    tokens,
    two_outputs,
)

KINDS: list[Callable[[], Any]] = [regression, binary, multi_label, one_hot, tokens, two_outputs]


@pytest.mark.parametrize("kind", KINDS)
def test_kept_criteria_score_as_the_model_does(kind: Callable[[], Any]) -> None:
    model, x, y = kind()
    own = score(model, x, y)
    criteria = read(json.loads(json.dumps(written(criteria_of(model)))))
    assert not criteria.left_out
    found = score(criteria, x, y, answer=lambda batch: model(batch, training=False))
    assert dict(found.values) == pytest.approx(dict(own.values), **CLOSE)
    assert (found.directions, found.task) == (own.directions, own.task)
    assert set(found.per_sample) == set(own.per_sample)


def test_numbers_a_sample_make_up_the_value() -> None:
    weight = RNG.random(N).astype(np.float32)
    for kind in (regression, multi_label, one_hot, two_outputs, tokens):
        model, x, y = kind()
        given = None if kind is tokens else weight
        if isinstance(y, dict):
            given = dict.fromkeys(y, weight)
        found = score(model, x, y, given)
        assert found.per_sample
        for name, numbers in found.per_sample.items():
            mean = np.average(numbers, weights=found.weights[name])
            assert mean == pytest.approx(found.values[name], **CLOSE), (kind, name)


def test_of_several_outputs_each_has_numbers_a_sample() -> None:
    model, x, y = two_outputs()
    found = score(model, x, y).per_sample
    answers = model(x)
    np.testing.assert_allclose(
        found["price/mae"], np.abs(np.asarray(answers["price"]) - y["price"])[:, 0], rtol=1e-6
    )
    right = np.asarray(answers["kind"]).argmax(1) == y["kind"]
    np.testing.assert_array_equal(found["kind/accuracy"], right)


def test_what_is_code_of_its_own_is_left_out_by_name() -> None:
    def cubed(y_true: Any, y_pred: Any) -> Any:
        return keras.ops.mean(keras.ops.abs(y_true - y_pred) ** 3, axis=-1)

    model = dense(3)
    model.compile("sgd", cubed, metrics=["mae", cubed])
    criteria = read(json.loads(json.dumps(written(criteria_of(model)))))
    assert set(criteria.configured) == {"metrics"}
    assert len(criteria.left_out) == 2
    assert all("cubed" in each for each in criteria.left_out)
    answers = np.asarray(model(X))
    found = score(criteria, X, X[:, :3], answer=model).values
    assert found == {"mae": pytest.approx(np.abs(answers - X[:, :3]).mean(), **CLOSE)}
    known = read(written(criteria_of(model)), {"cubed": cubed})
    assert known.configured["loss"] is cubed


@pytest.mark.parametrize(
    ("outputs", "names"),
    [
        (np.zeros(2), "output_0"),
        ([np.zeros(2), np.zeros(3)], ["output_0", "output_1"]),
        ({"b": np.zeros(2), "a": np.zeros(3)}, {"b": "b", "a": "a"}),
        ({"b": [np.zeros(2)], "a": np.zeros(3)}, None),
    ],
)
def test_the_structure_of_answers_is_kept(outputs: Any, names: Any) -> None:
    criteria = read(json.loads(json.dumps(written(criteria_of(dense(2), outputs)))))
    assert criteria.outputs == names
    if isinstance(outputs, list):
        found = {"output_1": outputs[1], "output_0": outputs[0]}
        assert criteria.arranged(found)[1] is outputs[1]


@pytest.mark.parametrize(
    ("loss", "metric"),
    [
        (keras.losses.Huber(0.1), keras.metrics.CosineSimilarity(axis=0)),
        (keras.losses.CosineSimilarity(axis=0), keras.metrics.RootMeanSquaredError()),
    ],
    ids=["Huber", "CosineSimilarity"],
)
def test_what_keras_leaves_out_of_a_configuration_is_kept_too(loss: Any, metric: Any) -> None:
    model = dense(3)
    model.compile("sgd", loss, metrics=[metric])
    truth = model.evaluate(X, X[:, :3], verbose=0, return_dict=True, batch_size=N)
    assert dict(score(model, X, X[:, :3], batch_size=N).values) == pytest.approx(truth, **CLOSE)
    criteria = read(json.loads(json.dumps(written(criteria_of(model)))))
    found = score(criteria, X, X[:, :3], answer=model, batch_size=N)
    assert dict(found.values) == pytest.approx(truth, **CLOSE)
