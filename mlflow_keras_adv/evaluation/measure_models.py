"""Keras and LiteRT models measured side by side, for the gates of the registry."""

import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from mlflow.models import Model

from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.extras import MissingExtraError
from mlflow_keras_adv.flavors import litert
from mlflow_keras_adv.flavors.keras import load_model
from mlflow_keras_adv.metrics.agreement import compared
from mlflow_keras_adv.metrics.criteria import Criteria, criteria_of, kept_in
from mlflow_keras_adv.metrics.flops import flops_and_said, flops_of_call
from mlflow_keras_adv.metrics.footprint import latency_ms, sizes
from mlflow_keras_adv.metrics.judge import renewed
from mlflow_keras_adv.metrics.score import Scores, deciding, score, scores_by_itself
from mlflow_keras_adv.registry.samples import Measurements, Samples
from mlflow_keras_adv.tflite.footprint import file_footprint
from mlflow_keras_adv.tflite.runtime import LiteRTModel
from mlflow_keras_adv.tflite.score import score_file

_logger = logging.getLogger(__name__)

_LONGEST_PROBLEM = 600
_TURN_SECONDS = 1.0  # that one turn of a slow model may take
_LAMBDA = (
    "its file holds a Lambda layer, which is Python code of whoever wrote the file, and Keras' "
    "safe mode, which stays on, does not run it. Put the function in a layer of its own, a "
    "subclass of keras.layers.Layer, or use keras.ops in a functional model; log the model again"
)


@keeps_random_state()
def measure_models(
    folders: Sequence[Path],
    samples: Samples,
    *,
    metrics: Any = None,
    batch_size: int = 256,
    rounds: int = 20,
    repeats: int = 10,
) -> list[Measurements]:
    """Measures Keras and LiteRT models on the same samples, in this process.

    Pass it as `measure` to `registry.promote`. All models are scored by the losses and metrics that
    the first one was compiled with, which are kept with it; else by those of the next that has
    some; else, if the labels are those of a classifier, by accuracy.

    Args:
        folders: Models in MLflow's format.
        samples: The samples to measure on.
        metrics: Metrics to score by instead; see `metrics.score.score`. For example
            `measure=functools.partial(mka.measure_models, metrics=["mae"])`.
        batch_size: Samples per call when a model predicts.
        rounds: How often the models take turns when their latency is measured.
        repeats: Calls of a model in each of its turns.

    Returns:
        Measurements in the order of `folders`: the scores, the names of
        `metrics.footprint.footprint` and, for a `.tflite` file, `peak_memory_bytes`; latencies
        are those of one sample, measured in turns. A model that cannot be scored still has its size
        and latency, and `unscored` says why. A model that cannot be loaded or fails on the samples
        has a `problem`.

    Raises:
        UserError: One of them is a `.tflite` file, and LiteRT is not installed.
    """
    loaded = [_guarded(partial(_load, folder), folder) for folder in folders]
    shared = next((each.criteria for each in loaded if _says(each.criteria)), None)
    scale = _Scale(samples, shared, metrics, batch_size)
    found = [
        each if each.problem else _guarded(partial(scale.weigh, each), each.folder)
        for each in loaded
    ]
    times: list[list[np.ndarray]] = [[] for _ in found]
    for number in range(rounds):
        order = range(len(found)) if number % 2 == 0 else reversed(range(len(found)))
        for index in order:
            call = found[index].call
            if call is not None:
                warm_up = 2 if number < 2 else 0
                turn = latency_ms(call, repeats=repeats, warm_up=warm_up, seconds=_TURN_SECONDS)
                times[index].append(turn)
    last = found[-1] if len(found) > 1 else None
    return [
        _measurements(each, series, None if each is last else last, samples)
        for each, series in zip(found, times, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class _Loaded:
    """A model that is measured: its sizes, its scores, and a call with one sample."""

    folder: Path
    model: keras.Model | LiteRTModel | None = None
    criteria: Criteria = field(default_factory=lambda: Criteria("model"))
    weights: Mapping[str, float] = field(default_factory=dict)
    call: Callable[[], Any] | None = None
    scores: Scores | None = None
    slices: Mapping[str, tuple[int, Scores]] = field(default_factory=dict)
    unscored: str = ""
    problem: str = ""


def _says(criteria: Criteria) -> bool:
    return bool(criteria.configured)


def _guarded(do: Callable[[], _Loaded], folder: Path) -> _Loaded:
    try:
        return do()
    except MissingExtraError:
        raise  # no fault of the model
    except Exception as error:  # what a broken model raises has no end
        text = " ".join(str(error).split())
        known = _LAMBDA if "safe_mode" in text and "ambda" in text else text
        problem = f"{type(error).__name__}: {known}"
        return _Loaded(folder, problem=problem[:_LONGEST_PROBLEM])


def _load(folder: Path) -> _Loaded:
    flavors = Model.load(str(folder)).flavors
    if litert.FLAVOR_NAME in flavors:
        # Not as it was logged: its params may ask for classes instead of scores.
        model = LiteRTModel(litert.load_model(str(folder)).content)
        kept = kept_in(Path(folder, flavors[litert.FLAVOR_NAME]["data"]))
        return _Loaded(folder, model, kept or Criteria("the file"))
    keras_model = load_model(str(folder))
    kept = kept_in(Path(folder, flavors["keras"]["data"])) or criteria_of(keras_model)
    return _Loaded(folder, keras_model, kept)


@dataclass(frozen=True, eq=False)
class _Scale:
    """The samples and metrics by which all models are measured."""

    samples: Samples
    shared: Criteria | None
    metrics: Any
    batch_size: int

    def weigh(self, loaded: _Loaded) -> _Loaded:
        """Sizes, scores and a call of one sample."""
        one = keras.tree.map_structure(lambda array: np.asarray(array)[:1], self.samples.x)
        model, own = loaded.model, loaded.criteria
        if isinstance(model, LiteRTModel):
            one = own.named(one)
            weights = file_footprint(model.content, one, repeats=1)
            named = model.named(one)
            if model.rows in (-1, 1):  # else it takes more samples a call than this one
                encoded = {
                    tensor.name: tensor.encode(named[tensor.name]) for tensor in model.inputs
                }
                call: Callable[[], Any] = partial(model.invoke, encoded)
            else:
                call = partial(model.predict, named)
        else:
            assert model is not None
            sample = keras.tree.map_structure(tf.convert_to_tensor, one)
            compiled = tf.function(lambda inputs: model(inputs, training=False))
            traced = partial(compiled.get_concrete_function, sample)
            counted, _ = flops_and_said(partial(flops_of_call, model, traced, sample))
            weights = sizes(model) | counted
            call = partial(compiled, sample)
        weights = {key: value for key, value in weights.items() if not key.startswith("latency")}
        weighed = replace(loaded, weights=weights, call=call)
        scores, unscored = self._scores(loaded, self.samples)
        slices = {}
        if not unscored and scores.values:
            for name, group in self.samples.groups():
                slices[name] = group.count, self._scores(loaded, group)[0]
        return replace(weighed, scores=scores, slices=slices, unscored=unscored)

    def _scores(self, loaded: _Loaded, samples: Samples) -> tuple[Scores, str]:
        """The scores by the first criteria that fit, and why there are none."""
        own, refused = loaded.criteria, ""
        tried = [own]
        if self.shared is not None:
            alike = replace(self.shared, outputs=own.outputs, input_names=own.input_names)
            tried.insert(0, alike)
        model = loaded.model
        by_itself = isinstance(model, keras.Model) and scores_by_itself(model)
        for criteria in tried if samples.y is not None or by_itself else ():
            try:
                return self._scored(model, criteria, samples, self.metrics), ""
            except UserError as error:
                refused = refused or str(error)
        return self._scored(model, own, replace(samples, y=None, sample_weight=None), []), refused

    def _scored(
        self,
        model: keras.Model | LiteRTModel | None,
        criteria: Criteria,
        samples: Samples,
        metrics: Any,
    ) -> Scores:
        given = samples.x, samples.y, samples.sample_weight
        if isinstance(model, LiteRTModel):
            return score_file(model, criteria, *given, metrics=metrics)
        assert model is not None
        if metrics is None and (criteria.configured or scores_by_itself(model)):
            configured = renewed(criteria.configured)
            try:
                model.compile(**configured)
            except Exception:  # its compile() takes other arguments: it is scored by its answers
                _logger.info("%s is scored by its answers alone", model.name, exc_info=True)
            else:
                found = score(model, *given, batch_size=self.batch_size)
                if found.answers is None:  # its evaluation is its own
                    found = replace(found, answers=score(model, samples.x, metrics=[]).answers)
                return found
        names = tuple(getattr(model, "output_names", None) or ())
        return score(
            replace(criteria, output_names=names),
            *given,
            metrics=metrics,
            answer=lambda inputs: model(inputs, training=False),
            batch_size=self.batch_size,
        )


def _measurements(
    loaded: _Loaded, times: list[np.ndarray], other: _Loaded | None, samples: Samples
) -> Measurements:
    found = loaded.scores
    metrics = {**(found.values if found else {}), **loaded.weights}
    if times:
        middle, slow = np.percentile(np.concatenate(times), [50, 95]).tolist()
        metrics |= {"latency_ms_p50": middle, "latency_ms_p95": slow}
    beside: dict[str, float] = {}
    if found is not None and other is not None and other.scores is not None:
        with suppress(UserError):  # of other shapes; the gate says what it misses
            loss = loaded.criteria.configured.get("loss")
            beside = compared(found, other.scores, loss)
    return Measurements(
        metrics,
        per_sample=found.per_sample if found else {},
        weights=found.weights if found else {},
        directions=found.directions if found else {},
        deciding=(deciding(found) or "") if found else "",
        beside=beside,
        slices={
            name: Measurements(
                each.values,
                per_sample=each.per_sample,
                weights=each.weights,
                directions=each.directions,
                deciding=deciding(each) or "",
                samples=count,
            )
            for name, (count, each) in loaded.slices.items()
        },
        samples=samples.count,
        unscored=loaded.unscored,
        problem=loaded.problem,
        serve=partial(_serve, loaded.folder),
    )


_SERVE = """
import sys, mlflow.models
folder, payload, answer = sys.argv[1:]
mlflow.models.predict(folder, input_path=payload, output_path=answer, env_manager="local")
"""


def _serve(folder: Path) -> str:
    """Has a new process answer the model's input example as a server would; says what is wrong.

    New, because what this process has imported might be all that lets the model load.
    """
    with tempfile.TemporaryDirectory() as temporary:
        payload, answer = Path(temporary, "request.json"), Path(temporary, "answer.json")
        content = Model.load(str(folder)).get_serving_input(str(folder))
        if content is None:
            return "it has no input example to answer: log it with input_example="
        payload.write_text(content)
        command = [sys.executable, "-c", _SERVE, str(folder.absolute()), str(payload), str(answer)]
        done = subprocess.run(command, cwd=temporary, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
            return f"mlflow.models.predict failed: {' '.join(last)}"[:_LONGEST_PROBLEM]
        answered = json.loads(answer.read_text())
    numbers = np.asarray(list(_numbers(answered["predictions"])), dtype=float)
    finite = numbers.size > 0 and bool(np.isfinite(numbers).all())
    return "" if finite else "it answers its input example with numbers that are not finite"


def _numbers(nested: Any) -> Any:
    if isinstance(nested, dict):
        nested = list(nested.values())
    if isinstance(nested, list):
        for each in nested:
            yield from _numbers(each)
    else:
        yield np.nan if nested is None else nested
