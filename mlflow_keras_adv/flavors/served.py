"""Serves a saved model as MLflow would, before it is logged."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.models import Model

from mlflow_keras_adv.errors import UserError

Arrays = np.ndarray | dict[str, np.ndarray]

# Of the largest number: the same sums in another order.
TOLERANCE = 1e-3


def check_served(
    folder: Path,
    example: Any,
    answer: Callable[[], Arrays] | None,
    *,
    tolerance: float = TOLERANCE,
) -> None:
    """Loads a saved model with MLflow, and checks its outputs in Python and over JSON.

    Args:
        folder: A model in MLflow's format.
        example: The input of a caller; None: the model is only loaded.
        answer: The expected output for the example. None: any output will do.
        tolerance: Largest accepted difference, relative to the largest output.

    Raises:
        UserError: It does not load, fails, or gives different outputs.
    """
    try:
        loaded = mlflow.pyfunc.load_model(str(folder), suppress_warnings=True)
    except Exception as error:
        raise UserError(f"the model was saved, but cannot be loaded again: {_reason(error)}") from (
            error
        )
    if example is None:
        return
    answered = _attempt("mlflow.pyfunc's predict", lambda: loaded.predict(example))
    _compare("mlflow.pyfunc's predict", answered, answer, tolerance)
    request = Model.load(str(folder)).get_serving_input(str(folder))
    if request is not None:
        served = _attempt("a scoring server", lambda: _over_json(loaded, request))
        _compare("a scoring server", served, answer, tolerance)


def _over_json(loaded: Any, request: str) -> Any:
    """The output for the example as a scoring server reads, predicts and writes it."""
    from mlflow.pyfunc import scoring_server  # it brings a web framework along

    content = json.loads(request)
    params = content.pop("params", None)
    data = scoring_server.infer_and_parse_data(content, loaded.metadata.get_input_schema())
    written = io.StringIO()
    scoring_server.predictions_to_json(loaded.predict(data, params=params), written)
    return json.loads(written.getvalue())["predictions"]


def _attempt(who: str, ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except Exception as error:
        raise UserError(
            f"the model was saved and loads, but {who} cannot have it answer its input example: "
            f"{_reason(error)}"
        ) from error


def _compare(
    who: str, answered: Any, answer: Callable[[], Arrays] | None, tolerance: float
) -> None:
    if answer is None:
        return
    expected = answer()
    if _close(expected, answered, tolerance):
        return
    # A model that draws random numbers, or remembers, cannot be held to its answer.
    if _close(expected, answer(), tolerance):
        raise UserError(
            f"the model answers differently after it was saved and loaded, asked by {who}. Does a "
            "custom layer's get_config() leave out an argument, does a layer keep state outside "
            "of its weights, or does its call() do something else in a graph? If it is rounded "
            "when it is saved, say how much that may make: tolerance=0.05."
        )


def _close(expected: Arrays, answered: Any, tolerance: float) -> bool:
    """Whether outputs are equal up to the rounding of floating-point sums."""
    if isinstance(expected, dict):
        return (
            isinstance(answered, Mapping)
            and set(answered) == set(expected)
            and all(_close(each, answered[name], tolerance) for name, each in expected.items())
        )
    if expected.dtype.kind not in "fc":
        return bool(expected.tolist() == np.asarray(answered, dtype=expected.dtype).tolist())
    # JSON has null for what is no number.
    array = np.asarray(answered, dtype=expected.dtype)
    if array.shape != expected.shape:
        return False
    largest = np.max(np.abs(expected), initial=0, where=np.isfinite(expected))
    return np.allclose(expected, array, rtol=0, atol=tolerance * float(largest), equal_nan=True)


def _reason(error: Exception) -> str:
    """The first sentences, without the whole configuration that Keras adds."""
    text = str(error).rpartition("Exception encountered: ")[2]
    return f"{type(error).__name__}: {text}"[:1000]
