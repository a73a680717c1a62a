"""What the scripts of compression share: the model they start from, and what is made of results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from mlflow.models import get_model_info

import mlflow_keras_adv as mka
from mlflow_keras_adv.compression.footprint import accuracy, highest
from mlflow_keras_adv.measure import FinishedModel
from mlflow_keras_adv.training.logits import probability_ending
from projects.data import Data

# By which the accuracy lost on the test split may exceed that on validation. On 450 digits of which
# 2 % are wrong, two standard errors of the difference are 1.9 %.
CHANCE = 0.02


@dataclass(frozen=True, eq=False)
class Variant:
    """One model of a comparison.

    Attributes:
        run: Where it was made.
        model: The model.
        finished: Its record.
        validation_accuracy: By which is chosen.
    """

    run: mka.Run
    model: keras.Model
    finished: FinishedModel
    validation_accuracy: float


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


def loss_of(model: keras.Model) -> keras.losses.Loss:
    """Crossentropy with integer labels, of logits or of probabilities as the model gives them."""
    from_logits = probability_ending(model) is None
    return keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)


def validation_accuracy(model: keras.Model, images: Data) -> float:
    """Share of the validation images that the model has right."""
    scores = np.asarray(model(images.x_validation, training=False))
    return accuracy(highest(scores), images.y_validation)


def baseline(
    run: mka.Run,
    images: Data,
    dataset: mka.Dataset,
    *,
    technique: str,
    model_uri: str,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> Variant:
    """The model to compress, in a nested run `baseline`: loaded if there is an URI, else trained.

    Raises:
        mka.UserError: The model at `model_uri` is not one for these images.
    """
    with run.child("baseline", tags={"technique": technique}) as child:
        keras.utils.set_random_seed(seed)
        parent_model_id = None
        if model_uri:
            model = mka.load_model(model_uri)
            _check_shapes(model, model_uri, images)
            parent_model_id = get_model_info(model_uri).model_id
            child.log_metrics({"val/accuracy": validation_accuracy(model, images)}, step=0)
        else:
            model = net(images)
            updates = epochs * -(-len(images.x_train) // batch_size)
            rate = keras.optimizers.schedules.CosineDecay(lr, updates)
            model.compile(keras.optimizers.Adam(rate), loss_of(model), metrics=["accuracy"])
            model.fit(
                images.x_train,
                images.y_train,
                batch_size=batch_size,
                epochs=epochs,
                validation_data=(images.x_validation, images.y_validation),
                callbacks=[mka.MlflowLogger()],
                verbose=0,
            )
        finished = mka.log_finished_model(
            child,
            model,
            images.x_test,
            images.y_test,
            name="baseline",
            dataset=dataset,
            parent_model_id=parent_model_id,
        )
    return Variant(child, model, finished, validation_accuracy(model, images))


def compressed(
    run: mka.Run,
    model: keras.Model,
    layers: Sequence[Any],
    *,
    start: Variant,
    images: Data,
    dataset: mka.Dataset,
) -> Variant:
    """Puts a compressed model on the run that made it, with its table of layers.

    Args:
        run: The run; the model gets its name.
        model: The compressed model.
        layers: Rows of the table, dataclasses.
        start: The model that it was made from.
        images: Measured on the test split, chosen on the validation split.
        dataset: Their name and digest.
    """
    run.log_table(pd.DataFrame([asdict(row) for row in layers]), "layers.json")
    finished = mka.log_finished_model(
        run,
        model,
        images.x_test,
        images.y_test,
        name=run.name,
        dataset=dataset,
        reference=start.model,
        parent_model_id=start.finished.info.model_id,
    )
    return Variant(run, model, finished, validation_accuracy(model, images))


def smallest_within(variants: Mapping[str, Variant], max_accuracy_drop: float) -> str:
    """The variant with the fewest gzip bytes of those that lose no more than that on validation.

    Args:
        variants: By name, the one named `baseline` among them.
        max_accuracy_drop: Share of the validation images.
    """
    least = variants["baseline"].validation_accuracy - max_accuracy_drop - 1e-9  # of rounding
    within = [name for name, each in variants.items() if each.validation_accuracy >= least]
    return min(within, key=lambda name: variants[name].finished.final["gzip_bytes"])


def conclude(
    run: mka.Run,
    variants: Mapping[str, Variant],
    *claims: mka.Claim,
    max_accuracy_drop: float,
    bytes_left: Callable[[Mapping[str, float]], float],
    curves: Sequence[str] = ("train/loss", "val/accuracy"),
) -> str:
    """Chooses a variant and puts comparison, picture, claims and description on the parent.

    Args:
        run: The parent.
        variants: By name, the one named `baseline` among them.
        *claims: Of the technique, beside those about accuracy and bytes.
        max_accuracy_drop: Of validation accuracy, that the variant chosen may lose.
        bytes_left: From the `final/…` values of a variant to the share of the baseline's gzip bytes
            that it is claimed to have at most.
        curves: Metric keys of the learning curves.

    Returns:
        The result in a sentence, and the claims.
    """
    chosen = smallest_within(variants, max_accuracy_drop)
    runs = {name: each.run for name, each in variants.items()}
    mka.log_comparison(run, runs, candidates=[chosen], curves=curves)
    run.log_figure(accuracy_against_size(variants), "accuracy_against_size.png")
    first, last = variants["baseline"].finished.final, variants[chosen].finished.final
    lines = mka.log_claims(
        run,
        *claims,
        mka.Claim(
            "accuracy_drop",
            f"test accuracy that {chosen} loses, {CHANCE:.0%} more than allowed on validation "
            "being left to chance",
            first["accuracy"] - last["accuracy"],
            at_most=max_accuracy_drop + CHANCE,
        ),
        mka.Claim(
            "gzip_share",
            f"gzip bytes of {chosen} in parts of the baseline's",
            last["gzip_bytes"] / first["gzip_bytes"],
            at_most=1.0 if chosen == "baseline" else bytes_left(last),
        ),
    )
    result = (
        f"{chosen} is the smallest that loses at most {max_accuracy_drop:.1%} on validation: "
        f"{last['gzip_bytes'] / 1000:.0f} kB after gzip instead of "
        f"{first['gzip_bytes'] / 1000:.0f}, test accuracy {last['accuracy']:.1%} instead of "
        f"{first['accuracy']:.1%}."
    )
    run.describe(f"{result}\n\n{lines}")
    return f"{result}\n{lines}"


def accuracy_against_size(variants: Mapping[str, Variant]) -> Figure:
    """One point for each variant: test accuracy over kilobytes after gzip."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    panel = figure.subplots()
    for name, each in variants.items():
        size, height = each.finished.final["gzip_bytes"] / 1000, each.finished.final["accuracy"]
        panel.scatter(size, height)
        panel.annotate(name, (size, height), xytext=(6, 4), textcoords="offset points")
    panel.set(xlabel="kB after gzip", ylabel="accuracy on the test split")
    largest = max(each.finished.final["gzip_bytes"] for each in variants.values()) / 1000
    panel.set_xlim(0, 1.25 * largest)  # room for the names
    panel.margins(y=0.2)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    return figure


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
