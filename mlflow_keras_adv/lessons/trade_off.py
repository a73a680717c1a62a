"""TradeOff: a metric against a cost, over variants of one model; the cheapest good one wins."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

import keras
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.compression.artifact import Artifact
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.evaluation.finished_model import FinishedModel
from mlflow_keras_adv.lessons.technique import Technique
from mlflow_keras_adv.metrics.criteria import criteria_of
from mlflow_keras_adv.metrics.footprint import latency_ms, weight_rows
from mlflow_keras_adv.metrics.score import deciding, score
from mlflow_keras_adv.tflite.runtime import LiteRTModel
from mlflow_keras_adv.tflite.score import score_file
from mlflow_keras_adv.tracking.directions import AskedMode, asked
from mlflow_keras_adv.tracking.run import Run, run_of

# Unit and label of a cost in the figure.
_AXES = {
    "gzip_bytes": (1000, "kB after gzip"),
    "size_bytes": (1000, "kB"),
    "flops": (1e6, "MFLOPs of a sample"),
    "latency_ms_p50": (1, "ms a sample"),
}
# Timed calls of `model.predict`, each of which takes about 30 ms, whatever the model.
PREDICTIONS = 20


class Splits(Protocol):
    """Data to choose a variant on, and to test all of them on."""

    @property
    def validation(self) -> tuple[Any, Any]:
        """Samples and labels to choose a variant on."""

    @property
    def test(self) -> tuple[Any, Any]:
        """Samples and labels to test the finished models on."""


class Compressed(Protocol):
    """The results of `compression.prune` and `compression.cluster`."""

    @property
    def model(self) -> keras.Model:
        """The smaller model."""

    @property
    def layers(self) -> Sequence[Any]:
        """Rows of its table, dataclasses."""


class TradeOff:
    """Logs the variants of a model and chooses among them.

    One metric decides: the accuracy of a classifier, else the first metric that the baseline was
    compiled with, else its loss.

    Each variant is a nested run and a LoggedModel with its `final/…` metrics and the table
    `weights.json`. A pruned or clustered model has the table `layers.json` and, if the sparsity
    grew step by step, the curve `batch/sparsity`. A `.tflite` file has the metric on the validation
    split (`val/accuracy`) at step 0, and the tag `float_layers` if some layers stayed in float. A
    baseline that is added also has `final/latency_predict_ms_p50`, the median time of
    `model.predict` for one sample.

    Example:
        ```python
        with mka.technique("shrink", params, dataset=data) as technique:
            trade = mka.TradeOff(technique, data)
            with technique.variant("baseline"):
                trade.add(model)
            with technique.variant("int8"):
                trade.add(mka.compression.quantize(model, mka.compression.int8, x[:200]))
            trade.choose(margin=0.01)
        ```

    Args:
        technique: The technique that has the variants.
        data: The validation split to choose on, and the test split.
        baseline: The model that the others are compared with, if `technique.finish` has logged it
            already. Default: the first model added.
        name: The name of that model in `technique.finished`.
        monitor: The metric that decides instead of the one above, by its name in `final/…`.
        mode: Whether it is better when it is lower ("min") or higher ("max"); "auto": as Keras or
            scikit-learn defines it.
        cost: The metric to minimize, by its name in `final/…`: "gzip_bytes", "size_bytes", "flops",
            "latency_ms_p50", ….

    Attributes:
        validation: The metric of each variant on the validation split, by name.
    """

    def __init__(
        self,
        technique: Technique,
        data: Splits,
        *,
        baseline: keras.Model | None = None,
        name: str = "baseline",
        monitor: str | None = None,
        mode: AskedMode = "auto",
        cost: str = "gzip_bytes",
    ) -> None:
        self._technique = technique
        self._data = data
        self._name = name
        self._reference = baseline
        self._metric, self._mode = monitor, asked(mode)
        self._cost = cost
        self.validation: dict[str, float] = {}
        if baseline is not None:
            self.validation[name] = self._value(baseline)

    @keeps_random_state()
    def add(
        self,
        made: keras.Model | Compressed | Artifact,
        *,
        run: Run | str | None = None,
        parent: str | None = None,
        parent_model_id: str | None = None,
    ) -> FinishedModel:
        """Logs a variant.

        Args:
            made: A Keras model, a result of `prune` or `cluster`, or a `.tflite` file.
            run: The nested run that made it, or its id; the variant has its name. Default: the
                current run.
            parent: Name of the variant that it was made from. Default: the baseline.
            parent_model_id: Id of a LoggedModel of another run that it was made from, instead.

        Returns:
            The model's entry in the store, and its `final/…` metrics.

        Raises:
            ValueError: The first one added is no Keras model.
            TypeError: The run is no run.
            UserError: No run is open, the model has no such metric, or it is unknown whether that
                is better lower or higher.
        """
        run = run_of(run, "add")
        if self._reference is None and not isinstance(made, keras.Model):
            raise ValueError(
                "the first variant is the baseline and has to be a Keras model; got: "
                f"{type(made).__name__}. Add the model that it was made from before it."
            )
        if parent_model_id is None and self._reference is not None:
            parent_model_id = self._technique.finished[parent or self._name].info.model_id
        origin: dict[str, Any] = {
            "reference": self._reference,
            "parent_model_id": parent_model_id,
        }
        if isinstance(made, Artifact):
            self.validation[run.name] = value = self._value(LiteRTModel(made.content))
            run.log_metrics({f"val/{self._metric}": value}, step=0)
            if made.float_layers:
                run.set_tags({"float_layers": ", ".join(made.float_layers)})
            return self._technique.finish_file(made.content, *self._data.test, run=run, **origin)
        model = made if isinstance(made, keras.Model) else made.model
        if not isinstance(made, keras.Model):
            run.log_table(pd.DataFrame([asdict(row) for row in made.layers]), "layers.json")
            _log_curve(run, made)
        run.log_table(pd.DataFrame(weight_rows(model)), "weights.json")
        self.validation[run.name] = self._value(model)
        finished = self._technique.finish(model, *self._data.test, run=run, **origin)
        if self._reference is None:
            self._reference, self._name = model, run.name
            run.log_metrics({"final/latency_predict_ms_p50": self._predict_ms(model)}, step=0)
        return finished

    @keeps_random_state()
    def choose(
        self,
        *,
        margin: float,
        candidates: Sequence[str] | None = None,
        curves: Sequence[str] | None = None,
    ) -> str:
        """Chooses the variant of least cost, and logs the comparison to the parent.

        The parent also gets the figure `<metric>_against_size.png` (`…_against_<cost>.png` for a
        cost that is not in bytes), with a point for each variant.

        Args:
            margin: How much worse than the baseline it may be on the validation split, in the unit
                of the metric: for an accuracy, a share of the samples.
            candidates: Names of the variants to choose among, beside the baseline. Default: all.
            curves: Metric keys of the learning curves. Default: loss and the metric.

        Returns:
            The name of the variant.
        """
        chosen = self.smallest(margin, candidates or tuple(self.validation))
        drawn = curves or ("train/loss", f"val/{self._metric}")
        self._technique.compare(candidates=[chosen], curves=drawn)
        against = "size" if self._cost.endswith("_bytes") else self._cost.replace("/", "_")
        name = f"{str(self._metric).replace('/', '_')}_against_{against}.png"
        self._technique.run.log_figure(self._figure(chosen), name)
        return chosen

    def smallest(self, margin: float, candidates: Sequence[str]) -> str:
        """Finds the variant of least cost that is good enough.

        A variant whose cost is unknown, such as `flops` that could not be counted, comes last.

        Args:
            margin: How much worse than the baseline it may be.
            candidates: Names of the variants to choose among.

        Returns:
            Its name; the baseline's if none is good enough.

        Raises:
            UserError: No variant has the cost.
        """
        sign = 1 if self._mode == "max" else -1
        least = sign * self.validation[self._name] - margin - 1e-9  # of rounding
        considered = (self._name, *candidates)
        within = [name for name in considered if sign * self.validation[name] >= least]
        costs = self._technique.final(self._cost)
        if not costs:
            finals = (each.final for each in self._technique.finished.values())
            known = ", ".join(dict.fromkeys(key for final in finals for key in final))
            raise UserError(f"No variant has the cost {self._cost!r}; they have: {known}.")
        return min(within, key=lambda name: costs.get(name, math.inf))

    def _value(self, model: keras.Model | LiteRTModel) -> float:
        x, y = self._data.validation
        if isinstance(model, LiteRTModel):
            assert self._reference is not None  # add() sees to it
            found = score_file(model, criteria_of(self._reference), x, y)
        else:
            found = score(model, x, y)
        metric = self._metric or deciding(found) or ""
        if metric not in found.values:
            known = ", ".join(found.values) or "nothing"
            raise UserError(f"There is no metric {metric!r} to choose by, but {known}.")
        self._metric, self._mode = metric, self._mode or found.directions.get(metric)
        if self._mode is None:
            raise UserError(f"It is not known which way {metric!r} is better: give mode=.")
        return found.values[metric]

    def _predict_ms(self, model: keras.Model) -> float:
        sample = keras.tree.map_structure(lambda array: array[:1], self._data.test[0])
        times = latency_ms(lambda: model.predict(sample, verbose=0), repeats=PREDICTIONS)
        return float(np.median(times))

    def _figure(self, chosen: str) -> Figure:
        """Draws the metric over the cost, on a logarithmic axis."""
        figure = Figure(figsize=(7.5, 5), layout="constrained")
        panel = figure.subplots()
        heights = self._technique.final(str(self._metric))
        unit, label = _AXES.get(self._cost, (1, self._cost))
        costs = self._technique.final(self._cost)
        having = [name for name in self.validation if name in costs]
        for number, name in enumerate(sorted(having, key=costs.__getitem__)):
            at = costs[name] / unit, heights[name]
            colour, area = ("C1", 70) if name == chosen else ("C0", 30)
            panel.scatter(*at, s=area, color=colour)
            # Slanted up and down in turn: neighbours are often of one height, or of one size.
            slant, side = ((40, "bottom"), (-40, "top"))[number % 2]
            turned: dict[str, Any] = {"rotation": slant, "rotation_mode": "anchor", "va": side}
            panel.annotate(name, at, xytext=(4, 0), textcoords="offset points", **turned)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(lambda size, _: f"{size:g}")
        panel.margins(x=0.25, y=0.35)
        panel.set(xlabel=label, ylabel=f"{self._metric} on the test split")
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        return figure


def _log_curve(run: Run, made: Any) -> None:
    for step, sparsity in zip(
        getattr(made, "steps", ()), getattr(made, "sparsity", ()), strict=True
    ):
        run.log_metrics({"batch/sparsity": float(sparsity)}, step=int(step))
