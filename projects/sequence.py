"""Sequences: a small Transformer attends to any distance, but never to the padding.

Each sequence consists of words, with one key somewhere among them. The tag of a word is (word +
key) mod 4, so a model must find the key, before or behind the word. There is no `--data`: the
sequences are generated, because their rule has to be known.

Sequences of different lengths are padded to one length, with a mask from the embedding on:
attention ignores the padding (Vaswani et al. 2017, arXiv:1706.03762), and so do loss and metrics. A
lost mask would cause no error, so two claims test it.

Two nested runs with the same keys and the same weights to begin with: attention to the whole
sequence, and to a window of `reach` words on either side, which is what convolutions see. What to
expect: the whole is solved; in a window the words near the key are, and the others are guessed, one
in four right. Half a minute of computing on two cores.

    mlflow run . -e sequence --env-manager local -P reach=6
"""

from typing import Annotated, Any

import keras
import numpy as np
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv import registry
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.lessons.sequences import KEYS, PADDING, WORDS, accuracies, sequences
from mlflow_keras_adv.lessons.training import crossentropy, fit

HEADS = 2


@keras.saving.register_keras_serializable(package="projects")
class Block(keras.layers.Layer):
    """A block of a Transformer's encoder that attends to `reach` positions either way; 0: all."""

    def __init__(self, width: int, reach: int = 0, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.width, self.reach = width, reach
        self.supports_masking = True  # hands the mask of its input on
        layers = keras.layers
        self.attention = layers.MultiHeadAttention(HEADS, width // HEADS)
        self.first, self.second = layers.LayerNormalization(), layers.LayerNormalization()
        self.wide, self.narrow = layers.Dense(2 * width, activation="gelu"), layers.Dense(width)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds the layers inside, so that a loaded file finds their weights."""
        self.attention.build(input_shape, input_shape)
        for layer in (self.first, self.second, self.wide):
            layer.build(input_shape)
        self.narrow.build((*input_shape[:-1], 2 * self.width))

    def call(self, inputs: Any, mask: Any = None) -> Any:
        """Each position attends to the words within reach, never to padding."""
        places = keras.ops.arange(keras.ops.shape(inputs)[1])
        apart = keras.ops.abs(places[:, None] - places[None, :])
        seen = (apart <= self.reach if self.reach else apart >= 0)[None]
        if mask is not None:
            seen = keras.ops.logical_and(seen, mask[:, None, :])
        known = self.first(inputs)
        hidden = inputs + self.attention(known, known, attention_mask=seen)
        return hidden + self.narrow(self.wide(self.second(hidden)))

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "width": self.width, "reach": self.reach}


def net(width: int, reach: int) -> keras.Model:
    """Tags sequences of any length; it gives logits.

    It has no positional encoding, since a tag does not depend on the position of its word.
    """
    layers = keras.layers
    tokens = keras.Input((None,), dtype="int32")
    embedded = layers.Embedding(1 + KEYS + WORDS, width, mask_zero=True)(tokens)
    hidden = layers.LayerNormalization()(Block(width, reach)(embedded))
    return keras.Model(tokens, layers.Dense(KEYS)(hidden))


def main(
    epochs: PositiveInt = 10,
    batch_size: PositiveInt = 32,
    lr: PositiveFloat = 5e-3,
    examples: PositiveInt = 1000,
    longest: Annotated[int, Field(ge=16)] = 32,
    reach: PositiveInt = 3,
    width: Annotated[int, Field(ge=2, multiple_of=HEADS)] = 32,
    seed: NonNegativeInt = 0,
) -> None:
    """Trains a Transformer that sees the whole sequence, and one that sees a window of it.

    Args:
        epochs: Epochs of each of the two trainings.
        batch_size: Sequences per step.
        lr: Learning rate of Adam.
        examples: Sequences to train on; a quarter as many to validate on, and to test on.
        longest: Words of a sequence at most, 16 or more; the shortest have 6.
        reach: Words on either side that the window shows.
        width: Width of the embedding and of the Transformer, an even number.
        seed: Seed of weights, sequences and their order.
    """
    params = dict(locals())
    few = max(32, examples // 4)
    train, validation = sequences(examples, longest, seed + 1), sequences(few, longest, seed + 2)
    test = sequences(few, longest, 0)  # the same for every seed
    dataset = registry.Samples(*test[:2], name="keys")

    models = {}
    with mka.technique("sequence", params, dataset=dataset, variants=2) as technique:
        for name, seen in (("whole", 0), ("window", reach)):
            with technique.variant(name, params={"seen": seen}):
                model = models[name] = net(width, seen)
                model.compile(keras.optimizers.Adam(lr), crossentropy, metrics=["accuracy"])
                fit(model, train[:2], validation[:2], epochs=epochs, batch_size=batch_size)
                technique.finish(model, *test[:2], scores=accuracies(model, *test, reach))

        technique.compare()
        accuracy, far = technique.final("accuracy"), technique.final("accuracy_far")
        counted = technique.final("accuracy_counted")
        off = max(abs(accuracy[name] - counted[name]) for name in accuracy)
        x = test[0][:64]
        padded = models["whole"](np.pad(x, ((0, 0), (0, longest))))[:, :longest]
        apart = mka.largest_difference(
            np.where(x[..., None] != PADDING, padded, 0),
            np.where(x[..., None] != PADDING, models["whole"](x), 0),
        )
        gain = accuracy["whole"] - accuracy["window"]
        technique.conclude(
            f"Correct tags: {accuracy['whole']:.1%} with attention to the whole sequence, "
            f"{accuracy['window']:.1%} in a window, of those beyond {reach} words from the key "
            f"{far['window']:.1%}.",
            mka.Claim("gain", "accuracy that attention to the whole adds", gain, at_least=0.3),
            mka.Claim("far", "accuracy of the window beyond its reach", far["window"], at_most=0.4),
            mka.Claim("counted", "accuracy on record off one counted by hand", off, at_most=1e-5),
            mka.Claim("padding", "difference of a logit with more padding", apart, at_most=1e-4),
        )


if __name__ == "__main__":
    entry_point.run(main)
