"""A recorded `fit` and the loss of a classifier, which most lessons use."""

from collections.abc import Iterable
from typing import Any

import keras

from mlflow_keras_adv.callbacks.mlflow_logger import MlflowLogger

# Of logits [n, classes] and integer labels [n] or [n, 1].
crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def fit(
    model: keras.Model,
    train: Any,
    validation: Any,
    *,
    epochs: int,
    batch_size: int | None = None,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    **settings: Any,
) -> keras.callbacks.History:
    """Calls `model.fit` with an `MlflowLogger`, which records every step and epoch.

    Args:
        model: A compiled model.
        train: `(x, y)` of arrays, or a `tf.data.Dataset` of batches.
        validation: The same, for the validation after each epoch.
        epochs: Epochs of the training.
        batch_size: Samples per step; not with a dataset, which has batches already.
        callbacks: Further callbacks; they are called after the logger.
        **settings: Further arguments of `model.fit`; `verbose` is 0 by default.

    Returns:
        The history that `model.fit` returns.
    """
    x, y = train if isinstance(train, tuple) else (train, None)
    return model.fit(
        x,
        y,
        epochs=epochs,
        batch_size=batch_size,
        validation_data=validation,
        callbacks=[MlflowLogger(), *callbacks],
        **({"verbose": 0} | settings),
    )
