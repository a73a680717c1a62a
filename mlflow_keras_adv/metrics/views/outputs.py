"""The views of all outputs of a model, each by its kind of task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.metrics.answers import ALONE, by_output, for_output, in_order
from mlflow_keras_adv.metrics.task import KINDS, Kind, ignored_by, kind_of, scale_of
from mlflow_keras_adv.metrics.views.by_kind import view_of
from mlflow_keras_adv.metrics.views.classes import yes_shares
from mlflow_keras_adv.metrics.views.view import Array, Output, View, like_answers, spread


@dataclass(frozen=True)
class Known:
    """Known properties of a model's outputs.

    Attributes:
        outputs: Their names, in order; None of a model that has none.
        loss: What the model was compiled with.
        endings: "softmax" or "sigmoid" by the place of an output that ends in it.
        task: What the user says they are: one for all, or by output.
        names: Names of classes, labels or targets: for one output, or by output.
        hint: As of `kind_of`.
        bins: Number of bins of calibration errors.
        from_logits: Whether scores are logits; None: see `classes.probabilities`.
    """

    outputs: Sequence[str] | None = None
    loss: Any = None
    endings: Sequence[str | None] = ()
    task: Kind | Mapping[str, Kind] | None = None
    names: Sequence[Any] | Mapping[str, Sequence[Any]] | None = None
    hint: Any = None
    bins: int = 15
    from_logits: bool | None = None


@dataclass(frozen=True, eq=False)
class Seen:
    """The views of a model's outputs.

    Attributes:
        kinds: The kind of each output that could be told, by its name; "" for the only output.
        views: Views of each that could be shown.
        outputs: What these are of.
        refused: Sentences: outputs that are not shown, and why.
        unseen: Sentences: what is not shown of others, and why.
    """

    kinds: dict[str, Kind] = field(default_factory=dict)
    views: dict[str, View] = field(default_factory=dict)
    outputs: dict[str, Output] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)

    def said(self) -> str:
        """The kinds in a few words, for a tag."""
        if set(self.kinds) == {ALONE}:
            return self.kinds[ALONE]
        return ", ".join(f"{name}: {kind}" for name, kind in self.kinds.items())


def check_task(task: Any) -> None:
    """Refuses what is no task.

    Raises:
        ValueError: It is none of `KINDS`, nor a dict of such by output.
    """
    for each in task.values() if isinstance(task, Mapping) else [task]:
        if each is not None and each not in KINDS:
            raise ValueError(
                f"Received task={each!r}; expected one of {', '.join(KINDS)}, or a dict of such by "
                "the names of the outputs."
            )


def seen(
    known: Known,
    x: Any,
    y: Any,
    sample_weight: Any,
    answers: Any,
    masks: Sequence[Array | None] = (),
) -> Seen:
    """Makes the views of a model's outputs.

    Args:
        known: What is known of the outputs.
        x: What the model was given.
        y: What was asked for, in the structure of the outputs; None: what it was given.
        sample_weight: For all outputs, or in their structure.
        answers: What it answered.
        masks: The masks of the outputs, in order.

    Raises:
        ValueError: Labels or weights are of another structure.
    """
    given = by_output(answers, known.outputs)
    names = list(given)
    labels = _inputs_as_labels(x, given) if y is None else for_output(y, names, for_all=False)
    weights = for_output(sample_weight, names, for_all=True)
    losses = for_output(known.loss, names, for_all=True)
    tasks = for_output(known.task, names, for_all=True)
    if isinstance(known.names, Mapping):
        called = for_output(known.names, names, for_all=True)
    else:
        called = dict.fromkeys(names, known.names)
    order = in_order(names, answers)
    masked = dict(zip(order, masks, strict=False))
    endings = dict(zip(order, known.endings, strict=False))
    found = Seen()
    if not labels:
        found.refused.append(
            "Without labels the targets are the samples themselves; no output is of their shape."
        )
    for name, answer in given.items():
        if name not in labels:
            continue
        of = f"output {name!r}: " if name else ""
        try:
            label, answer = np.asarray(labels[name]), np.asarray(answer)
            loss, ending = losses.get(name), endings.get(name)
            kind = tasks.get(name) or kind_of(
                label, answer, loss=loss, inputs=x, ending=ending, hint=known.hint
            )
            found.kinds[name] = kind
            output = Output(
                labels=label,
                answers=answer,
                weights=_counted(
                    label, answer, kind, weights.get(name), masked.get(name), ignored_by(loss)
                ),
                inputs=x,
                names=called.get(name),
                scale=_scale(answer, loss, ending, known.from_logits),
                bins=known.bins,
                from_logits=known.from_logits,
            )
            found.views[name] = view = view_of(kind, output)
            found.outputs[name] = output
        except (UserError, ValueError) as error:
            found.refused.append(f"{of}{error}")
            continue
        found.unseen.extend(f"{of}{each}" for each in view.unseen)
    return found


def _scale(answer: Array, loss: Any, ending: str | None, from_logits: bool | None) -> Any:
    if from_logits is not None:
        return "logits" if from_logits else "probabilities"
    return scale_of(answer, loss=loss, ending="sigmoid" if ending == "sigmoid" else None)


def _inputs_as_labels(x: Any, answers: Mapping[str, Any]) -> dict[str, Any]:
    given = keras.tree.flatten(x)
    found = {}
    for name, answer in answers.items():
        if len(given) != 1 or not hasattr(given[0], "shape"):
            continue
        try:
            like_answers(given[0], answer)
        except ValueError:
            continue
        found[name] = given[0]
    return found


def _counted(
    labels: Array,
    answers: Array,
    kind: Kind,
    weights: Any,
    mask: Array | None,
    ignored: int | None,
) -> Array | None:
    """Weights, 0 where something is masked or has the label that stands for none."""
    if weights is None and mask is None and ignored is None:
        return None
    places = answers.shape if answers.ndim == 1 else answers.shape[:-1]
    if kind == "binary":
        places = answers.shape
    elif kind == "reconstruction" and answers.ndim < 3:
        places = answers.shape[:1]
    elif kind == "segmentation" and labels.shape == answers.shape and answers.ndim == 3:
        places = answers.shape
    counted = spread(None if weights is None else np.asarray(weights), places)
    if mask is not None:
        counted = counted * spread(mask, places)
    if ignored is not None and labels.size == counted.size:
        counted = counted * (labels.reshape(counted.shape) != ignored)
    return counted


def agreement(kind: Kind, output: Output, other: Array) -> float | None:
    """Share of the decisions that count on which another model agrees; None of numbers.

    Args:
        kind: Kind of the output.
        output: What the model answered.
        other: What the other one did, of the same shape.
    """
    ours, theirs = decisions(kind, output.answers, output), decisions(kind, other, output)
    if ours is None or theirs is None:
        return None
    same = (ours == theirs) & (ours >= 0) & (theirs >= 0)
    return float(np.average(same, weights=spread(output.weights, same.shape)))


def decisions(kind: Kind, answers: Array, output: Output) -> Array | None:
    """The decision at each position: a class, or 0 and 1; -1 for none. None for numbers."""
    answers = np.asarray(answers, np.float64)
    if kind in ("regression", "forecast", "reconstruction"):
        return None
    one_each = kind in ("binary", "multi-label") or answers.shape[-1] == 1
    if one_each or (output.labels.shape == answers.shape and kind == "segmentation"):
        shares = yes_shares(answers, output.scale)
        return np.where(np.isnan(shares), -1, shares > 0.5).astype(np.int64)
    unknown = np.asarray(np.isnan(answers).any(axis=-1))
    return np.where(unknown, -1, np.where(unknown[..., None], 0, answers).argmax(axis=-1))
