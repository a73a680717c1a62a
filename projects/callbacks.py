"""Callbacks: they observe, save, change and stop a training without a line in its loop.

Keras' own: ModelCheckpoint, EarlyStopping, ReduceLROnPlateau, TensorBoard. This package's, which
write to the run: MlflowLogger, Checkpoints, Predictions, StallAlert. And two written here: one that
changes a setting of the loss during the training, one that stops by its own criterion.

The first shows a rule of compiled steps: a Python number in a loss or layer becomes a constant of
the graph when that is traced; a value that changes must be a variable, as in SmoothedCrossentropy.
Label smoothing (Szegedy et al. 2015, arXiv:1512.00567) begins high, against overconfidence, and
falls to 0 by the last epoch.

One run. What to expect: training stops before the last epoch, and the best model can be loaded from
the run's artifacts and from ModelCheckpoint's file alike. Half a minute on two cores.

    mlflow run . -e callbacks --env-manager local -P stop_at=0.99
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import keras
import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.lessons.smoothing import SmoothedCrossentropy
from projects.data import Data, load
from projects.parameters import BatchSize, Examples, Seed, Target


def net(data: Data) -> keras.Model:
    """Two hidden layers."""
    body = [keras.layers.Dense(64, activation="relu") for _ in range(2)]
    head = keras.layers.Dense(data.classes)
    return keras.Sequential([*data.entrance(), *body, head])


class AnnealSmoothing(keras.callbacks.Callback):
    """Lowers the loss's smoothing linearly to 0 in the last epoch, and adds it to the logs."""

    def __init__(self, loss: SmoothedCrossentropy) -> None:
        super().__init__()
        self.loss = loss

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Reads the initial value."""
        self.start = float(self.loss.smoothing)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Sets the variable; the compiled step reads it."""
        last = self.params["epochs"] - 1
        self.loss.smoothing.assign(self.start * (1 - epoch / last) if last else 0.0)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the value to the logs, for the callbacks after this one, such as MlflowLogger."""
        if logs is not None:
            logs["smoothing"] = float(self.loss.smoothing)


class StopWhenGood(keras.callbacks.Callback):
    """Stops when a metric has been at least `target` in several epochs in a row."""

    def __init__(self, monitor: str, target: float, epochs: int) -> None:
        super().__init__()
        self.monitor, self.target, self.epochs = monitor, target, epochs

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Resets the count, since a callback can be used for several trainings."""
        self.in_a_row = 0

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Counts good epochs, and stops the training."""
        good = (logs or {}).get(self.monitor, -np.inf) >= self.target
        self.in_a_row = self.in_a_row + 1 if good else 0
        if self.in_a_row >= self.epochs:
            self.model.stop_training = True


def main(
    data: Examples = "digits",
    target: Target = "",
    epochs: PositiveInt = 60,
    batch_size: BatchSize = 32,
    lr: PositiveFloat = 2e-3,
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.2,
    patience: PositiveInt = 10,
    stop_at: Annotated[float, Field(gt=0, le=1)] = 0.97,
    seed: Seed = 0,
) -> None:
    """Trains one net with ten callbacks.

    Args:
        epochs: Epochs, if nothing stops the training before.
        lr: Learning rate of Adam, until the plateau.
        smoothing: Smoothing of the labels in the first epoch; 0 in the last.
        patience: Epochs without a better val_loss until EarlyStopping; the rate falls after half.
        stop_at: Validation accuracy that is enough, three times in a row.
    """
    params = dict(locals())
    images = load(data, target=target, seed=seed, kinds=("images", "features"))

    with (
        mka.technique("callbacks", params, dataset=images) as technique,
        tempfile.TemporaryDirectory() as folder,
    ):
        file, events = Path(folder, "best.keras"), Path(folder, "tensorboard")
        model, loss = net(images), SmoothedCrossentropy(smoothing)
        model.compile(keras.optimizers.Adam(lr), loss, metrics=["accuracy"])
        history = model.fit(
            *images.train,
            batch_size=batch_size,
            epochs=epochs,
            validation_data=images.validation,
            callbacks=[
                AnnealSmoothing(loss),
                StopWhenGood("val_accuracy", stop_at, epochs=3),
                keras.callbacks.ModelCheckpoint(file, "val_accuracy", save_best_only=True),
                keras.callbacks.EarlyStopping("val_loss", patience=patience),
                keras.callbacks.ReduceLROnPlateau("val_loss", patience=max(1, patience // 2)),
                keras.callbacks.TensorBoard(events, write_graph=False),
                mka.MlflowLogger(),
                mka.Checkpoints("val_accuracy"),
                mka.Predictions(*images.validation, max_images=5),
                mka.StallAlert("val_loss", patience=patience),
            ],
            verbose=0,
        ).history
        technique.run.log_artifact(events)

        done, best = len(history["loss"]), max(history["val_accuracy"])
        ours, theirs = mka.load_best(technique.run), keras.saving.load_model(file)
        off = abs(ours.evaluate(*images.validation, verbose=0)[1] - best)
        apart = mka.largest_difference(ours.get_weights(), theirs.get_weights())
        final = technique.finish(ours, *images.test, name="best").final
        technique.conclude(
            f"Stopped after {done} of {epochs} epochs; the best model reaches "
            f"{final['accuracy']:.1%} on the test split.",
            mka.Claim("epochs", "share of the epochs until a stop", done / epochs, at_most=0.9),
            mka.Claim("back", "accuracy of load_best off the curve's best", off, at_most=1e-6),
            mka.Claim("same", "weights of ours off ModelCheckpoint's", apart, at_most=0.0),
        )


if __name__ == "__main__":
    entry_point.run(main)
