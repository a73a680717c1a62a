"""Nets as people build them, with default names, trained on digits and compressed.

Of each: the accuracies of the float model, of the one that compression has trained, and of its
file, in a process that has made no layer before.
"""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from sklearn.datasets import load_digits

from mlflow_keras_adv import compression
from mlflow_keras_adv.compression import quantization_aware
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.metrics.judge import compiled_with
from mlflow_keras_adv.tflite.runtime import LiteRTModel

ROOT = Path(__file__).parent.parent.parent
layers = keras.layers
IMAGE = (8, 8, 1)
TRAINED = 1300  # digits to train on; the rest is held out
CLASSES = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
Outputs = Any


def conv(h: Any, filters: int, size: int = 3, strides: int = 1) -> Any:
    """Convolution, normalization and ReLU, as most nets have them."""
    h = layers.Conv2D(filters, size, strides=strides, padding="same", use_bias=False)(h)
    return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(h))


def head(h: Any) -> Any:
    return layers.Dense(10)(layers.GlobalAveragePooling2D()(h))


def inception() -> keras.Model:
    """A reduction block: a branch with normalization stands before plain ones."""
    image = keras.Input(IMAGE)
    h = conv(image, 8)
    deep = conv(conv(h, 6, 1), 8, strides=2)
    plain = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(h)
    pooled = layers.MaxPooling2D(3, 2, "same")(h)
    return keras.Model(image, head(conv(layers.Concatenate()([deep, plain, pooled]), 16)))


def enet() -> keras.Model:
    """The first block of ENet: convolution and pooling of the image side by side."""
    image = keras.Input(IMAGE)
    h = layers.Concatenate()([conv(image, 12, strides=2), layers.MaxPooling2D()(image)])
    h = layers.BatchNormalization(momentum=0.9)(conv(h, 16))
    return keras.Model(image, layers.Dense(10)(layers.Flatten()(layers.Activation("relu")(h))))


def unet() -> keras.Model:
    image = keras.Input(IMAGE)
    fine = conv(image, 8)
    coarse = conv(layers.MaxPooling2D()(fine), 16)
    up = layers.UpSampling2D()(coarse)
    h = conv(layers.Concatenate()([conv(up, 8), fine]), 16)
    return keras.Model(image, head(h))


def densenet() -> keras.Model:
    image = keras.Input(IMAGE)
    h = conv(image, 8)
    for _ in range(3):
        h = layers.Concatenate()([h, conv(h, 6)])
    return keras.Model(image, head(h))


def squeezenet() -> keras.Model:
    image = keras.Input(IMAGE)
    h = layers.Conv2D(16, 3, padding="same", activation="relu")(image)
    for squeezed, expanded in ((6, 12), (8, 16)):
        h = layers.Conv2D(squeezed, 1, activation="relu")(h)
        one = layers.Conv2D(expanded, 1, activation="relu")(h)
        three = layers.Conv2D(expanded, 3, padding="same", activation="relu")(h)
        h = layers.Concatenate()([one, three])
    return keras.Model(image, head(h))


def separable() -> keras.Model:
    """What tfmot makes of SeparableConv2D it calls conv2d, as the first layer is called."""
    image = keras.Input(IMAGE)
    h = layers.Conv2D(16, 1, activation="relu")(image)
    h = layers.SeparableConv2D(16, 3, padding="same", activation="relu")(h)
    h = layers.SeparableConv2D(16, 3, padding="same", activation="relu")(h)
    return keras.Model(image, layers.Dense(10)(layers.Flatten()(h)))


def depthwise() -> keras.Model:
    """An inverted residual block, as in MobileNetV2."""
    image = keras.Input(IMAGE)
    h = conv(image, 12)
    wide = conv(h, 24, 1)
    wide = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(wide)
    wide = layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.9)(wide))
    narrow = layers.Conv2D(12, 1, use_bias=False)(wide)
    narrow = layers.BatchNormalization(momentum=0.9)(narrow)
    return keras.Model(image, head(conv(layers.Add()([h, narrow]), 24, strides=2)))


def squeeze_and_excite() -> keras.Model:
    image = keras.Input(IMAGE)
    h = conv(image, 16)
    weights = layers.GlobalAveragePooling2D(keepdims=True)(h)
    weights = layers.Dense(16, activation="sigmoid")(layers.Dense(4, activation="relu")(weights))
    return keras.Model(image, head(conv(layers.Multiply()([h, weights]), 16)))


def _two_heads() -> tuple[Any, Any, Any]:
    image = keras.Input(IMAGE)
    h = layers.Dense(32, activation="relu")(layers.Flatten()(conv(image, 8)))
    return image, layers.Dense(10, name="digit")(h), layers.Dense(1, name="brightness")(h)


def _compile_heads(model: keras.Model) -> keras.Model:
    """The second head's loss is a thousand times too large without its weight."""
    model.compile(
        keras.optimizers.Adam(3e-3),
        {"digit": CLASSES, "brightness": "mse"},
        loss_weights={"digit": 1.0, "brightness": 1e-6},
        metrics={"digit": ["accuracy"]},
    )
    return model


def heads_in_a_dict() -> keras.Model:
    image, digit, brightness = _two_heads()
    return _compile_heads(keras.Model(image, {"digit": digit, "brightness": brightness}))


def heads_in_a_list() -> keras.Model:
    image, digit, brightness = _two_heads()
    return _compile_heads(keras.Model(image, [digit, brightness]))


def attention() -> keras.Model:
    """Rows of the image as a sequence."""
    image = keras.Input(IMAGE)
    rows = layers.Dense(16)(layers.Reshape((8, 8))(image))
    h = layers.Add()([rows, layers.MultiHeadAttention(2, 8)(rows, rows)])
    h = layers.Dense(32, activation="relu")(layers.LayerNormalization()(h))
    return keras.Model(image, layers.Dense(10)(layers.Flatten()(h)))


def bidirectional() -> keras.Model:
    image = keras.Input(IMAGE)
    h = layers.Bidirectional(layers.LSTM(12, return_sequences=True))(layers.Reshape((8, 8))(image))
    return keras.Model(image, layers.Dense(10)(layers.Flatten()(h)))


def nested() -> keras.Model:
    inner_image = keras.Input(IMAGE)
    block = layers.Concatenate()(
        [conv(inner_image, 8), layers.MaxPooling2D(3, 1, "same")(inner_image)]
    )
    inner = keras.Model(inner_image, conv(block, 12))
    image = keras.Input(IMAGE)
    outer = keras.Sequential([layers.Flatten(), layers.Dense(24, activation="relu")])
    return keras.Model(image, layers.Dense(10)(outer(inner(image))))


def shared() -> keras.Model:
    """One tower on both halves of the image; what differs between them counts."""
    image = keras.Input(IMAGE)
    left, right = (
        layers.Cropping2D(((0, 0), (0, 4)))(image),
        layers.Cropping2D(((0, 0), (4, 0)))(image),
    )
    first, flat = layers.Conv2D(12, 3, activation="relu"), layers.Flatten()
    dense = layers.Dense(24, activation="relu")
    a, b = (dense(flat(first(half))) for half in (left, right))
    h = layers.Concatenate()([layers.Subtract()([a, b]), b])
    return keras.Model(image, layers.Dense(10)(h))


def transfer() -> keras.Model:
    """A base that was trained before, frozen, under a head of its own."""
    keras.utils.set_random_seed(1)
    inner_image = keras.Input(IMAGE)
    h = conv(inner_image, 8)
    base = keras.Model(inner_image, conv(layers.Concatenate()([conv(h, 8), h]), 16))
    whole = keras.Model(inner_image, head(base.output))
    train(whole, epochs=4)
    base.trainable = False
    image = keras.Input(IMAGE)
    h = layers.Dense(32, activation="relu")(layers.Flatten()(base(image, training=False)))
    return keras.Model(image, layers.Dense(10)(h))


def half() -> keras.Model:
    """Computes in float16; the answers are float32, as Keras' guide has it."""
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        image = keras.Input(IMAGE)
        h = layers.Concatenate()([conv(image, 8), layers.MaxPooling2D(3, 1, "same")(image)])
        h = layers.GlobalAveragePooling2D()(conv(h, 16))
        return keras.Model(image, layers.Dense(10, dtype="float32")(h))
    finally:
        keras.mixed_precision.set_global_policy("float32")


NETS: dict[str, Callable[[], keras.Model]] = {
    "inception block": inception,
    "ENet block": enet,
    "U-Net": unet,
    "DenseNet": densenet,
    "SqueezeNet": squeezenet,
    "separable": separable,
    "depthwise": depthwise,
    "squeeze and excite": squeeze_and_excite,
    "two heads, dict": heads_in_a_dict,
    "two heads, list": heads_in_a_list,
    "MultiHeadAttention": attention,
    "Bidirectional": bidirectional,
    "nested": nested,
    "shared": shared,
    "frozen base": transfer,
    "mixed_float16": half,
}

# Those that learn more slowly than in 12 epochs.
EPOCHS = {
    "SqueezeNet": {"epochs": 40},
    "squeeze and excite": {"epochs": 40},
    "mixed_float16": {"epochs": 30},
}


def digits(rows: slice) -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))[rows]
    return (x[order] / 16).astype("float32").reshape(-1, *IMAGE), y[order]


def labels(model: keras.Model, x: np.ndarray, y: np.ndarray) -> Any:
    if len(model.outputs) == 1:
        return y
    return {"digit": y, "brightness": 1000 * x.mean(axis=(1, 2))}


def train(model: keras.Model, *, epochs: int) -> None:
    keras.utils.set_random_seed(0)
    if not model.compiled:
        model.compile(keras.optimizers.Adam(3e-3), CLASSES, metrics=["accuracy"])
    x, y = digits(slice(TRAINED))
    model.fit(x, labels(model, x, y), epochs=epochs, verbose=0)


def accuracy(answers: Outputs, y: np.ndarray) -> float:
    """Share of digits told right; of several outputs, the one with ten scores counts."""
    scores = next(np.asarray(a) for a in keras.tree.flatten(answers) if a.shape[-1] == 10)
    return float((scores.argmax(axis=-1) == y).mean())


def compressed(model: keras.Model, scheme: str, *, epochs: int) -> tuple[Any, bytes]:
    """What predicts after the training, and the file."""
    x, y = digits(slice(TRAINED))
    data, fit = (x, labels(model, x, y)), {"epochs": epochs, "verbose": 0}
    if scheme in ("float32", "int8"):
        artifact = compression.convert(model, x[:200])
        if scheme == "int8":
            artifact = compression.quantize(artifact, compression.int8)
        return model, artifact.content
    result: Any = None
    if scheme in ("prune", "pcqat"):
        result = compression.prune(model, data, sparsity=0.5, **fit)
    if scheme == "pcqat":
        result.model.compile(**compiled_with(model))
    if scheme in ("cluster", "pcqat"):
        source = model if result is None else result.model
        result = compression.cluster(source, data, clusters=16, **fit)
    if scheme == "pcqat":
        result.model.compile(**compiled_with(model))
        model = result.model
    if scheme.endswith("qat"):
        trained: list[Any] = []  # tf_keras' model, which is not given to the user
        convert = quantization_aware._converted

        def seen(model: Any, *args: Any, **kwargs: Any) -> bytes:
            trained.append(model)
            return convert(model, *args, **kwargs)

        quantization_aware._converted = seen
        kept = dict.fromkeys(("preserve_sparsity", "preserve_clusters"), scheme == "pcqat")
        artifact = compression.quantize_aware(model, data, **kept, **fit)
        return trained[-1], artifact.content
    return result.model, compression.convert(result.model, x[:200]).content


def measured(net: str, scheme: str, *, epochs: int = 12, fine_tuned: int = 4) -> dict[str, Any]:
    """The accuracies on what was held out, or why there are none."""
    keras.utils.set_random_seed(0)
    model = NETS[net]()
    train(model, epochs=epochs)
    x, y = digits(slice(TRAINED, None))
    found: dict[str, Any] = {"float": accuracy(model.predict(x, verbose=0), y)}
    try:
        trained, content = compressed(model, scheme, epochs=fine_tuned)
    except (ValueError, TypeError, UserError) as error:
        return {**found, "refused": str(error)}
    found["trained"] = accuracy(trained.predict(x, verbose=0), y)
    answers = LiteRTModel(content).predict(x)
    named = answers if isinstance(answers, dict) else {"": answers}
    return {**found, "file": accuracy(list(named.values()), y), "outputs": sorted(named)}


def in_a_new_process(
    scheme: str, *nets: str, **epochs: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What `measured` finds of some nets, one after the other."""
    arguments = [scheme, json.dumps(epochs), *nets]
    done = subprocess.run(
        [sys.executable, "-m", "tests.compression.topologies", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for net, line in zip(nets, done.stdout.splitlines()[-len(nets) :], strict=True):
        yield net, json.loads(line)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for name in sys.argv[3:]:
        print(json.dumps(measured(name, sys.argv[1], **json.loads(sys.argv[2]))), flush=True)
