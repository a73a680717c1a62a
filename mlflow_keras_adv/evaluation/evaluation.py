"""One evaluation: features and labels separated, a model scored, and its figures and tables."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import mlflow
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.evaluation.options import Options
from mlflow_keras_adv.evaluation.subject import Subject, stacked, subject_of
from mlflow_keras_adv.metrics.agreement import difference
from mlflow_keras_adv.metrics.answers import ALONE, by_output, for_output
from mlflow_keras_adv.metrics.views.outputs import Known, Seen, agreement, check_task, seen

_HINTS = {"regressor": "regression", "classifier": "classes"}


@dataclass
class Evaluation:
    """The result of an evaluation.

    Attributes:
        measured: Metrics by their names without `final/`.
        directions: Whether a metric is better lower ("min") or higher ("max"), where it is known.
        contents: Tables, and functions that draw figures, by the names of their files.
        kinds: The task of the model, in a few words.
        unseen: Sentences about outputs that are not shown.
    """

    measured: dict[str, float] = field(default_factory=dict)
    directions: dict[str, str] = field(default_factory=dict)
    contents: dict[str, pd.DataFrame | Callable[[], Figure]] = field(default_factory=dict)
    kinds: str = ""
    unseen: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, model: Any, model_type: str | None, dataset: Any, options: Options) -> "Evaluation":
        """Evaluates.

        Raises:
            UserError: A model of another kind, or data that do not fit it or each other.
        """
        subject = subject_of(model)
        if not len(dataset.features_data):
            raise UserError("There is nothing to evaluate on: the data have no samples.")
        done = cls()
        try:
            check_task(options.task)
            features, labels, weights = _apart(dataset, options)
            inputs = subject.inputs(features)
            answers = None
            if labels is not None or options.reference is not None:
                answers = subject.answers(inputs)
            found = Seen()
            if labels is not None:
                found = done._score(
                    subject, inputs, labels, weights, answers, _HINTS.get(model_type or ""), options
                )
            if options.reference is not None:
                done._compare(subject, found, answers, features, options)
        except ValueError as error:
            raise UserError(str(error)) from error
        done.measured |= subject.footprint(inputs, repeats=options.repeats)
        return done

    def _score(
        self,
        subject: Subject,
        inputs: Any,
        labels: Any,
        weights: Any,
        answers: Any,
        hint: str | None,
        options: Options,
    ) -> Seen:
        known = _known(subject, options, hint)
        outputs = by_output(answers, known.outputs)
        named = for_output(labels, list(outputs), for_all=False)
        classes = _class_names(options, list(outputs))
        named = {
            name: _integers(label, classes.get(name), np.shape(outputs[name]))
            for name, label in named.items()
        }
        several = any(np.ndim(each) > 2 for each in outputs.values())
        masks = subject.masks(inputs) if several else ()
        shown = next(iter(inputs.values())) if _alone(inputs) else inputs
        found = seen(known, shown, named, weights, answers, masks)
        wanted = _as_answered(named, answers, list(outputs))
        scores = None
        try:
            scores = subject.scores(inputs, wanted, weights, options.metrics)
        except UserError as error:
            if options.metrics is not None or found.refused:
                raise
            self.unseen.append(f"What it was compiled with: {error}")
        if found.refused and scores is None:
            raise UserError(" ".join(found.refused))
        self.kinds = found.said()
        self.unseen += [*found.refused, *found.unseen]
        if several and not masks and weights is None:
            self.unseen += _unmasked(subject, found)
        for name, view in found.views.items():
            start = f"{name}/" if name else ""
            folder = re.sub(r"[^\w.-]", "_", name) + "/" if name else ""
            self.measured |= {f"{start}{key}": value for key, value in view.numbers.items()}
            self.directions |= {f"{start}{key}": mode for key, mode in view.directions.items()}
            self.contents |= {f"{folder}{key}": table for key, table in view.tables.items()}
            self.contents |= {f"{folder}{key}": draw for key, draw in view.figures.items()}
        if scores is not None:  # what the model was compiled with is what its user means
            self.measured |= scores.values
            self.directions |= scores.directions
        return found

    def _compare(
        self, subject: Subject, found: Seen, answers: Any, features: Any, options: Options
    ) -> None:
        other = subject_of(mlflow.pyfunc.load_model(options.reference))
        theirs = by_output(other.answers(other.inputs(features)), other.known().outputs)
        ours = by_output(answers, subject.known().outputs)
        if len(ours) != len(theirs):
            raise UserError(
                f"The model has {len(ours)} outputs, the reference {len(theirs)}; expected as many."
            )
        if set(ours) != set(theirs):  # a file has other names for them
            theirs = dict(zip(ours, theirs.values(), strict=True))
        for name, answer in ours.items():
            start = f"{name}/" if name else ""
            apart = difference(answer, theirs[name])
            self.measured |= {f"{start}{key}": value for key, value in apart.items()}
            self.directions |= {f"{start}{key}": "min" for key in apart}
            if name not in found.outputs:
                continue
            share = agreement(found.kinds[name], found.outputs[name], np.asarray(theirs[name]))
            if share is not None:
                self.measured[f"{start}agreement"] = share
                self.directions[f"{start}agreement"] = "max"


def _apart(dataset: Any, options: Options) -> tuple[Any, Any, Any]:
    """Features, labels and weights; columns of the data that are among these are taken out."""
    features = dataset.features_data
    taken: list[str] = []

    def column(given: Any) -> Any:
        if not isinstance(given, str):
            return given if given is None else np.asarray(given)
        if not isinstance(features, pd.DataFrame) or given not in features.columns:
            raise UserError(f"The data have no column {given!r}.")
        taken.append(given)
        return stacked(features[given])

    def of_all(given: Any) -> Any:
        if isinstance(given, Mapping):
            return {name: column(each) for name, each in given.items()}
        return column(given)

    labels = of_all(options.targets)
    weights = of_all(options.sample_weight)
    if labels is None:
        labels = _labels(dataset.labels_data)
    return features.drop(columns=taken) if taken else features, labels, weights


def _labels(labels: Any) -> Any:
    """Those of the data; of cells that are dicts, one for each output."""
    if labels is None or np.asarray(labels).dtype != object:
        return labels
    cells = list(labels)
    if all(isinstance(cell, Mapping) for cell in cells):
        return {name: stacked([cell[name] for cell in cells]) for name in cells[0]}
    return stacked(cells)


def _known(subject: Subject, options: Options, hint: Any) -> Known:
    return replace(
        subject.known(),
        task=options.task,
        names=options.class_names,
        hint=hint,
        bins=options.bins,
        from_logits=options.from_logits,
    )


def _class_names(options: Options, outputs: list[str]) -> dict[str, Any]:
    if isinstance(options.class_names, Mapping):
        return for_output(options.class_names, outputs, for_all=True)
    return dict.fromkeys(outputs, options.class_names)


def _integers(labels: Any, names: Any, shape: tuple[int, ...]) -> Any:
    """Labels as integers, where they are names of classes."""
    labels = np.asarray(labels)
    if labels.dtype.kind in "biuf":
        return labels
    classes = [str(name) for name in names or range(max(2, shape[-1] if len(shape) > 1 else 2))]
    unknown = sorted({str(label) for label in labels.flat} - set(classes))
    if unknown:
        raise UserError(
            f"The labels {', '.join(unknown[:5])} are none of the classes {', '.join(classes)}. "
            "Give evaluator_config={'class_names': […]} in the order of the model's scores."
        )
    place = {name: position for position, name in enumerate(classes)}
    return np.vectorize(lambda label: place[str(label)], otypes=[int])(labels)


def _as_answered(labels: dict[str, Any], answers: Any, outputs: list[str]) -> Any:
    """Labels in the structure of the answers, as Keras wants them."""
    if isinstance(answers, Mapping):
        return labels
    if isinstance(answers, list | tuple):
        return [labels.get(name) for name in outputs]
    return labels[ALONE]


def _alone(inputs: Any) -> bool:
    return isinstance(inputs, Mapping) and len(inputs) == 1


def _unmasked(subject: Subject, found: Seen) -> list[str]:
    """A sentence that padding counts, if the file of a tagger has no masks."""
    if "tagging" not in found.kinds.values() or isinstance(
        getattr(subject, "model", None), keras.Model
    ):
        return []
    return ["Masks: a file keeps none, so that padding counts. Give sample_weight, 0 on padding."]
