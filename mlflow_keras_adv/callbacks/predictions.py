"""Predictions: what the model makes of a few samples, epoch by epoch, without subclassing."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mlflow_keras_adv.callbacks.either_keras import EitherKeras
from mlflow_keras_adv.callbacks.onlooker import Onlooker
from mlflow_keras_adv.callbacks.prediction_figures import (
    confusion_figure,
    pixels,
    samples_figure,
)
from mlflow_keras_adv.random_state import keeps_random_state
from mlflow_keras_adv.tracking.run import Run
from mlflow_keras_adv.training.trainings import training_of

MAX_ROWS = 500

# What `predict` leaves on a model.
_OF_PREDICT = ("predict_function", "stop_predicting")

Array = np.ndarray[Any, Any]


class Predictions(EitherKeras):
    """Shows what a classifier predicts on a fixed sample while it is trained.

    Images with a step slider in the MLflow UI: `predictions/confusion_matrix` and, if the samples
    are images, `predictions/samples`, wrong ones first. At the end of the training the table
    `predictions.json` (`predictions-2.json` of a second training in the run) with a row per sample,
    at most 500, wrong ones first: `index`, `label`, `predicted`, `confidence`, `correct`, `step`.

    Args:
        x: The samples, as `model.predict` takes them. Shape `[n, height, width]` or
            `[n, height, width, 1 or 3]` to be shown as images. Choose some hundred that are not
            trained on.
        y: Their labels: integers of shape `[n]` or `[n, 1]`, or one-hot, `[n, classes]`.
        class_names: Names of the classes, in the order of the model's outputs.
        max_images: Most epochs of the run of which images are logged: spread evenly over the
            training, the first and the last among them. Of a further training in a run that has
            them all only the last. A store keeps two files for each image.
        every: Images of every n-th epoch at most.
        run: The run to write to, or its id. Default: the innermost `track`, else MLflow's active
            run; without any, nothing is predicted and that is logged.

    Raises:
        ValueError: If `max_images` or `every` is less than 1.
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        *,
        class_names: Sequence[str] | None = None,
        max_images: int = 16,
        every: int = 1,
        run: Run | str | None = None,
    ) -> None:
        super().__init__()
        if max_images < 1 or every < 1:
            raise ValueError(
                f"Received max_images={max_images} and every={every}; expected 1 or more of each."
            )
        self._x = x
        self._y = y
        self._class_names = class_names
        self._max_images = max_images
        self._every = every
        self._run_id = run.run_id if isinstance(run, Run) else run
        self._anew = functools.partial(
            type(self),
            x,
            y,
            class_names=class_names,
            max_images=max_images,
            every=every,
            run=self._run_id,
        )
        self._onlooker: Onlooker | None = None

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return self._anew, ()  # a copy starts afresh: no run, no session, no model

    @keeps_random_state()
    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Joins the training."""
        self.leave()
        self._chosen: set[int] | None = None
        self._table: pd.DataFrame | None = None
        self._pictured = -1
        self._found = {name: vars(self.model).get(name) for name in _OF_PREDICT}
        self._onlooker = Onlooker.join(self, self._run_id)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Chooses the epochs of which images are logged, now that the first one is known."""
        if self._onlooker is None or self._chosen is not None:
            return
        training = training_of(self.model)
        known = self.params or ({} if training is None else training.arguments)
        last = known.get("epochs", 1) - 1
        epochs = sorted({*range(epoch, last, self._every), last})
        left = max(1, self._max_images - self._onlooker.run.counts["predictions/images"])
        # Backwards: if there is but one, it is the last.
        places = np.linspace(len(epochs) - 1, 0, min(left, len(epochs))).round().astype(int)
        self._chosen = {epochs[place] for place in places}

    @keeps_random_state()
    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Predicts, and logs the images, if the epoch is among those chosen."""
        if self._onlooker is not None and epoch in (self._chosen or ()):
            self._predict(self._onlooker)

    @keeps_random_state()
    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Predicts with the finished model, and logs the table."""
        if self._onlooker is not None:
            self._predict(self._onlooker)
        self.leave()

    def leave(self) -> None:
        """Leaves a training that ended or raised; the table is that of the last prediction."""
        if self._onlooker is None:
            return
        onlooker, self._onlooker = self._onlooker, None
        self._put_back()
        onlooker.leave()
        if self._table is not None:
            with onlooker.spares_training("Writing the table of predictions"):
                run = onlooker.run
                run.counts["predictions/trainings"] += 1
                suffix = f"-{n}" if (n := run.counts["predictions/trainings"]) > 1 else ""
                run.log_table(self._table, f"predictions{suffix}.json")

    def _put_back(self) -> None:
        """Leaves the model as it was found: without what `predict` has made for itself."""
        if self._found["predict_function"] is None and "predict_function" in vars(self.model):
            self.model.predict_function = None
        if self._found["stop_predicting"] is None and "stop_predicting" in vars(self.model):
            del self.model.stop_predicting

    def _predict(self, onlooker: Onlooker) -> None:
        with onlooker.spares_training("Predictions"):
            step = onlooker.step()
            labels = _class_ids(np.asarray(self._y))
            outputs = np.asarray(self.model.predict(self._x, verbose=0), np.float64)
            classes = outputs.shape[-1]
            if outputs.shape != (len(labels), classes) or classes <= max(1, labels.max()):
                raise ValueError(
                    f"The model's outputs are of shape {outputs.shape}, for {len(labels)} labels "
                    f"up to {labels.max()}; expected [samples, classes], two classes or more."
                )
            predicted = outputs.argmax(axis=1)
            order = np.argsort(labels == predicted, kind="stable")  # wrong ones first
            names = np.array(list(self._class_names or range(classes)), object)
            table = pd.DataFrame(
                {
                    "index": order,
                    "label": names[labels[order]],
                    "predicted": names[predicted[order]],
                    "confidence": _probabilities(outputs).max(axis=1)[order],
                    "correct": (labels == predicted)[order],
                    "step": step,
                }
            )[:MAX_ROWS]
            # MLflow looks for columns of objects; text of pandas 3 makes it warn.
            self._table = table.astype({"label": object, "predicted": object})
            if step == self._pictured:
                return
            self._pictured = step
            onlooker.run.counts["predictions/images"] += 1
            counts = np.bincount(labels * classes + predicted, minlength=classes**2)
            matrix = confusion_figure(counts.reshape(classes, classes), names.tolist())
            onlooker.run.log_image(pixels(matrix), key="predictions/confusion_matrix", step=step)
            shape = tuple(getattr(self._x, "shape", ()))
            if len(shape) == 3 or (len(shape) == 4 and shape[-1] in (1, 3)):
                images = np.asarray(self._x)[table["index"]]
                captions = [f"{a} → {b}" for a, b in zip(table.label, table.predicted, strict=True)]
                samples = samples_figure(images, captions, table["correct"].to_numpy())
                onlooker.run.log_image(pixels(samples), key="predictions/samples", step=step)


def _class_ids(labels: Array) -> Array:
    one_hot = labels.ndim == 2 and labels.shape[1] > 1
    return labels.argmax(axis=1) if one_hot else labels.reshape(-1).astype(int)


def _probabilities(outputs: Array) -> Array:
    """The outputs themselves if each row is a distribution already, else their softmax."""
    # The sum of a float16 softmax over a thousand classes is that far from 1 at most.
    if (outputs >= 0).all() and np.allclose(outputs.sum(axis=1), 1, atol=1e-2):
        return outputs
    exponentials = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)
