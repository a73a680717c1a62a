"""The model that an evaluation is of: a Keras model or a `.tflite` file, whoever logged it."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import keras
import numpy as np
import pandas as pd

from mlflow_keras_adv.compression.footprint import footprint
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.metrics.score import score

if TYPE_CHECKING:
    from mlflow_keras_adv.compression.runtime import LiteRTModel


class Subject(Protocol):
    """A model that can be measured on the features of an evaluation."""

    def scores(self, features: Any) -> Any:
        """What it answers: an array of shape (samples, …), or several if it has several outputs."""

    def footprint(self, features: Any, *, repeats: int) -> dict[str, float]:
        """What it weighs and takes; the names are those of `compression.footprint.footprint`."""


def subject_of(model: Any) -> Subject:
    """What is in a model that `mlflow.pyfunc.load_model` has loaded.

    Raises:
        UserError: It is neither a Keras model nor a LiteRT model.
    """
    try:
        raw = model.get_raw_model()
    except (AttributeError, NotImplementedError):
        raw = None
    if isinstance(raw, keras.Model):
        return KerasSubject(raw)
    content = getattr(raw, "content", None)
    # Its class is that of the copy of `runtime` which it brought along.
    if isinstance(content, bytes) and content[4:8] == b"TFL3":
        from mlflow_keras_adv.compression.runtime import LiteRTModel

        return FileSubject(LiteRTModel(content))
    raise UserError(
        "The evaluator keras_adv measures Keras models and LiteRT models that this process has "
        f"loaded from MLflow; got {type(model if raw is None else raw).__name__}. Give the model's "
        "URI or what mlflow.pyfunc.load_model returns, and leave env_manager alone."
    )


@dataclass(frozen=True)
class KerasSubject:
    """A Keras model."""

    model: keras.Model

    def scores(self, features: Any) -> Any:
        """See `Subject`."""
        return score(self.model, self._inputs(features), metrics=[]).answers

    def footprint(self, features: Any, *, repeats: int) -> dict[str, float]:
        """See `Subject`."""
        return footprint(self.model, self._inputs(features), repeats=repeats)

    def _inputs(self, features: Any) -> Any:
        tensors = getattr(self.model, "inputs", None)
        if not tensors:  # a subclassed model takes what it takes
            return np.asarray(features)
        arrays = columns(features, [tensor.name for tensor in tensors])
        shaped = {each.name: _shaped(arrays[each.name], each) for each in tensors}
        return shaped if len(shaped) > 1 else next(iter(shaped.values()))


@dataclass(frozen=True)
class FileSubject:
    """A `.tflite` file."""

    model: "LiteRTModel"

    def scores(self, features: Any) -> Any:
        """See `Subject`."""
        return self.model.predict(self.model.named(pd.DataFrame(features)))

    def footprint(self, features: Any, *, repeats: int) -> dict[str, float]:
        """See `Subject`; with the further names of `file_footprint`."""
        from mlflow_keras_adv.compression.file_footprint import file_footprint

        named = self.model.named(pd.DataFrame(features))
        return file_footprint(self.model.content, named, repeats=repeats)


def columns(features: Any, names: list[str]) -> dict[str, np.ndarray]:
    """The features of an evaluation by the model's inputs.

    Args:
        features: An array of shape (samples, numbers), or a DataFrame: a number a column, or for
            each input the column of its name, with an array or nested list for each sample.
        names: Of the model's inputs.

    Raises:
        UserError: The model has several inputs, and a column lacks.
    """
    if not isinstance(features, pd.DataFrame):
        features = pd.DataFrame(np.asarray(features))
    if set(names) <= set(features.columns):
        return {name: _stacked(features[name]) for name in names}
    if len(names) > 1:
        raise UserError(
            f"The model has the inputs {', '.join(names)}; the data need a column of each name, "
            f"and have {', '.join(map(str, features.columns))}."
        )
    alone = features.shape[1] == 1
    return {names[0]: _stacked(features.iloc[:, 0]) if alone else features.to_numpy()}


def _stacked(cells: "pd.Series[Any]") -> np.ndarray:
    return np.stack([np.asarray(cell) for cell in cells])


def _shaped(values: np.ndarray, tensor: keras.KerasTensor) -> np.ndarray:
    """In the shape and dtype of an input; rows of numbers become images where these are such."""
    sample = tuple(tensor.shape[1:])
    if values.dtype.kind in "biuf":
        values = values.astype(tensor.dtype)
    if None in sample or values.shape[1:] == sample:
        return values
    numbers = math.prod(values.shape[1:])
    if numbers != math.prod(sample):
        raise UserError(
            f"The model's input {tensor.name!r} takes samples of shape {sample}; the data have "
            f"{numbers} numbers for each. Flat rows are reshaped: x.reshape(len(x), -1)."
        )
    return values.reshape(len(values), *sample)
