"""fit(): what a lesson's training leaves, whatever else it is given."""

from collections.abc import Callable

import keras
import numpy as np

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons.training import crossentropy, fit


def test_every_step_and_the_validation_are_recorded_and_further_callbacks_are_called(
    experiment: str, curves: Callable[[str], dict[str, dict[int, float]]]
) -> None:
    x, y = np.zeros((8, 3), np.float32), np.arange(8) % 2
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", crossentropy)
    seen: list[int] = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, _: seen.append(epoch))

    with mka.track("fit", log_system_metrics=False) as run:
        history = fit(model, (x, y), (x[:4], y[:4]), epochs=2, batch_size=4, callbacks=[note])

    found = curves(run.run_id)
    assert sorted(found["batch/loss"]) == [1, 2, 3, 4]
    assert list(found["val/loss"].values()) == history.history["val_loss"]
    assert seen == [0, 1]
