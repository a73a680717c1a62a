"""Predictions: figures and a table of the model's predictions for a few samples, per epoch."""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mlflow_keras_adv.callbacks.base import Joined, RunCallback
from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.metrics.answers import (
    by_output,
    in_arrays,
    masks_of,
    rows_a_call,
)
from mlflow_keras_adv.metrics.left_alone import left_alone
from mlflow_keras_adv.metrics.logits import endings_of
from mlflow_keras_adv.metrics.score import loss_of
from mlflow_keras_adv.metrics.task import Kind
from mlflow_keras_adv.metrics.views.outputs import Known, Seen, check_task, seen
from mlflow_keras_adv.metrics.views.pictures import pixels
from mlflow_keras_adv.tracking.run import Run
from mlflow_keras_adv.training.trainings import training_of

_logger = logging.getLogger(__name__)

MAX_ROWS = 500

# The tag that says what the answers were taken for.
TASK_TAG = "task.predictions"

# What `predict` leaves on a model.
_OF_PREDICT = ("predict_function", "stop_predicting")

Array = np.ndarray[Any, Any]


class Predictions(RunCallback):
    """Shows the predictions of a model for fixed samples while it is trained.

    Figures with a step slider in the MLflow UI, and at the end of the training the table
    `predictions.json` (`predictions-2.json` of a second training in the run) with a row per sample,
    the worst first, at most 500. By task, figures `predictions/…`, and columns beside `index` and
    `step`:

    - classification: `confusion_matrix`, `reliability` and, of images, `samples`; `label`,
      `predicted`, `confidence`, `correct`.
    - binary: `confusion_matrix` at the threshold, `roc`, `precision_recall`, `reliability` and, of
      images, `samples`; `label`, `predicted`, `probability`, `correct`.
    - multi-label: `per_label`, `average_precision`; `labels`, `predicted`, `wrong`, `correct`.
    - regression: `predicted_over_true`, `residuals`; `true`, `predicted`, `error` of each target,
      `absolute_error`.
    - segmentation: `overlays`, `iou`, `confusion_matrix`; `accuracy`, `mean_iou`.
    - tagging: `confusion_matrix`, `reliability`; `steps`, `wrong`, `accuracy`, `label`,
      `predicted`.
    - forecast: `series`, `error_per_step`; `absolute_error`, `error/1`, …
    - reconstruction: `pairs`; `absolute_error`, `squared_error`.

    The task follows from the loss and the shapes, or from the labels if the loss does not tell; a
    forecast must be given, because it has the shapes of a regression. If the task is unknown,
    nothing is shown, with a warning. The tag `task.predictions` names the task. With several
    outputs, each has figures `predictions/<output>/…` and a table `predictions/<output>.json`.
    Values that are masked, or have weight 0, are not shown.

    Args:
        x: Samples, in the form that `model.predict` accepts. Shape `[n, height, width]` or
            `[n, height, width, 1 or 3]` to be shown as images. Choose a few hundred that are not
            trained on. A finite dataset has its own labels and weights.
        y: Their labels, in the structure of the outputs: classes or one-hot, numbers, 0 and 1.
            None: the samples themselves, for an autoencoder.
        sample_weight: As in `fit`.
        task: One of the tasks above, or a dict by output.
        class_names: Names of the classes, labels, tags or targets, in the order of the model's
            outputs; of several outputs a dict.
        max_images: Largest number of epochs of the run with images: spread evenly over the
            training, including the first and the last. A further training in a run that has this
            number gets only the last one. A store keeps two files for each image.
        every: Smallest number of epochs between two with images.
        run: The run to write to, or its id. Default: the innermost `track`, else MLflow's active
            run; without any, nothing is predicted and that is logged.

    Raises:
        ValueError: If `max_images` or `every` is less than 1, or there is no such task.
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        *,
        sample_weight: Any = None,
        task: Kind | Mapping[str, Kind] | None = None,
        class_names: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        max_images: int = 16,
        every: int = 1,
        run: Run | str | None = None,
    ) -> None:
        super().__init__(run)
        if max_images < 1 or every < 1:
            raise ValueError(
                f"Received max_images={max_images} and every={every}; expected 1 or more of each."
            )
        check_task(task)
        self._data = (x, y, sample_weight)
        self._task = task
        self._class_names = class_names
        self._max_images = max_images
        self._every = every

    def begin(self, joined: Joined) -> None:
        """Begins anew."""
        self._chosen: set[int] | None = None
        self._tables: dict[str, pd.DataFrame] = {}
        self._said: set[str] = set()
        self._tagged = ""
        self._pictured = -1
        self._found = {name: vars(self.model).get(name) for name in _OF_PREDICT}

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Chooses the epochs of which images are logged, now that the first one is known."""
        if self._joined is None or self._chosen is not None:
            return
        training = training_of(self.model)
        known = self.params or ({} if training is None else training.arguments)
        last = known.get("epochs", 1) - 1
        epochs = sorted({*range(epoch, last, self._every), last})
        left = max(1, self._max_images - self._joined.run.internals.counts["predictions/images"])
        # Backwards: if there is but one, it is the last.
        places = np.linspace(len(epochs) - 1, 0, min(left, len(epochs))).round().astype(int)
        self._chosen = {epochs[place] for place in places}

    @keeps_random_state()
    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Predicts, and logs the images, if the epoch is among those chosen."""
        if self._joined is not None and epoch in (self._chosen or ()):
            self._predict(self._joined)

    @keeps_random_state()
    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Predicts with the finished model, and logs the table."""
        if self._joined is not None:
            self._predict(self._joined)
        self.leave()

    def end(self, joined: Joined) -> None:
        """Writes the table: that of the last prediction, where the training raised."""
        self._put_back()
        if self._tables:
            with joined.spares_training("Writing the table of predictions"):
                run = joined.run
                suffix = run.internals.count_up("predictions/trainings")
                for name, table in self._tables.items():
                    file = f"predictions/{_in_keys(name)}" if name else "predictions"
                    run.log_table(table, f"{file}{suffix}.json")

    def _put_back(self) -> None:
        """Leaves the model as it was found: without the function that `predict` has made."""
        if self._found["predict_function"] is None and "predict_function" in vars(self.model):
            self.model.predict_function = None

    def _predict(self, joined: Joined) -> None:
        with joined.spares_training("Predictions"):
            step = joined.step()
            found = self._look()
            self._say(joined.run, found)
            for name, view in found.views.items():
                table = view.rows.assign(step=step)[:MAX_ROWS]
                # MLflow looks for columns of objects; text of pandas 3 makes it warn.
                texts = table.columns[[each.kind not in "iufb" for each in table.dtypes]]
                self._tables[name] = table.astype(dict.fromkeys(texts, object))
            if step == self._pictured or not found.views:
                return
            self._pictured = step
            joined.run.internals.counts["predictions/images"] += 1
            for name, view in found.views.items():
                start = f"predictions/{_in_keys(name)}/" if name else "predictions/"
                for title, draw in view.figures.items():
                    joined.run.log_image(pixels(draw()), key=f"{start}{title}", step=step)

    def _look(self) -> Seen:
        """Answers the samples, and leaves the model as it was."""
        model = self.model
        self._data = x, y, sample_weight = in_arrays(*self._data)
        with left_alone(model):
            answers = model.predict(x, batch_size=rows_a_call(model), verbose=0)
            if self._found["stop_predicting"] is None:
                model.__dict__.pop("stop_predicting", None)
            several = any(np.ndim(each) > 2 for each in by_output(answers).values())
            masks = masks_of(model, x) if several else []
        known = Known(
            outputs=getattr(model, "output_names", None),
            loss=loss_of(model),
            endings=endings_of(model),
            task=self._task,
            names=self._class_names,
        )
        return seen(known, x, y, sample_weight, answers, masks)

    def _say(self, run: Run, found: Seen) -> None:
        """Tags the run with the task, and logs once which outputs cannot be shown."""
        if found.kinds and (said := found.said()) != self._tagged:
            self._tagged = said
            run.set_tags({TASK_TAG: said})
        sentences = [*found.refused, *found.unseen]
        if new := [each for each in sentences if each not in self._said]:
            if not self._said:
                _logger.warning(
                    "Predictions does not show all, the training goes on: %s", " ".join(new)
                )
            self._said.update(new)


def _in_keys(name: str) -> str:
    """The name of an output as MLflow takes it in keys of images and paths."""
    return re.sub(r"[^\w.-]", "_", name)
