"""Models as people build them, one of each kind: a compiled model, samples, labels, weights."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

L = keras.layers
N = 48
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 6)).astype("float32")
IMAGES = RNG.random((N, 8, 8, 1)).astype("float32")
WORDS = np.array(["red green blue", "one two three four", "left right", "up down left"])

Kind = Callable[[], tuple[keras.Model, Any, Any]]


def _dense(units: int, activation: str | None = None) -> keras.Sequential:
    hidden = L.Dense(16, activation="relu", name="hidden")
    return keras.Sequential([keras.Input((6,)), hidden, L.Dense(units, activation, name="last")])


def regression() -> Any:
    model = _dense(3)
    model.compile("adam", "mse", metrics=["mae"])
    return model, X, X[:, :3] * 2


def binary() -> Any:
    model = _dense(1)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    metrics = [
        keras.metrics.BinaryAccuracy(threshold=0.0, name="accuracy"),
        keras.metrics.AUC(from_logits=True, name="auc"),
    ]
    model.compile("adam", loss, metrics=metrics)
    return model, X, (X[:, :1] > 0).astype("float32")


def multi_label() -> Any:
    model = _dense(4, "sigmoid")
    model.compile("adam", "binary_crossentropy", metrics=["binary_accuracy"])
    return model, X, (X[:, :4] > 0).astype("float32")


def one_hot() -> Any:
    model = _dense(3, "softmax")
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
    model.compile("adam", loss, metrics=["accuracy"])
    return model, X, np.eye(3, dtype="float32")[X[:, :3].argmax(1)]


def images() -> Any:
    layers = [L.Conv2D(8, 3, activation="relu"), L.BatchNormalization(), L.Flatten(), L.Dense(3)]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    return model, IMAGES, (IMAGES.mean((1, 2, 3)) * 30).astype("int32") % 3


def outputs_in_a_dict() -> Any:
    inputs = keras.Input((6,), name="features")
    hidden = L.Dense(16, activation="relu")(inputs)
    kind = L.Dense(3, activation="softmax", name="kind")(hidden)
    outputs = {"price": L.Dense(1, name="price")(hidden), "kind": kind}
    model = keras.Model(inputs, outputs)
    model.compile(
        "adam",
        loss={"price": "mse", "kind": "sparse_categorical_crossentropy"},
        loss_weights={"price": 0.3, "kind": 2.0},
        metrics={"price": ["mae"], "kind": ["accuracy"]},
    )
    return model, X, {"price": X[:, :1], "kind": X[:, :3].argmax(1)}


def inputs_and_outputs_in_lists() -> Any:
    z, a = keras.Input((2,), name="z"), keras.Input((6,), name="a")
    both = L.Concatenate()([z, a])
    model = keras.Model([z, a], [L.Dense(3, name="y")(both), L.Dense(1, name="b")(both)])
    classes = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", [classes, "mse"], metrics=[["accuracy"], ["mae"]])
    return model, [X[:, :2], X], [X[:, :3].argmax(1), X[:, :1]]


def segmentation() -> Any:
    image = keras.Input((8, 8, 1))
    fine = L.Conv2D(4, 3, padding="same", activation="relu")(image)
    coarse = L.Conv2D(8, 3, padding="same", activation="relu")(L.MaxPooling2D()(fine))
    joined = L.Concatenate()([fine, L.UpSampling2D()(coarse)])
    model = keras.Model(image, L.Conv2D(1, 1, activation="sigmoid")(joined), name="u_net")
    iou = keras.metrics.BinaryIoU(target_class_ids=[1], name="iou")
    model.compile("adam", "binary_crossentropy", metrics=[iou])
    return model, IMAGES, (IMAGES > 0.5).astype("float32")


def tagging_with_masks() -> Any:
    rng = np.random.default_rng(0)
    words = rng.integers(1, 9, size=(N, 7)).astype("int32")
    for row, length in enumerate(rng.integers(2, 7, size=N)):
        words[row, length:] = 0
    inputs = keras.Input((7,), dtype="int32")
    hidden = L.LSTM(6, return_sequences=True)(L.Embedding(9, 4, mask_zero=True)(inputs))
    model = keras.Model(inputs, L.Dense(3)(hidden))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    return model, words, np.where(words > 0, words % 3, 0)


def forecast() -> Any:
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((12, 2)), L.GRU(8), L.Dense(4)])
    model.compile("adam", "mae", metrics=[keras.metrics.RootMeanSquaredError(name="rmse")])
    series = rng.normal(size=(N, 16, 2)).astype("float32").cumsum(axis=1)
    return model, series[:, :12], series[:, 12:, 0]


def transformer() -> Any:
    rng = np.random.default_rng(0)
    inputs = keras.Input((7,), dtype="int32")
    embedded = L.Embedding(9, 8)(inputs)
    attended = L.MultiHeadAttention(2, 4)(embedded, embedded)
    normed = L.LayerNormalization()(L.Add()([embedded, attended]))
    model = keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling1D()(normed)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    words = rng.integers(0, 9, size=(N, 7)).astype("int32")
    return model, words, words[:, 0] % 2


def text() -> Any:
    vectors = L.TextVectorization(output_mode="multi_hot")
    vectors.adapt(WORDS)
    model = keras.Sequential([keras.Input((), dtype="string"), vectors, L.Dense(1)])
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    right = keras.metrics.BinaryAccuracy(threshold=0.0, name="accuracy")
    model.compile("adam", loss, metrics=[right])
    picked = np.arange(N) % len(WORDS)
    return model, tf.constant(WORDS[picked]), (picked % 2).astype("float32")[:, None]


def table() -> Any:
    colour, size = keras.Input((1,), dtype="string", name="colour"), keras.Input((1,), name="size")
    codes = L.StringLookup(vocabulary=["red", "green", "blue"], output_mode="one_hot")(colour)
    output = L.Dense(1)(L.Concatenate()([codes, size]))
    model = keras.Model({"colour": colour, "size": size}, output)
    model.compile("adam", "huber", metrics=["mae"])
    names = np.array(["red", "green", "blue"])[np.arange(N) % 3][:, None]
    return model, {"colour": tf.constant(names), "size": X[:, :1]}, X[:, 1:2]


@keras.saving.register_keras_serializable("kinds")
class VAE(keras.Model):
    """With steps of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.encoder, self.decoder = L.Dense(4), L.Dense(6)
        self.trackers = [keras.metrics.Mean(name=n) for n in ("reconstruction", "kl_loss")]

    def call(self, x: Any) -> Any:
        return self.decoder(self.encoder(x)[:, :2])

    def terms(self, x: Any) -> Any:
        mean, spread = keras.ops.split(self.encoder(x), 2, axis=-1)
        kl = keras.ops.exp(spread) + mean**2 - 1 - spread
        return keras.ops.mean((self.decoder(mean) - x) ** 2), keras.ops.mean(kl) / 2

    def train_step(self, data: Any) -> Any:
        x = data[0] if isinstance(data, tuple) else data
        with tf.GradientTape() as tape:
            terms = self.terms(x)
            loss = sum(terms)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return self.told(terms)

    def test_step(self, data: Any) -> Any:
        return self.told(self.terms(data[0] if isinstance(data, tuple) else data))

    def told(self, terms: Any) -> Any:
        for tracker, term in zip(self.trackers, terms, strict=True):
            tracker.update_state(term)
        return {tracker.name: tracker.result() for tracker in self.trackers}

    @property
    def metrics(self) -> Any:
        return self.trackers


def vae() -> Any:
    model = VAE()
    model(X[:2])
    model.compile("adam")
    return model, X, None


def two_towers() -> Any:
    user, item = keras.Input((1,), dtype="int32", name="user"), keras.Input((1,), name="item")
    left = L.Flatten()(L.Embedding(10, 4)(user))
    right = L.Dense(4)(item)
    score = L.Dot(axes=1)([left, right])
    model = keras.Model({"user": user, "item": item}, score)
    model.compile("adam", "mse", metrics=["mae"])
    return model, {"user": np.arange(N)[:, None] % 10, "item": X[:, :1]}, X[:, 1:2]


def autoencoder() -> Any:
    model = keras.Sequential([keras.Input((6,)), L.Dense(2), L.Dense(6)])
    model.compile("adam", "mse")
    return model, X, X


def averages_accumulated_in_16_bits() -> Any:
    policy = keras.mixed_precision.Policy("mixed_float16")
    hidden = L.Dense(16, activation="relu", dtype=policy)
    model = keras.Sequential([keras.Input((6,)), hidden, L.Dense(1, dtype="float32")])
    optimizer = keras.optimizers.Adam(
        use_ema=True, ema_overwrite_frequency=2, gradient_accumulation_steps=2
    )
    scaled = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(scaled, "mse", metrics=["mae"])
    return model, X, X[:, :1]


def adapters() -> Any:
    model = _dense(1)
    model.layers[0].enable_lora(2)
    model.compile("adam", "mse", metrics=["mae"])
    return model, X, X[:, :1]


def int8_layers() -> Any:
    model = _dense(1)
    model.layers[0].quantize("int8")
    model.compile("adam", "mse", metrics=["mae"])
    return model, X, X[:, :1]


@keras.saving.register_keras_serializable("kinds")
class Subclassed(keras.Model):
    """As Keras' guide writes one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.hidden, self.last = L.Dense(16, activation="relu"), L.Dense(1)

    def call(self, x: Any) -> Any:
        return self.last(self.hidden(x))


def subclassed() -> Any:
    model = Subclassed()
    model(X[:2])
    model.compile("adam", "mse", metrics=["mae"])
    return model, X, X[:, :1]


def many_layers() -> Any:
    inputs = hidden = keras.Input((6,))
    for number in range(540):
        hidden = L.Dense(2, name=f"layer_{number}")(hidden)
    model = keras.Model(inputs, hidden)
    model.compile(keras.optimizers.SGD(1e-3), "mse", metrics=["mae"], jit_compile=False)
    return model, X, X[:, :2]


def embeddings_alone() -> Any:
    rng = np.random.default_rng(0)
    layers = [L.Embedding(20, 8), L.GlobalAveragePooling1D()]
    model = keras.Sequential([keras.Input((5,), dtype="int32"), *layers])
    model.compile("adam", "mse", metrics=["mae"])
    return model, rng.integers(0, 20, size=(N, 5)).astype("int32"), rng.normal(size=(N, 8))


KINDS: tuple[Kind, ...] = (
    *(regression, binary, multi_label, one_hot, images, outputs_in_a_dict),
    *(inputs_and_outputs_in_lists, segmentation, tagging_with_masks, forecast, transformer, text),
    *(table, vae, two_towers, autoencoder, averages_accumulated_in_16_bits, adapters, int8_layers),
    *(subclassed, many_layers, embeddings_alone),
)
