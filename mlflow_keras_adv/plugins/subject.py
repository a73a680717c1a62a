"""The model that an evaluation is of: a Keras model or a `.tflite` file, whoever logged it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from mlflow_keras_adv.compression.footprint import footprint
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.metrics.answers import answers_of, left_alone, masks_of
from mlflow_keras_adv.metrics.score import Scores, loss_of, score
from mlflow_keras_adv.metrics.views.outputs import Known
from mlflow_keras_adv.training.logits import endings_of

if TYPE_CHECKING:
    from mlflow_keras_adv.compression.runtime import LiteRTModel

Masks = Sequence[np.ndarray | None]


class Subject(Protocol):
    """A model that can be measured on the features of an evaluation."""

    def inputs(self, features: Any) -> Any:
        """What it takes, made of the features of an evaluation."""

    def answers(self, inputs: Any) -> Any:
        """What it answers: an array of shape (samples, …), or a list or dict of such."""

    def masks(self, inputs: Any) -> Masks:
        """Of each output what of it counts; empty where nothing is masked."""

    def known(self) -> Known:
        """What is known of its outputs."""

    def scores(self, inputs: Any, labels: Any, weights: Any, metrics: Any) -> Scores | None:
        """By metrics, or by what it was compiled with; None if there is neither."""

    def footprint(self, inputs: Any, *, repeats: int) -> dict[str, float]:
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

    def inputs(self, features: Any) -> Any:
        """See `Subject`."""
        tensors = getattr(self.model, "inputs", None)
        if not tensors:  # a subclassed model takes what it takes
            return columns(features, [""])[""]
        arrays = columns(features, [tensor.name for tensor in tensors])
        shaped = {each.name: _shaped(arrays[each.name], each) for each in tensors}
        return shaped if len(shaped) > 1 else next(iter(shaped.values()))

    def answers(self, inputs: Any) -> Any:
        """See `Subject`."""
        with left_alone(self.model):
            return answers_of(self.model, inputs)

    def masks(self, inputs: Any) -> Masks:
        """See `Subject`."""
        with left_alone(self.model):
            return masks_of(self.model, inputs)

    def known(self) -> Known:
        """See `Subject`."""
        return Known(
            outputs=getattr(self.model, "output_names", None),
            loss=loss_of(self.model),
            endings=endings_of(self.model),
        )

    def scores(self, inputs: Any, labels: Any, weights: Any, metrics: Any) -> Scores | None:
        """See `Subject`."""
        if metrics is None and not getattr(self.model, "compiled", False):
            return None
        with left_alone(self.model):
            return score(self.model, inputs, labels, weights, metrics=metrics)

    def footprint(self, inputs: Any, *, repeats: int) -> dict[str, float]:
        """See `Subject`."""
        return footprint(self.model, inputs, repeats=repeats)


@dataclass(frozen=True)
class FileSubject:
    """A `.tflite` file, which keeps neither masks nor losses."""

    model: "LiteRTModel"

    def inputs(self, features: Any) -> Any:
        """See `Subject`."""
        return self.model.named(pd.DataFrame(features))

    def answers(self, inputs: Any) -> Any:
        """See `Subject`."""
        return self.model.predict(inputs)

    def masks(self, inputs: Any) -> Masks:
        """See `Subject`."""
        return []

    def known(self) -> Known:
        """See `Subject`."""
        return Known(outputs=[each.name for each in self.model.outputs])

    def scores(self, inputs: Any, labels: Any, weights: Any, metrics: Any) -> Scores | None:
        """See `Subject`."""
        if metrics is None:
            return None
        # What a score asks a model that does not answer itself.
        named = SimpleNamespace(name="the file", output_names=self.known().outputs)
        return score(named, inputs, labels, weights, metrics=metrics, answer=self.model.predict)

    def footprint(self, inputs: Any, *, repeats: int) -> dict[str, float]:
        """See `Subject`; with the further names of `file_footprint`."""
        from mlflow_keras_adv.compression.file_footprint import file_footprint

        return file_footprint(self.model.content, inputs, repeats=repeats)


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
        return {name: stacked(features[name]) for name in names}
    if len(names) > 1:
        raise UserError(
            f"The model has the inputs {', '.join(names)}; the data need a column of each name, "
            f"and have {', '.join(map(str, features.columns))}."
        )
    alone = features.shape[1] == 1
    return {names[0]: stacked(features.iloc[:, 0]) if alone else features.to_numpy()}


def stacked(cells: Any) -> np.ndarray:
    """The cells of a column as one array."""
    return np.stack([np.asarray(cell) for cell in cells])


def _shaped(values: np.ndarray, tensor: keras.KerasTensor) -> Any:
    """In the shape and dtype of an input; rows of numbers become images where these are such."""
    sample = tuple(tensor.shape[1:])
    if values.dtype.kind in "biuf":
        values = values.astype(tensor.dtype)
    if None not in sample and values.shape[1:] != sample:
        numbers = math.prod(values.shape[1:])
        if numbers != math.prod(sample):
            raise UserError(
                f"The model's input {tensor.name!r} takes samples of shape {sample}; the data have "
                f"{numbers} numbers for each. Flat rows are reshaped: x.reshape(len(x), -1)."
            )
        values = values.reshape(len(values), *sample)
    # Keras takes texts as a tensor only.
    return tf.constant(values.astype(str)) if tensor.dtype == "string" else values
