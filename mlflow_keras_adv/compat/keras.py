"""Keras 3.8 to 3.15."""

import functools
import inspect
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import tensorflow as tf
from packaging.version import Version


def export_litert(model: keras.Model, file: Path, input_signature: Any | None, sample: Any) -> None:
    """Writes a model as a `.tflite` file, as `model.export(format="litert")` does from 3.13 on.

    Args:
        model: The model.
        file: Where to.
        input_signature: Specifications of the inputs, in a list; None for those of the model.
        sample: Arrays for the inputs, which tell those of a model that does not.
    """
    if _exports_litert():
        options = {} if input_signature is None else {"input_signature": input_signature}
        model.export(file, format="litert", verbose=False, **options)
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = keras.export.ExportArchive()
        archive.track(model)
        serve = functools.partial(model.__call__, training=False)
        archive.add_endpoint("serve", serve, input_signature or _signature_of(model, sample))
        archive.write_out(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS,
            tf.lite.OpsSet.SELECT_TF_OPS,
        ]
        converter.experimental_enable_resource_variables = True
        file.write_bytes(converter.convert())


Call = tuple[Any, tuple[Any, Any], list[Any]]  # what is called, args and kwargs, flat results


def without_implied_masks(calls: list[Call], outputs: list[Any]) -> list[Call]:
    """The calls of a functional model as they were written.

    Before Keras 3.12 the masks that Keras passes on by itself are arguments like others, and what
    computes them is among the calls. A library that passes masks on itself needs neither.

    Args:
        calls: In their order.
        outputs: Symbolic tensors that the model gives.
    """
    bare = [_without_masks(args, kwargs) for _, (args, kwargs), _ in calls]
    if all(len(own[1]) == len(call[1][1]) for own, call in zip(bare, calls, strict=True)):
        return calls
    wanted = {id(each) for each in outputs}
    needed: list[Call] = []
    for arguments, (called, _, results) in zip(reversed(bare), reversed(calls), strict=True):
        if wanted.intersection(map(id, results)):
            wanted.update(map(id, keras.tree.flatten(arguments)))
            needed.insert(0, (called, arguments, results))
    return needed


def _without_masks(args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    masks = [mask_of(each) for each in keras.tree.flatten((args, kwargs))]
    return args, {
        key: value
        for key, value in kwargs.items()
        if not any(mask is not None and _is_same(value, mask) for mask in masks)
    }


def _is_same(one: Any, other: Any) -> bool:
    """Whether two symbolic tensors are one, or come from the same operations on the same tensors.

    A model that was loaded holds the mask that was saved beside the one that its layers make.
    """
    if one is other or not isinstance(one, keras.KerasTensor):
        return one is other
    if not isinstance(other, keras.KerasTensor):
        return False
    (maker, number, place), (other_maker, other_number, other_place) = (
        each._keras_history for each in (one, other)
    )
    if maker is other_maker:
        return (number, place) == (other_number, other_place)
    if isinstance(maker, keras.Layer) or type(maker) is not type(other_maker):
        return False
    leaves, others = (
        keras.tree.flatten((each.arguments.args, each.arguments.kwargs))
        for each in (maker._inbound_nodes[number], other_maker._inbound_nodes[other_number])
    )
    return len(leaves) == len(others) and all(
        _is_same(leaf, twin) if isinstance(leaf, keras.KerasTensor) else leaf == twin
        for leaf, twin in zip(leaves, others, strict=True)
    )


def _exports_litert() -> bool:
    return Version(keras.__version__) >= Version("3.13")


def _signature_of(model: keras.Model, sample: Any) -> list[Any]:
    """The inputs of a model that knows them; else those of the sample, in any number."""
    own = getattr(model, "_inputs_struct", None)
    if own is None and getattr(model, "inputs", None):
        own = model.inputs[0] if len(model.inputs) == 1 else model.inputs
    if own is not None:
        return [
            keras.tree.map_structure(
                lambda each: tf.TensorSpec(each.shape, each.dtype, each.name), own
            )
        ]
    return [
        keras.tree.map_structure(
            lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype), sample
        )
    ]


def left_out_of_config(made: Any) -> dict[str, Any]:
    """Arguments of a loss or metric that its `get_config` does not tell.

    In all releases so far: `delta` of a Huber loss, and `axis` of a CosineSimilarity. Made anew
    from its configuration, it would measure something else.
    """
    known = made.get_config()
    arguments = inspect.signature(type(made).__init__).parameters
    # Private, but nothing else holds them.
    return {
        key: value
        for key, value in getattr(made, "_fn_kwargs", {}).items()
        if key in arguments and key not in known
    }


def metrics_by_output(metrics: Iterable[Any]) -> list[tuple[str, Any]]:
    """The metrics that `compile` made of what it was given, each with the name of its output.

    Args:
        metrics: `model.metrics` of a model that has been evaluated.

    Returns:
        "" for the output of a model that has but one. Keras keeps the names in private lists, of
        all releases so far.
    """
    found = []
    for metric in metrics:
        lists = [
            each
            for kind in ("_flat_metrics", "_flat_weighted_metrics")
            for each in getattr(metric, kind, ())
            if each is not None
        ]
        for each in lists:
            found += [(each.output_name or "", one) for one in each.metrics]
    return found


# What Keras has no public name for, in all releases so far.


def layers_of(model: Any) -> list[Any]:
    """The model and all layers in it, at any depth; the public `layers` is one level."""
    return list(model._flatten_layers())


def parts_of(layer: Any) -> list[Any]:
    """The layers that a layer or model holds itself, subclassed ones' too."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def is_functional(model: Any) -> bool:
    """Whether a model has a graph of calls; a Sequential one has it inside."""
    return hasattr(model, "_nodes_by_depth")


def functional_of(model: Any) -> Any:
    """The functional model that a Sequential one runs, else the model itself."""
    return model._functional if isinstance(model, keras.Sequential) else model


def nodes_of(model: Any) -> list[Any]:
    """The nodes of a functional model of Keras 3 or tf_keras, in their order; inputs left out."""
    by_depth = model._nodes_by_depth
    depths = sorted(by_depth, reverse=True)
    return [node for depth in depths for node in by_depth[depth] if not node.is_input]


def calls_of(model: Any) -> list[Call]:
    """The calls in a functional model, in their order; inputs left out."""
    found = [
        (node.operation, (node.arguments.args, node.arguments.kwargs), node.outputs)
        for node in nodes_of(model)
    ]
    return without_implied_masks(found, keras.tree.flatten(outputs_of(model)))


def inputs_of(model: Any) -> Any:
    """Symbolic inputs in the model's structure."""
    return functional_of(model)._inputs_struct


def outputs_of(model: Any) -> Any:
    """Symbolic outputs in the model's structure; None where its graph is not known."""
    return getattr(model, "_outputs_struct", None)


def consumers_of(layer: Any) -> list[Any]:
    """The consumers of a layer's results, call by call."""
    return [node.operation for node in layer._outbound_nodes]


def is_symbolic(value: Any) -> bool:
    """Whether this is a symbolic tensor of a graph of layers, of Keras 3 or tf_keras."""
    return hasattr(value, "_keras_history")


def maker_of(tensor: Any) -> tuple[Any, int] | None:
    """The operation that a symbolic tensor comes from, and which of its results it is."""
    history = getattr(tensor, "_keras_history", None)
    return None if history is None else (history[0], history[2])


def mask_of(tensor: Any) -> Any:
    """The mask that Keras passes on with a tensor; None if there is none."""
    return getattr(tensor, "_keras_mask", None)


def put_mask(tensor: Any, mask: Any) -> None:
    """Has Keras pass a mask on with a tensor."""
    tensor._keras_mask = mask


def compiled_by(model: Any) -> dict[str, Any] | None:
    """The arguments of the model's `compile`; None where it was not called.

    The public `get_compile_config` keeps of a function its name at best.
    """
    kept = getattr(model, "_compile_config", None)
    return None if kept is None else dict(kept.config)


def compiled_loss(model: Any, y_true: Any, y_pred: Any, sample_weight: Any) -> Any:
    """The loss that a model was compiled with, as its stock `compute_loss` asks for it."""
    return model._compile_loss(y_true, y_pred, sample_weight)


def direction_of(metric: Any) -> Literal["min", "max"] | None:
    """Whether a metric is better lower or higher, as Keras tells EarlyStopping."""
    directions: dict[Any, Literal["min", "max"]] = {"down": "min", "up": "max"}
    return directions.get(getattr(metric, "_direction", None))


def wrapped_by(metric: Any) -> tuple[Callable[..., Any] | None, dict[str, Any]]:
    """The function whose mean a metric is, and its keywords; None if it is not made of one."""
    return getattr(metric, "_fn", None), getattr(metric, "_fn_kwargs", {})


def sums_after_clipping(optimizer: Any) -> bool:
    """Whether an optimizer sums gradients over replicas itself, and after it has clipped them.

    Those of Keras 3 do; those of tf_keras clip the sum.
    """
    return hasattr(optimizer, "_all_reduce_sum_gradients")


def trained_by(optimizer: Any) -> Sequence[Any]:
    """The variables that an optimizer of Keras 3 was built for."""
    return getattr(optimizer, "_trainable_variables", ())


def iterations_of(optimizer: Any) -> Any:
    """The counter of an optimizer's calls, of Keras 3 or tf_keras; None before it is made.

    Not `iterations`, which counts updates under accumulation, and makes it in tf_keras.
    """
    return getattr(optimizer, "_iterations", None)


def learning_rate_of(optimizer: Any) -> Any:
    """The learning rate that an optimizer was given: the variable of a number, or a schedule."""
    return optimizer._learning_rate


def initial_epoch_of(model: Any) -> int | None:
    """The epoch at which BackupAndRestore resumes `fit`; None if it does not resume."""
    found = getattr(model, "_initial_epoch", None)
    return None if found is None else int(found)


def put_initial_epoch(model: Any, epoch: int | None) -> None:
    """Says to `fit` and `Loop` at which epoch to go on."""
    model._initial_epoch = epoch
