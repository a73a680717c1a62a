"""The weights that compression is about: kernels and embeddings, by layer."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from mlflow_keras_adv.compat.keras import layers_of, parts_of
from mlflow_keras_adv.compression.graphs import is_graph, named_layers
from mlflow_keras_adv.errors import UserError

# Of rank 2 and more, and still few: a depthwise kernel has one filter a channel, and the others
# shift or scale.
_NOT_KERNELS = {"bias", "depthwise_kernel", "gamma", "beta", "alpha"}
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)  # name theirs `kernel`


def kernels(model: keras.Model) -> dict[str, list[keras.Variable]]:
    """The kernels of each layer that has some.

    Args:
        model: A built model; of a Sequential or functional one, layers are called as
            `graphs.named_layers` calls them; so are those of a subclassed one, `inner.dense`.

    Returns:
        Trainable weights of rank 2 and more, but no biases, depthwise kernels or scales.
    """
    found: dict[str, list[keras.Variable]] = {}
    for name, layer in _layers(model, ""):
        own = [w for w in layer.trainable_weights if len(w.shape) > 1]
        own = [weight for weight in own if weight.name not in _NOT_KERNELS]
        if own and not isinstance(layer, _DEPTHWISE):
            found.setdefault(name, []).extend(own)
    return found


def matrices(model: keras.Model) -> dict[str, list[np.ndarray]]:
    """The weights of rank 2 and more of each layer, trainable or not, by the names of `kernels`."""
    found = {
        name: [np.asarray(weight) for weight in layer.weights if len(weight.shape) > 1]
        for name, layer in _layers(model, "")
    }
    return {name: own for name, own in found.items() if own}


def check_not_quantized(model: keras.Model) -> None:
    """Refuses a model with integer weights, and one of another library.

    Raises:
        TypeError: Not a model of Keras 3.
        UserError: Naming the layer.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"expected a model of Keras 3; got a {type(model).__module__}.{type(model).__name__}. "
            "compression.to_keras makes one from a tf_keras model."
        )
    for layer in layers_of(model):
        if getattr(layer.dtype_policy, "quantization_mode", None):
            raise UserError(
                f"layer {layer.name!r} of model {model.name!r} is quantized already "
                f"({layer.dtype_policy.name}); compress the model from before quantize()"
            )


def check_no_adapters(model: keras.Model) -> None:
    """Refuses a model with LoRA, whose kernels that serve are sums: zeros in a part are none there.

    Raises:
        UserError: Naming the layer.
    """
    for layer in layers_of(model):
        if getattr(layer, "lora_enabled", False):
            raise UserError(
                f"layer {layer.name!r} of model {model.name!r} has LoRA: its own kernel is frozen, "
                "and what is trained beside it is added when the model serves. Build the same "
                "model without LoRA, and give its layer the sum: kernel.assign(layer.kernel)."
            )


def _layers(model: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if is_graph(model):
        yield from ((prefix + name, layer) for name, layer in named_layers(model).items())
        return
    for layer in parts_of(model):
        name = prefix + layer.name
        if isinstance(layer, keras.Model):
            yield from _layers(layer, f"{name}.")
        else:
            yield name, layer
