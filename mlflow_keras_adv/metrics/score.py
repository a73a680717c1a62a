"""Scores of a model on test data, for any task.

They are computed by its compiled losses and metrics, as by `model.evaluate`, with masks, sample
weights and several outputs, or by given metrics. The model itself is unchanged: neither the state
of its metrics changes, nor is it compiled.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mlflow_keras_adv.errors import UserError, in_short
from mlflow_keras_adv.metrics.criteria import Criteria, criteria_of, of_scikit_learn
from mlflow_keras_adv.metrics.directions import Mode, mode_of_name
from mlflow_keras_adv.metrics.judge import Judge, compiled_with
from mlflow_keras_adv.metrics.left_alone import left_alone
from mlflow_keras_adv.metrics.per_sample import PerSample
from mlflow_keras_adv.metrics.task import Task, classes_of, task_of

_BATCH = 256

# What a model of the user's own may compute in its own way, which only `evaluate` knows.
_OWN_WAYS = ("test_step", "compute_loss", "compute_metrics", "get_metrics_result")


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of a model.

    Attributes:
        values: By name: `loss` and the metrics, `<output>/<metric>` for several outputs.
        directions: Whether each is better lower ("min") or higher ("max"), if it is known.
        per_sample: Metrics that are means over samples, float64 of shape [samples].
        weights: How much each sample counts in these means: its sample weight, or how
            many of its steps a mask shows. float64 of shape [samples].
        answers: What the model answered: an array of shape [samples, …], or a structure of such.
        labels: The labels, in the same form; None without.
        task: Task of a model with one output, where it is known.
    """

    values: Mapping[str, float]
    directions: Mapping[str, Mode]
    per_sample: Mapping[str, np.ndarray]
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    answers: Any = None
    labels: Any = None
    task: Task | None = None


@dataclass
class _Collected:
    answers: list[Any] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)


def score(
    model: keras.Model | Criteria,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    metrics: Any = None,
    answer: Callable[[Any], Any] | None = None,
    batch_size: int = _BATCH,
) -> Scores:
    """Scores a model.

    Args:
        model: A Keras model; or, with `answer`, the criteria of one.
        x: Arrays of shape [samples, …], a list or dict of these, a finite `tf.data.Dataset`, or a
            `keras.utils.PyDataset`; the latter two have their own labels and sample weights.
        y: Labels, in the structure of the outputs; None if there are none.
        sample_weight: As in `evaluate`.
        metrics: Metrics instead of the compiled ones: metrics and functions of Keras, names of
            these, functions of scikit-learn; for several outputs a dict by their names.
        answer: Predicts a batch instead of the model, for example by a `.tflite` file made from it.
            The loss then lacks the regularization of the weights.
        batch_size: Samples per call.

    Returns:
        The scores.

    Raises:
        UserError: There are no metrics, or they do not fit the labels and the outputs.
    """
    if isinstance(model, Criteria):
        if answer is None:
            raise ValueError("Criteria answer nothing: give answer=, what is to be scored.")
        criteria, answers_to, own = model, answer, None
    elif metrics is None and answer is None and scores_by_itself(model):
        with left_alone(model):
            return _evaluated(model, x, y, sample_weight, batch_size)
    else:
        criteria, own = criteria_of(model), None if answer else model
        answers_to = answer or functools.partial(model, training=False)
    configured, whole = _split(criteria.configured if metrics is None else {"metrics": metrics})
    judge = Judge(criteria, configured) if configured else None
    outputs = criteria.output_names if len(criteria.output_names) > 1 else ()
    collected = _Collected()
    per_sample = PerSample(judge, configured, outputs) if judge is not None else None
    try:
        with left_alone(own) if own is not None else nullcontext():
            for inputs, labels, weight in batches(x, y, sample_weight, batch_size):
                answers = answers_to(inputs)
                collected.answers.append(_numbers(answers))
                if labels is None:
                    continue
                collected.labels.append(_numbers(labels))
                if judge is None or per_sample is None:
                    continue
                if "loss" in configured:
                    judge.loss(labels, answers, weight, own.losses if own else ())
                judge.results(labels, answers, weight)
                per_sample.add(labels, answers, weight)
    except UserError:
        raise
    except Exception as error:  # what models, losses and metrics raise has no end
        swapped = "Are x and y swapped? " if _swapped(own, x, y) else ""
        raise UserError(
            f"{criteria.name!r} cannot be scored: {in_short(error)} {swapped}Give what fits "
            "its outputs and labels: metrics=[keras.metrics.…], a function of scikit-learn, or "
            "measure it yourself and pass scores={…}."
        ) from error
    answers = _joined(collected.answers)
    labels = _joined(collected.labels) if collected.labels else None
    values: dict[str, float] = {}
    numbers: dict[str, np.ndarray] = {}
    weights: dict[str, np.ndarray] = {}
    if judge is not None and per_sample is not None and labels is not None:
        found = judge.so_far()
        named = {name: float(value) for name, value in found.items() if np.ndim(value) == 0}
        if "loss" not in configured:
            named.pop("loss", None)
        values = {_key(name, outputs): value for name, value in named.items()}
        numbers, weights = per_sample.joined(values)
    directions = {
        key: mode
        for key in values
        if (mode := mode_of_name(key.replace("/", "_"), judge.metrics if judge else ()))
    }
    if labels is not None:
        for name, function in whole.items():
            values[name] = float(function(labels, answers))
            if name.endswith("_score"):
                directions[name] = "max"
            elif name.endswith(("_error", "_loss", "_deviance")):
                directions[name] = "min"
    task = criteria.task
    if task is None and isinstance(answers, np.ndarray):
        task = task_of(criteria.configured.get("loss"), answers)
    if task is None and metrics is None and judge is None and labels is not None:
        task = _of_labels(criteria.name, labels, answers)
    scores = Scores(values, directions, numbers, weights, answers, labels, task)
    return _with_accuracy(scores) if metrics is None else scores


def deciding(found: Scores) -> str | None:
    """The metric that decides where nobody has said which: accuracy, else the first, else loss.

    Only metrics count whose better way is known.
    """
    known = [name for name in found.values if name in found.directions]
    if "accuracy" in known:
        return "accuracy"
    metrics = [name for name in known if name.rpartition("/")[2] != "loss"]
    return next(iter([*metrics, *known]), None)


def loss_of(model: keras.Model) -> Any:
    """The loss that a model was compiled with; None without."""
    return compiled_with(model, given=("metrics", "weighted_metrics")).get("loss")


def batches(
    x: Any, y: Any = None, sample_weight: Any = None, batch_size: int = _BATCH
) -> Iterator[tuple[Any, Any, Any]]:
    """Inputs, labels and sample weights of each batch; None for what there is not.

    Raises:
        UserError: The data have no end, or no samples.
    """
    if isinstance(x, tf.data.Dataset):
        if int(x.cardinality()) == tf.data.INFINITE_CARDINALITY:
            raise UserError("Received an endless dataset. Say how much of it: .take(n).")
        for batch in x:
            yield _three(batch)
        return
    if isinstance(x, keras.utils.PyDataset):
        if x.num_batches is None:
            raise UserError("Received an endless PyDataset. Give it num_batches.")
        for number in range(x.num_batches):
            yield _three(x[number])
        return
    if any(tf.is_tensor(each) for each in keras.tree.flatten(x)):  # Keras takes no mixture
        x = keras.tree.map_structure(tf.convert_to_tensor, x)
    parts = (x, y, sample_weight)
    count = len(keras.tree.flatten(x)[0])
    if count == 0:
        raise UserError("There are no samples to score on.")
    for start in range(0, count, batch_size):
        rows = slice(start, start + batch_size)
        yield tuple(  # type: ignore[misc]
            None if part is None else keras.tree.map_structure(lambda a, r=rows: a[r], part)
            for part in parts
        )


def scores_by_itself(model: keras.Model) -> bool:
    """Whether a model has an evaluation of its own, so that only `evaluate` knows its scores."""
    return any(
        owner.__module__.partition(".")[0] != "keras"
        for name in _OWN_WAYS
        for owner in [next(each for each in type(model).__mro__ if name in vars(each))]
    )


def _swapped(model: keras.Model | None, x: Any, y: Any) -> bool:
    """Whether y has the shape that the model takes, and x has not."""
    shapes = [each.shape[1:] for each in getattr(model, "inputs", None) or ()]
    if len(shapes) != 1:
        return False
    return np.shape(y)[1:] == tuple(shapes[0]) != np.shape(x)[1:]


def _evaluated(model: Any, x: Any, y: Any, sample_weight: Any, batch_size: int) -> Scores:
    """Scores by `evaluate`, and restores the model afterwards."""
    found = {name: vars(model).get(name) for name in ("test_function", "stop_evaluating")}
    states = [(each, np.array(each)) for metric in model.metrics for each in metric.variables]
    size = (
        {} if isinstance(x, tf.data.Dataset | keras.utils.PyDataset) else {"batch_size": batch_size}
    )
    try:
        named = model.evaluate(
            x, y, sample_weight=sample_weight, verbose=0, return_dict=True, **size
        )
    except Exception as error:
        raise UserError(
            f"{model.name!r} cannot be scored: {in_short(error)} It has an "
            "evaluation of its own; measure it yourself and pass scores={…}."
        ) from error
    finally:
        for variable, state in states:
            variable.assign(state)
        if found["test_function"] is None and "test_function" in vars(model):
            model.test_function = None
        if found["stop_evaluating"] is None:
            vars(model).pop("stop_evaluating", None)
    values = {
        _key(name, _outputs(model)): float(value)
        for name, value in named.items()
        if np.ndim(value) == 0
    }
    modes = {key: mode_of_name(key.replace("/", "_"), model.metrics) for key in values}
    return Scores(values, {key: mode for key, mode in modes.items() if mode}, {})


def _split(
    configured: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Callable[..., Any]]]:
    """Splits metrics into those of Keras and functions of scikit-learn, which need all outputs."""
    metrics = configured.get("metrics")
    if metrics is None or isinstance(metrics, Mapping):
        return dict(configured), {}
    listed = list(metrics) if isinstance(metrics, (list, tuple)) else [metrics]
    whole = {each.__name__: each for each in listed if of_scikit_learn(each)}
    others = [each for each in listed if not of_scikit_learn(each)]
    rest = {key: value for key, value in configured.items() if key != "metrics"}
    return rest | ({"metrics": others} if others else {}), whole


def _of_labels(name: str, labels: Any, answers: Any) -> Task:
    """The task of a model that was not compiled: integers for scores of classes, or nothing.

    Raises:
        UserError: Anything else.
    """
    one = isinstance(labels, np.ndarray) and isinstance(answers, np.ndarray)
    if one and labels.dtype.kind in "iu" and answers.ndim > 1 and answers.shape[-1] > 1:
        try:
            classes_of(labels, answers)
            return "classification"
        except ValueError:
            pass
    raise UserError(
        f"{name!r} was not compiled, so nothing says what it is to be scored by. Compile it "
        "with its loss and metrics, give metrics=[keras.metrics.…], or pass scores={…}."
    )


def _with_accuracy(found: Scores) -> Scores:
    """A classifier has an accuracy, compiled with it or not; where masked or weighted, Keras'."""
    if found.task != "classification" or found.labels is None or "accuracy" in found.values:
        return found
    try:
        right = classes_of(found.labels, found.answers) == np.argmax(found.answers, axis=-1)
    except ValueError:
        return found
    each = right.reshape(len(right), -1).mean(axis=1)
    return replace(
        found,
        values={**found.values, "accuracy": float(right.mean())},
        directions={**found.directions, "accuracy": "max"},
        per_sample={**found.per_sample, "accuracy": each},
        weights={**found.weights, "accuracy": np.full(len(each), float(right[0].size))},
    )


def _outputs(model: Any) -> list[str]:
    names = getattr(model, "output_names", None) or []
    return list(names) if len(names) > 1 else []


def _key(name: str, outputs: Sequence[str]) -> str:
    """`<output>_<metric>`, as Keras calls it, is `<output>/<metric>` on record."""
    for output in sorted(outputs, key=len, reverse=True):
        if name.startswith(f"{output}_"):
            return f"{output}/{name.removeprefix(f'{output}_')}"
    return name


def _three(batch: Any) -> tuple[Any, Any, Any]:
    if isinstance(batch, (tuple, list)) and 1 <= len(batch) <= 3:
        return (*batch, None, None)[:3]
    return batch, None, None


def _numbers(nested: Any) -> Any:
    return keras.tree.map_structure(
        lambda each: each if isinstance(each, np.ndarray) else keras.ops.convert_to_numpy(each),
        nested,
    )


def _joined(parts: list[Any]) -> Any:
    return keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *parts)
