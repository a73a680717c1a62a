"""LayerNorms: gradient and weight norms of each layer over the steps of a training."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from mlflow_keras_adv.callbacks.base import Joined, RunCallback
from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.tracking.run import Run
from mlflow_keras_adv.training.readings import Readings

Row = tuple[int, dict[str, float]]

# Layers of the heat map that are named; each takes a third of an inch.
MAX_NAMED = 100


class LayerNorms(RunCallback):
    """Records the L2 norm of each layer's gradient at each update, and of its weights per epoch.

    At the end of the training the run gets `gradients/layers.parquet` (columns `step`, `layer`,
    `gradient_norm`, `weight_norm`; NaN if one was not measured at that step) and a heat map of the
    gradient norms, `gradients/layers.png`. A second training of the run writes `layers-2`. The
    norms are those of the unscaled gradients of all layers, before clipping, so that the root of
    the sum of their squares is `gradient/norm`. Variables of float8 layers that are updated without
    a gradient (scales, ranges) have none. A hundred layers would be a hundred charts, so the norms
    are logged as metrics only with `as_metrics=True`.

    Args:
        max_steps: Number of steps to keep; of a longer training every second, fourth, … one.
        as_metrics: Whether to log them as metrics `gradient/layer/<path>` too, at each update.
        run: The run to write to, or its id. Default: the innermost `track`, else MLflow's active
            run; without any, nothing is recorded and that is logged.

    Raises:
        ValueError: If `max_steps` is less than 2.
    """

    def __init__(
        self, *, max_steps: int = 2000, as_metrics: bool = False, run: Run | str | None = None
    ) -> None:
        super().__init__(run)
        if max_steps < 2:
            raise ValueError(f"Received max_steps={max_steps}; expected 2 or more.")
        self._max_steps = max_steps
        self._as_metrics = as_metrics

    def begin(self, joined: Joined) -> None:
        """Has the steps write the norms of their layers."""
        self._gradients: list[Row] = []
        self._weights: list[Row] = []
        self._stride, self._updates = 1, 0
        joined.observe_layers()

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Reads the tables when it is time to."""
        if self._joined is not None:
            self._joined.batch_begin(batch)

    @keeps_random_state()
    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Takes the norms of the weights."""
        if self._joined is not None:
            squares: dict[str, float] = {}
            for weight in self.model.trainable_weights:
                path = getattr(weight, "path", weight.name)
                layer = path.rpartition("/")[0] or path
                square = float(np.sum(np.square(keras.ops.convert_to_numpy(weight), dtype=float)))
                squares[layer] = squares.get(layer, 0.0) + square
            norms = {layer: float(np.sqrt(square)) for layer, square in squares.items()}
            self._weights.append((self._joined.step(), norms))

    def end(self, joined: Joined) -> None:
        """Writes the table and the heat map, also of a training that raised."""
        if self._gradients:
            with joined.spares_training("Writing the norms of layers"):
                self._write(joined.run)

    def receive(self, readings: Readings, steps: "np.ndarray[Any, Any]") -> None:
        """Keeps the norms of the gradients."""
        if self._as_metrics and readings.layers and self._joined is not None:
            columns = {f"gradient/layer/{path}": norms for path, norms in readings.layers.items()}
            times = (1000 * readings.times).astype(np.int64)
            self._joined.run.log_series(columns, steps=steps, timestamps_ms=times)
        for index, step in enumerate(steps.tolist()):
            norms = {
                path: float(column.data[index])
                for path, column in readings.layers.items()
                if not np.ma.getmaskarray(column)[index]
            }
            if norms:
                if self._updates % self._stride == 0:
                    self._gradients.append((step, norms))
                self._updates += 1
        while len(self._gradients) > self._max_steps:
            self._gradients = self._gradients[::2]
            self._stride *= 2

    def _write(self, run: Run) -> None:
        name = f"layers{run.internals.count_up('layer norms')}"
        gradients, weights = _long(self._gradients), _long(self._weights)
        both = pd.merge(
            gradients, weights, on=["step", "layer"], how="outer", suffixes=("_gradient", "_weight")
        )
        both.columns = ["step", "layer", "gradient_norm", "weight_norm"]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"{name}.parquet")
            both.to_parquet(file, index=False)
            run.log_artifact(file, "gradients")
        run.log_figure(heat_map(gradients), f"gradients/{name}.png")


def heat_map(norms: pd.DataFrame) -> Figure:
    """Layers over steps, the colour being the norm on a logarithmic scale.

    Args:
        norms: Columns `step`, `layer` and `norm`; layers are drawn in the order of their rows.
    """
    table = norms.pivot_table(index="layer", columns="step", values="norm", sort=False)
    table = table.sort_index(axis="columns")
    values = table.to_numpy(dtype=float)
    shown = np.where(np.isfinite(values) & (values > 0), values, np.nan)
    # Of a hundred layers each has its name; of thousands the figure is as high and names some.
    figure = Figure(figsize=(9, 1.5 + 0.3 * min(len(table), MAX_NAMED)), layout="constrained")
    panel = figure.subplots()
    scale = LogNorm() if np.isfinite(shown).any() else None
    image = panel.imshow(shown, aspect="auto", norm=scale, interpolation="nearest")
    named = range(0, len(table), -(-len(table) // MAX_NAMED))
    panel.set_yticks(named, table.index[:: named.step])
    ticks = np.unique(np.linspace(0, len(table.columns) - 1, 6).astype(int))
    panel.set_xticks(ticks, [str(table.columns[tick]) for tick in ticks])
    panel.set(xlabel="training batches", title="gradient norm per layer")
    figure.colorbar(image, ax=panel)
    return figure


def _long(rows: list[Row]) -> pd.DataFrame:
    cells = [(step, layer, norm) for step, norms in rows for layer, norm in norms.items()]
    return pd.DataFrame(cells, columns=["step", "layer", "norm"])
