"""The model that an evaluation is of: a Keras model or a `.tflite` file, whoever logged it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import keras
import mlflow
import numpy as np
import pandas as pd
import tensorflow as tf
from mlflow.exceptions import MlflowException

from mlflow_keras_adv.compat.keras import layers_of
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.metrics.answers import answers_of, masks_of
from mlflow_keras_adv.metrics.criteria import FILE, Criteria, read
from mlflow_keras_adv.metrics.footprint import footprint
from mlflow_keras_adv.metrics.judge import renewed
from mlflow_keras_adv.metrics.left_alone import left_alone
from mlflow_keras_adv.metrics.logits import endings_of
from mlflow_keras_adv.metrics.score import Scores, loss_of, score
from mlflow_keras_adv.metrics.views.outputs import Known

if TYPE_CHECKING:
    from mlflow_keras_adv.tflite.runtime import LiteRTModel

Masks = Sequence[np.ndarray | None]


class Subject(Protocol):
    """A model that can be measured on the features of an evaluation."""

    def inputs(self, features: Any) -> Any:
        """Its inputs, from the features of an evaluation."""

    def answers(self, inputs: Any) -> Any:
        """Its outputs: an array of shape (samples, …), or a list or dict of these."""

    def masks(self, inputs: Any) -> Masks:
        """The mask of each output; empty if nothing is masked."""

    def known(self) -> Known:
        """The known properties of its outputs."""

    def scores(self, inputs: Any, labels: Any, weights: Any, metrics: Any) -> Scores | None:
        """Its scores by `metrics`, or by its compiled metrics; None if there are neither."""

    def footprint(self, inputs: Any, *, repeats: int) -> dict[str, float]:
        """Its size and latency, by the names of `metrics.footprint.footprint`."""


def subject_of(model: Any) -> Subject:
    """Wraps the model that `mlflow.pyfunc.load_model` has loaded.

    Raises:
        UserError: It is neither a Keras model nor a LiteRT model.
    """
    try:
        raw = model.get_raw_model()
    except (AttributeError, NotImplementedError):
        raw = None
    if isinstance(raw, keras.Model):
        return KerasSubject(raw, _kept_beside(model))
    content = getattr(raw, "content", None)
    # Its class is that of the copy of `runtime` which it brought along.
    if isinstance(content, bytes) and content[4:8] == b"TFL3":
        from mlflow_keras_adv.tflite.runtime import LiteRTModel

        return FileSubject(LiteRTModel(content), _kept_beside(model))
    raise UserError(
        "The evaluator keras_adv measures Keras models and LiteRT models that this process has "
        f"loaded from MLflow; got {type(model if raw is None else raw).__name__}. Give the model's "
        "URI or what mlflow.pyfunc.load_model returns, and leave env_manager alone."
    )


@dataclass(frozen=True)
class KerasSubject:
    """A Keras model.

    Attributes:
        model: The model.
        criteria: The losses and metrics that were kept with it.
    """

    model: keras.Model
    criteria: Criteria

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
            loss=loss_of(self.model) or self.criteria.configured.get("loss"),
            endings=endings_of(self.model),
        )

    def scores(self, inputs: Any, labels: Any, weights: Any, metrics: Any) -> Scores | None:
        """See `Subject`."""
        given = inputs, labels, weights
        with left_alone(self.model):
            if metrics is not None or getattr(self.model, "compiled", False):
                return score(self.model, *given, metrics=metrics)
            if not self.criteria.configured:
                return None
            # Not by compile(): the model may be the caller's own.
            names = tuple(getattr(self.model, "output_names", None) or ())
            criteria = replace(
                self.criteria, output_names=names, configured=renewed(self.criteria.configured)
            )
            found = score(criteria, *given, answer=lambda batch: self.model(batch, training=False))
            return self._with_own_losses(found)

    def _with_own_losses(self, found: Scores) -> Scores:
        """The loss that `evaluate` would tell: with that of the weights, where it is the same."""
        if "loss" not in found.values or not self.model.losses:
            return found
        values = dict(found.values)
        # What an activity costs is another number in each batch.
        if any(layer.activity_regularizer is not None for layer in layers_of(self.model)):
            del values["loss"]
        else:
            values["loss"] += float(sum(map(float, self.model.losses)))
        return replace(found, values=values)

    def footprint(self, inputs: Any, *, repeats: int) -> dict[str, float]:
        """See `Subject`."""
        return footprint(self.model, inputs, repeats=repeats)


@dataclass(frozen=True)
class FileSubject:
    """A `.tflite` file, which keeps no masks.

    Attributes:
        model: The file.
        criteria: The losses and metrics of its source, if they were kept with it.
    """

    model: "LiteRTModel"
    criteria: Criteria

    def inputs(self, features: Any) -> Any:
        """See `Subject`."""
        return self.model.named(pd.DataFrame(features))

    def answers(self, inputs: Any) -> Any:
        """See `Subject`."""
        return self.criteria.arranged(self.model.predict(inputs))

    def masks(self, inputs: Any) -> Masks:
        """See `Subject`."""
        return []

    def known(self) -> Known:
        """See `Subject`."""
        names = list(self.criteria.output_names) or [each.name for each in self.model.outputs]
        return Known(outputs=names, loss=self.criteria.configured.get("loss"))

    def scores(self, inputs: Any, labels: Any, weights: Any, metrics: Any) -> Scores | None:
        """See `Subject`."""
        if metrics is None and not self.criteria.configured:
            return None
        from mlflow_keras_adv.tflite.score import score_file

        return score_file(self.model, self.criteria, inputs, labels, weights, metrics=metrics)

    def footprint(self, inputs: Any, *, repeats: int) -> dict[str, float]:
        """See `Subject`; with the further names of `file_footprint`."""
        from mlflow_keras_adv.tflite.footprint import file_footprint

        return file_footprint(self.model.content, inputs, repeats=repeats)


def _kept_beside(model: Any) -> Criteria:
    """The criteria that were logged with a model; none for one of an older release."""
    flavors = model.metadata.flavors
    folders = [
        flavors[name]["data"] for name in ("keras", "litert") if "data" in flavors.get(name, {})
    ]
    if not folders or model.model_id is None:
        return Criteria("the model")
    try:
        folder = f"{mlflow.get_logged_model(model.model_id).artifact_location}/{folders[0]}"
        listed = mlflow.artifacts.list_artifacts(artifact_uri=folder)
        if not any(each.path.rpartition("/")[2] == FILE for each in listed or ()):
            return Criteria("the model")
        return read(mlflow.artifacts.load_dict(f"{folder}/{FILE}"))
    except MlflowException:
        return Criteria("the model")


def columns(features: Any, names: list[str]) -> dict[str, np.ndarray]:
    """The features of an evaluation by the model's inputs.

    Args:
        features: An array of shape (samples, numbers), or a DataFrame: a number a column, or for
            each input the column of its name, with an array or nested list for each sample.
        names: Names of the model's inputs.

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
