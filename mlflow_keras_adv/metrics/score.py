"""Scores: what a model is worth on data that it has not seen, for any task.

By what it was compiled with, as `model.evaluate` would say: losses, metrics, masks, sample weights,
several outputs. Or by metrics that are given. The model itself is left alone: no state of its
metrics changes, and nothing is compiled.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.metrics.directions import Mode, mode_of_name
from mlflow_keras_adv.metrics.judge import Judge, compiled_with
from mlflow_keras_adv.metrics.task import Task, classes_of, is_logits, task_of

_BATCH = 256

# What a model of the user's own may compute in its own way, which only `evaluate` knows.
_OWN_WAYS = ("test_step", "compute_loss", "compute_metrics", "get_metrics_result")


@dataclass(frozen=True, eq=False)
class Scores:
    """What a model scores.

    Attributes:
        values: By name: `loss` and the metrics, of several outputs as `<output>/<metric>`.
        directions: Of each whose better way is known, "min" or "max".
        per_sample: Of metrics that are means over samples, float64 of shape [samples].
        answers: What the model answered: an array of shape [samples, …], or a structure of such.
        labels: The labels, in the same form; None without.
        task: Of a model with one output, where it is known.
    """

    values: Mapping[str, float]
    directions: Mapping[str, Mode]
    per_sample: Mapping[str, np.ndarray]
    answers: Any = None
    labels: Any = None
    task: Task | None = None


@dataclass
class _Collected:
    answers: list[Any] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    weights: list[np.ndarray] = field(default_factory=list)


def score(
    model: keras.Model,
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
        model: A Keras model.
        x: Arrays of shape [samples, …], a list or dict of such, a finite `tf.data.Dataset`, or a
            `keras.utils.PyDataset`; the latter two bring their labels and sample weights.
        y: Labels, in the structure of the outputs; None where there are none.
        sample_weight: As `evaluate` takes it.
        metrics: Instead of what the model was compiled with: metrics and functions of Keras, names
            of these, functions of scikit-learn; of several outputs a dict by their names.
        answer: Answers a batch in place of the model, a `.tflite` file made of it say.
        batch_size: Samples a call.

    Raises:
        UserError: There is nothing to score by, or it does not fit the labels and the answers.
    """
    configured = compiled_with(model) if metrics is None else {}
    given, whole = _split(metrics)
    if given is not None:
        configured = {"metrics": given}
    if metrics is None and answer is None and _scores_by_itself(model):
        return _evaluated(model, x, y, sample_weight, batch_size)
    by_labels = bool(configured)
    judge = Judge(model, configured) if by_labels else None
    collected = _Collected()
    per_sample: dict[str, list[np.ndarray]] = {}
    try:
        for inputs, labels, weight in batches(x, y, sample_weight, batch_size):
            answers = answer(inputs) if answer else model(inputs, training=False)
            collected.answers.append(_numbers(answers))
            if labels is None:
                continue
            collected.labels.append(_numbers(labels))
            if judge is None:
                continue
            if "loss" in configured:
                judge.loss(labels, answers, weight, [] if answer else model.losses)
            judge.results(labels, answers, weight)
            for name, numbers in _each(judge, configured, labels, answers, weight).items():
                per_sample.setdefault(name, []).append(numbers)
    except UserError:
        raise
    except Exception as error:  # what models, losses and metrics raise has no end
        raise UserError(
            f"{model.name!r} cannot be scored: {type(error).__name__}: {error} Give what fits its "
            "outputs and labels: metrics=[keras.metrics.…], a function of scikit-learn, or measure "
            "it yourself and pass scores={…}."
        ) from error
    answers = _joined(collected.answers)
    labels = _joined(collected.labels) if collected.labels else None
    values: dict[str, float] = {}
    if judge is not None and labels is not None:
        found = judge.so_far()
        named = {name: float(value) for name, value in found.items() if np.ndim(value) == 0}
        if "loss" not in configured:
            named.pop("loss", None)
        values = {_key(name, _outputs(model)): value for name, value in named.items()}
    directions = {
        key: mode
        for key in values
        if (mode := mode_of_name(key.replace("/", "_"), judge.metrics if judge else ()))
    }
    joined = {name: np.concatenate(parts) for name, parts in per_sample.items()}
    if labels is not None:
        for name, function in whole.items():
            values[name] = float(function(labels, answers))
            if name.endswith("_score"):
                directions[name] = "max"
            elif name.endswith(("_error", "_loss", "_deviance")):
                directions[name] = "min"
    loss = configured.get("loss", loss_of(model))
    task = task_of(loss, answers) if isinstance(answers, np.ndarray) else None
    if task is None and metrics is None and not by_labels and labels is not None:
        task = _of_labels(model, labels, answers)
    scores = Scores(values, directions, joined, answers, labels, task)
    return _with_accuracy(scores) if metrics is None else scores


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


def difference(answers: Any, other: Any) -> dict[str, float]:
    """How far two models' answers are apart.

    Args:
        answers: Arrays of shape [samples, …], or a structure of such.
        other: Those of the model that they should equal.

    Returns:
        `difference`: the root of the mean square of what they differ by, over that of `other`;
        `difference_max`: the largest, over the largest of `other`. Over all outputs: the worst.
    """
    worst = {"difference": 0.0, "difference_max": 0.0}
    for ours, theirs in zip(keras.tree.flatten(answers), keras.tree.flatten(other), strict=True):
        a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        if a.shape != b.shape:
            raise UserError(f"Two models' answers differ in shape: {a.shape} and {b.shape}.")
        tiny = np.finfo(np.float64).tiny
        root = np.sqrt(np.mean((a - b) ** 2)) / max(np.sqrt(np.mean(b**2)), tiny)
        most = np.max(np.abs(a - b)) / max(np.max(np.abs(b)), tiny)
        worst["difference"] = max(worst["difference"], float(root))
        worst["difference_max"] = max(worst["difference_max"], float(most))
    return worst


def _scores_by_itself(model: keras.Model) -> bool:
    return any(
        owner.__module__.partition(".")[0] != "keras"
        for name in _OWN_WAYS
        for owner in [next(each for each in type(model).__mro__ if name in vars(each))]
    )


def _evaluated(model: Any, x: Any, y: Any, sample_weight: Any, batch_size: int) -> Scores:
    """By `evaluate`, whose traces are taken off the model again."""
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
            f"{model.name!r} cannot be scored: {type(error).__name__}: {error} It has an "
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


def _split(metrics: Any) -> tuple[Any, dict[str, Callable[..., Any]]]:
    """What Keras can take, and functions of scikit-learn, which want all answers."""
    if metrics is None or isinstance(metrics, Mapping):
        return metrics, {}
    listed = (
        list(metrics)
        if isinstance(metrics, Sequence) and not isinstance(metrics, str)
        else [metrics]
    )
    whole = {
        each.__name__: each
        for each in listed
        if callable(each) and getattr(each, "__module__", "").partition(".")[0] == "sklearn"
    }
    return [each for each in listed if each not in whole.values()] or None, whole


def _each(
    judge: Judge, configured: Mapping[str, Any], labels: Any, answers: Any, weight: Any
) -> dict[str, np.ndarray]:
    """A number a sample, of a model with one output whose metrics are means over samples."""
    if not tf.is_tensor(answers) and not isinstance(answers, np.ndarray):
        return {}
    found = {}
    loss = configured.get("loss")
    functions = {}
    if loss is not None and not isinstance(loss, Mapping | list | tuple):
        known = keras.losses.get(loss)
        functions["loss"] = known.call if isinstance(known, keras.losses.Loss) else known
    for metric in judge.metrics:
        for each in (metric, *getattr(metric, "metrics", [])):
            if (function := getattr(each, "_fn", None)) is not None:
                named = getattr(each, "_fn_kwargs", {})
                functions[each.name] = lambda a, b, f=function, n=named: f(a, b, **n)
    mask = getattr(answers, "_keras_mask", None)
    for name, function in functions.items():
        try:
            values = np.asarray(function(tf.convert_to_tensor(labels), answers), np.float64)
        except Exception:  # it wants another form; the mean that Keras computed is on record
            continue
        rows = len(values) if values.ndim else 0
        if rows != len(keras.tree.flatten(answers)[0]):
            continue
        shown = np.ones_like(values)
        for part in (mask, weight):
            if part is not None and np.ndim(part):
                given = np.asarray(part, np.float64)
                if given.ndim > values.ndim:
                    given = given.reshape(given.shape[: values.ndim])
                shown = shown * given.reshape(given.shape + (1,) * (values.ndim - given.ndim))
        flat, shown = values.reshape(rows, -1), shown.reshape(rows, -1)
        total = shown.sum(axis=1)
        found[name] = np.where(
            total > 0, (flat * shown).sum(axis=1) / np.where(total > 0, total, 1), 0
        )
    return found


def _of_labels(model: Any, labels: Any, answers: Any) -> Task:
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
        f"{model.name!r} was not compiled, so nothing says what it is to be scored by. Compile it "
        "with its loss and metrics, give metrics=[keras.metrics.…], or pass scores={…}."
    )


def agreement(found: Scores, other: Any, loss: Any = None) -> float | None:
    """Share of the decisions on which another model agrees; None of answers that decide nothing.

    Args:
        found: The scores of a model with one output.
        other: The answers of the other, of the same shape.
        loss: What the model was compiled with: of logits, 0 decides instead of 0.5.

    Raises:
        UserError: The answers differ in shape.
    """
    if found.task not in ("classification", "binary", "multi-label"):
        return None
    answers, other = np.asarray(found.answers), np.asarray(other)
    if answers.shape != other.shape:
        raise UserError(f"Two models' answers differ in shape: {answers.shape} and {other.shape}.")
    if found.task == "classification":
        same = answers.argmax(axis=-1) == other.argmax(axis=-1)
        known = ~(np.isnan(answers).any(axis=-1) | np.isnan(other).any(axis=-1))
    else:
        threshold = 0.0 if is_logits(loss) else 0.5
        same = (answers > threshold) == (other > threshold)
        known = ~(np.isnan(answers) | np.isnan(other))
    return float(np.mean(same & known))


def _with_accuracy(found: Scores) -> Scores:
    """A classifier has an accuracy, compiled with it or not; where masked or weighted, Keras'."""
    if found.task != "classification" or found.labels is None or "accuracy" in found.values:
        return found
    try:
        right = classes_of(found.labels, found.answers) == np.argmax(found.answers, axis=-1)
    except ValueError:
        return found
    each = right.reshape(len(right), -1).mean(axis=1)
    return Scores(
        {**found.values, "accuracy": float(right.mean())},
        {**found.directions, "accuracy": "max"},
        {**found.per_sample, "accuracy": each},
        found.answers,
        found.labels,
        found.task,
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
