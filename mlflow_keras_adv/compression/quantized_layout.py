"""Applies tfmot's quantization layout without changing the graph.

tfmot replaces patterns of layers in the config of a model: a SeparableConv2D becomes two layers, a
Concatenate passes quantizing on to what feeds it. Version 0.8.1 looks up the layers that feed a
match in the order in which the config lists them, not in that of the match's inputs, and so
permutes the inputs of a Concatenate; connects the first result of a layer that has several; and
calls new layers as if nothing in the model were called so, which merges two layers into one. And it
trains kernels that are frozen.
"""

import copy
import re
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from mlflow_keras_adv.compat.tf_keras import freeze
from mlflow_keras_adv.compat.tfmot import (
    Default8BitQuantizeLayoutTransform,
    ModelTransformer,
    layout_module,
    tfmot,
)
from mlflow_keras_adv.compression.graphs import unused
from mlflow_keras_adv.compression.proof import is_wrapper


def quantize_apply(annotated: Any, scheme: Any) -> Any:
    """Like tfmot's function of this name, without changing what the model computes and trains.

    Args:
        annotated: A model that is annotated for quantizing.
        scheme: One of tfmot's 8-bit schemes.

    Returns:
        The model with rounding in place. A layer that a transform has added is called after the
        one that it belongs to: `image.quantize_layer`, `separable.depthwise_conv2d`.
    """
    scheme.get_layout_transformer = _GraphKeepingLayout
    quantized = tfmot.quantization.keras.quantize_apply(annotated, scheme)
    for layer in filter(is_wrapper, quantized.layers):
        if not layer.layer.trainable:
            # tfmot trains the kernels that it rounds, frozen or not.
            freeze(layer)
    return quantized


class _GraphKeepingLayout(Default8BitQuantizeLayoutTransform):
    """tfmot's transforms, applied by a transformer that keeps inputs in order and names apart."""

    def apply(self, model: Any, layer_quantize_map: dict[str, Any]) -> Any:
        # Its list of transforms is written inside `apply`, beside the name of the transformer.
        found = layout_module.model_transformer
        layout_module.model_transformer = SimpleNamespace(ModelTransformer=_Transformer)
        try:
            return super().apply(model, layer_quantize_map)
        finally:
            layout_module.model_transformer = found


class _Transformer(ModelTransformer):
    def _get_layers(self, layer_names: Sequence[str]) -> list[Any]:
        by_name = {layer["config"]["name"]: layer for layer in self.layer_configs}
        return [by_name[name] for name in dict.fromkeys(layer_names) if name in by_name]

    def _replace_functional(self, match: Any, replacement: Any) -> None:
        matched = {node.layer["config"]["name"]: node for node in _nodes(match)}
        connections = {
            name: copy.deepcopy(node.layer["inbound_nodes"]) for name, node in matched.items()
        }
        self._name_new_layers(match, replacement, matched)
        super()._replace_functional(match, replacement)
        for node in _nodes(replacement):
            name = node.layer["config"]["name"]
            # tfmot has connected result 0 of call 0 of each, without the arguments of the call.
            if node.input_layers and _inputs(node) == _inputs(matched.get(name)):
                node.layer["inbound_nodes"] = connections[name]

    def _name_new_layers(self, match: Any, replacement: Any, matched: dict[str, Any]) -> None:
        """Calls the layers of a replacement by what they replace, each by a name of its own.

        They come with tf_keras' default names, which count from `conv2d` in a fresh process, as the
        names of Keras 3 do.
        """
        taken = {layer["config"]["name"] for layer in self.layer_configs}
        replaced = match.layer["config"]["name"]
        kept = {node.layer["config"]["name"] for node in _nodes(replacement)} & matched.keys()
        for node in _nodes(replacement):
            name = node.layer["config"]["name"]
            if name in matched:
                continue
            kind = node.layer["class_name"]
            if node is replacement and replaced not in kept and kind != "Lambda":
                new = replaced  # what consumes it needs no other name
            else:
                # The name of a Lambda is a pattern by which tfmot finds it.
                own = name if kind == "Lambda" else f"{replaced}.{re.sub(r'_[0-9]+$', '', name)}"
                new = unused(own, taken)
            taken.add(new)
            node.layer["name"] = node.layer["config"]["name"] = new


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for each in node.input_layers:
        yield from _nodes(each)


def _inputs(node: Any) -> list[str]:
    return [] if node is None else [each.layer["config"]["name"] for each in node.input_layers]
