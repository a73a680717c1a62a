"""Criteria: the losses and metrics of a model, as a value that can be stored with it.

A finished model is saved without its compile arguments. Its losses and metrics are stored with it,
in Keras' format, so that the model, and a `.tflite` file made from it, can be scored later as in
training.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import keras
import numpy as np

from mlflow_keras_adv.compat.keras import left_out_of_config, outputs_of
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.metrics.judge import CONFIGURED, compiled_with
from mlflow_keras_adv.metrics.task import Task

FILE = "criteria.json"


@dataclass(frozen=True, eq=False)
class Criteria:
    """The losses and metrics by which a model is scored.

    Attributes:
        name: Name of the model, for messages.
        configured: Its loss, loss_weights, metrics and weighted_metrics, as `compile` takes them;
            among the metrics may be functions of scikit-learn.
        output_names: What Keras calls its outputs; empty where it does not say.
        input_names: What Keras calls its inputs, in its order; empty where it does not say.
        outputs: Its answers with a name in the place of each array, as a `.tflite` file made of it
            names them; None if that is not known.
        task: What the one who logged the model said it is for, or None.
        left_out: Losses and metrics that could not be kept or read, in words.
    """

    name: str
    configured: Mapping[str, Any] = field(default_factory=dict)
    output_names: Sequence[str] = ()
    input_names: Sequence[str] = ()
    outputs: Any = None
    task: Task | None = None
    left_out: Sequence[str] = ()

    def arranged(self, found: Any) -> Any:
        """Arrays by the names of a file's outputs, in the structure of the model's own answers."""
        if not isinstance(found, Mapping) or self.outputs is None:
            return found
        # A file from training has the names that Keras has for the outputs.
        for names in (keras.tree.flatten(self.outputs), list(self.output_names)):
            if len(names) == len(found) and set(names) == set(found):
                return keras.tree.pack_sequence_as(self.outputs, [found[name] for name in names])
        return found

    def named(self, x: Any) -> Any:
        """Inputs in a list by the names that Keras has for them, since a file orders its own."""
        listed = isinstance(x, (list, tuple)) and len(x) == len(self.input_names) > 1
        return dict(zip(self.input_names, x, strict=True)) if listed else x


def criteria_of(model: keras.Model, answers: Any = None, task: Task | None = None) -> Criteria:
    """Reads the compiled losses and metrics of a model.

    Args:
        model: A built model, compiled or not.
        answers: What it answers, which tells the structure where the model itself does not.
        task: To keep.
    """
    if answers is None:
        answers = outputs_of(model)
    left_out = []
    try:
        configured = compiled_with(model)
    except UserError as error:
        left_out.append(str(error))
        configured = compiled_with(model, given=CONFIGURED[2:])
    return Criteria(
        name=model.name,
        configured=configured,
        output_names=tuple(getattr(model, "output_names", None) or ()),
        input_names=tuple(each.name for each in getattr(model, "inputs", None) or ()),
        outputs=None if answers is None else _file_names(answers),
        task=task,
        left_out=left_out,
    )


def of_scikit_learn(metric: Any) -> bool:
    """Whether a metric is a function of scikit-learn, which wants all answers at once."""
    return callable(metric) and getattr(metric, "__module__", "").partition(".")[0] == "sklearn"


def keep(criteria: Criteria, folder: Path) -> None:
    """Writes criteria beside a model."""
    (folder / FILE).write_text(json.dumps(written(criteria), indent=2))


def kept_in(folder: Path, custom_objects: Mapping[str, Any] | None = None) -> Criteria | None:
    """The criteria that were kept beside a model; None of a model that has none."""
    file = folder / FILE
    return read(json.loads(file.read_text()), custom_objects) if file.exists() else None


def written(criteria: Criteria) -> dict[str, Any]:
    """Criteria as JSON can hold them."""
    left_out = list(criteria.left_out)
    return {
        "model": criteria.name,
        "compile": {
            key: _written(value, left_out, key) for key, value in criteria.configured.items()
        },
        "output_names": list(criteria.output_names),
        "input_names": list(criteria.input_names),
        "outputs": criteria.outputs,
        "task": criteria.task,
        "left_out": left_out,
    }


def read(kept: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Criteria:
    """Reads criteria from the output of `written`.

    What cannot be made again, such as a function of somebody else's program, is left out and named.

    Args:
        kept: From `written`.
        custom_objects: Classes and functions by the names that Keras calls them.
    """
    left_out = list(kept.get("left_out", ()))
    configured = {}
    with keras.saving.custom_object_scope(dict(custom_objects or {})):
        for key, value in kept.get("compile", {}).items():
            found = _read(value, left_out, key)
            if found not in (None, [], {}):
                configured[key] = found
    return Criteria(
        name=kept.get("model", "model"),
        configured=configured,
        output_names=tuple(kept.get("output_names", ())),
        input_names=tuple(kept.get("input_names", ())),
        outputs=kept.get("outputs"),
        task=kept.get("task"),
        left_out=tuple(left_out),
    )


def _file_names(answers: Any) -> Any:
    """The names that TensorFlow gives to outputs in a signature; None for deeper structures."""
    if isinstance(answers, Mapping):
        flat = {key: str(key) for key, value in answers.items() if not keras.tree.is_nested(value)}
        return flat if len(flat) == len(answers) else None
    if isinstance(answers, (list, tuple)):
        if any(keras.tree.is_nested(each) for each in answers):
            return None
        return [f"output_{position}" for position in range(len(answers))]
    return "output_0"


def _written(value: Any, left_out: list[str], where: str) -> Any:
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): _written(each, left_out, f"{where}/{key}") for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_written(each, left_out, where) for each in value]
    if of_scikit_learn(value):
        return {"scikit_learn": value.__name__}
    try:
        kept = keras.saving.serialize_keras_object(value)
        if isinstance(value, (keras.losses.Loss, keras.metrics.Metric)):
            kept["config"] |= left_out_of_config(value)
        return kept
    except Exception as error:  # what get_config() of somebody's class raises has no end
        name = getattr(value, "name", None) or getattr(value, "__name__", type(value).__name__)
        left_out.append(f"{where}: {name} ({type(error).__name__}: {error})")
        return None


def _read(value: Any, left_out: list[str], where: str) -> Any:
    if isinstance(value, Mapping) and "class_name" in value:
        try:
            return keras.saving.deserialize_keras_object(dict(value))
        except Exception as error:  # its code is not here, or does not take its config
            config = value.get("config")
            known = config if isinstance(config, str) else value.get("registered_name")
            reason = str(error).strip().partition("\n")[0]
            left_out.append(f"{where}: {known or value['class_name']} ({reason})")
            return None
    if isinstance(value, Mapping) and set(value) == {"scikit_learn"}:
        return getattr(import_module("sklearn.metrics"), value["scikit_learn"], None)
    if isinstance(value, Mapping):
        found = {key: _read(each, left_out, f"{where}/{key}") for key, each in value.items()}
        return {key: each for key, each in found.items() if each is not None}
    if isinstance(value, list):
        listed = [_read(each, left_out, where) for each in value]
        nested = any(isinstance(each, (list, dict)) for each in listed)  # a place for each output
        return listed if nested else [each for each in listed if each is not None]
    return value
