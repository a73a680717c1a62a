"""The parts that the scripts of compression share: the model they start from, and their claims."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from mlflow.models import get_model_info

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons.training import fit
from mlflow_keras_adv.metrics.logits import probability_ending
from projects.data import Data

# Allowed beyond the accuracy that is lost on validation: on 450 digits of which 2 % are wrong, two
# standard errors of the difference are 1.9 %.
CHANCE = 0.02


def net(data: Data) -> keras.Model:
    """Three convolutions, one of them around a shortcut, and a hidden layer; it gives logits."""
    layers = keras.layers

    def convolution(filters: int, inputs: keras.KerasTensor) -> keras.KerasTensor:
        outputs = layers.Conv2D(filters, 3, padding="same", use_bias=False)(inputs)
        return layers.BatchNormalization()(outputs)

    inputs = keras.Input(data.input_shape)
    hidden = layers.ReLU()(convolution(16, inputs))
    shortcut = layers.ReLU()(convolution(32, hidden))
    hidden = layers.ReLU()(layers.Add()([convolution(32, shortcut), shortcut]))
    hidden = layers.Flatten()(layers.MaxPooling2D()(hidden))
    hidden = layers.Dropout(0.2)(layers.Dense(64, activation="relu")(hidden))
    return keras.Model(inputs, layers.Dense(data.classes)(hidden))


def lenet_300_100(data: Data) -> keras.Model:
    """Two hidden layers, of 300 and 100 units: LeCun et al. 1998, as compressed by Han et al."""
    layers = keras.layers
    hidden = [layers.Dense(units, activation="relu") for units in (300, 100)]
    head = layers.Dense(data.classes)
    return keras.Sequential([keras.Input(data.input_shape), layers.Flatten(), *hidden, head])


NETS: dict[str, Callable[[Data], keras.Model]] = {
    "convolutions": net,
    "lenet-300-100": lenet_300_100,
}


def loss_of(model: keras.Model) -> keras.losses.Loss:
    """Crossentropy with integer labels, of logits or of probabilities as the model gives them."""
    from_logits = probability_ending(model) is None
    return keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)


def training(
    model: keras.Model, images: Data, *, lr: float, epochs: int, batch_size: int
) -> dict[str, Any]:
    """Arguments of `prune`, `cluster` and `quantize_aware` for a training on `images`."""
    return {
        "loss": loss_of(model),
        "optimizer": keras.optimizers.Adam(lr),
        "metrics": ["accuracy"],
        "epochs": epochs,
        "batch_size": batch_size,
        "validation_data": images.validation,
        "callbacks": [mka.MlflowLogger()],
        "verbose": 0,
    }


def baseline(
    technique: mka.Technique,
    trade: mka.TradeOff,
    images: Data,
    *,
    model_uri: str,
    epochs: int,
    batch_size: int,
    lr: float,
    make: Callable[[Data], keras.Model] = net,
) -> keras.Model:
    """The model to compress, in the variant `baseline`: loaded if there is a URI, else trained.

    Raises:
        mka.UserError: The model at `model_uri` does not take these images or has other classes.
    """
    with technique.variant("baseline") as run:
        if model_uri:
            model = mka.load_model(model_uri)
            _check_shapes(model, model_uri, images)
            trade.add(model, parent_model_id=get_model_info(model_uri).model_id)
            run.log_metrics({"val/accuracy": trade.validation["baseline"]}, step=0)
            return model
        model = make(images)
        updates = epochs * -(-len(images.x_train) // batch_size)
        rate = keras.optimizers.schedules.CosineDecay(lr, updates)
        model.compile(keras.optimizers.Adam(rate), loss_of(model), metrics=["accuracy"])
        fit(model, images.train, images.validation, epochs=epochs, batch_size=batch_size)
        trade.add(model)
    return model


def answers_with(model: keras.Model, x: Any, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    """The answers [n, classes] of a model whose kernels are changed; it gets its own back."""
    kernels = [each for each in model.trainable_variables if len(each.shape) > 1]
    own = [np.array(each) for each in kernels]
    for kernel, values in zip(kernels, own, strict=True):
        kernel.assign(change(values))
    try:
        return model.predict(x, batch_size=256, verbose=0)
    finally:
        for kernel, values in zip(kernels, own, strict=True):
            kernel.assign(values)


def accuracy_with(
    model: keras.Model, images: Data, change: Callable[[np.ndarray], np.ndarray]
) -> float:
    """Test accuracy of a model whose kernels are changed and not trained on."""
    answers = answers_with(model, images.x_test, change)
    return float(np.mean(answers.argmax(axis=-1) == images.y_test))


def outcome(
    technique: mka.Technique, chosen: str, max_accuracy_drop: float, *, float32: str = "baseline"
) -> str:
    """The result in a sentence.

    Args:
        technique: Has both variants.
        chosen: Name of the smallest variant that is accurate enough.
        max_accuracy_drop: How much validation accuracy it was allowed to lose.
        float32: Name of the variant that it is compared with.
    """
    sizes, right = technique.final("gzip_bytes"), technique.final("accuracy")
    return (
        f"{chosen} is the smallest that loses at most {max_accuracy_drop:.1%} on validation: "
        f"{sizes[chosen] / 1000:.0f} kB after gzip instead of {sizes[float32] / 1000:.0f}, test "
        f"accuracy {right[chosen]:.1%} instead of {right[float32]:.1%}."
    )


def accuracy_drop(technique: mka.Technique, chosen: str, max_accuracy_drop: float) -> mka.Claim:
    """The claim that the variant chosen loses no more than was allowed, but for chance."""
    accuracy = technique.final("accuracy")
    return mka.Claim(
        "accuracy_drop",
        f"test accuracy that {chosen} loses, {CHANCE:.0%} more than allowed on validation "
        "being left to chance",
        accuracy["baseline"] - accuracy[chosen],
        at_most=max_accuracy_drop + CHANCE,
    )


def gzip_share(technique: mka.Technique, chosen: str, *, at_most: float) -> mka.Claim:
    """The claim that the variant chosen has at most this share of the baseline's gzip bytes."""
    sizes = technique.final("gzip_bytes")
    share = sizes[chosen] / sizes["baseline"]
    text = f"gzip bytes of {chosen} relative to the baseline's"
    return mka.Claim("gzip_share", text, share, at_most=at_most)


def _check_shapes(model: keras.Model, model_uri: str, images: Data) -> None:
    shapes = [tuple(tensor.shape[1:]) for tensor in getattr(model, "inputs", None) or []]
    if shapes and shapes != [images.input_shape]:
        raise mka.UserError(
            f"model_uri: {model_uri} takes {shapes}, but the images of {images.name} are "
            f"{images.input_shape} (height, width, channels); choose the data it was trained on"
        )
    shape = np.shape(model(images.x_test[:1], training=False))
    if shape != (1, images.classes):
        raise mka.UserError(
            f"model_uri: {model_uri} gives {shape} for one image, but {images.name} has "
            f"{images.classes} classes; choose a classifier of these"
        )
