"""A tf_keras model that is trained with the losses and metrics of Keras 3."""

from collections.abc import Mapping
from typing import Any

import keras

from mlflow_keras_adv.compression import graphs
from mlflow_keras_adv.extras import extra
from mlflow_keras_adv.metrics.judge import Judge

with extra("compression"):
    import tf_keras


def judged(model: tf_keras.Model, judge: Judge, like: keras.Model) -> tf_keras.Model:
    """A model of the same layers, trained and evaluated as Keras 3 trains and evaluates `like`.

    Args:
        model: A functional model; its layers are used themselves.
        judge: The judge of `like`.
        like: The Keras 3 model that `model` comes from: structures and names of outputs are its.
    """

    class Judged(tf_keras.Model):
        # Keras' objects stay out of the attributes, which tf_keras would track.

        def compute_loss(
            self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None
        ) -> Any:
            return judge.loss(y, y_pred, sample_weight, self.losses)

        def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> Any:
            return judge.results(y, y_pred, sample_weight)

        def get_metrics_result(self) -> dict[str, Any]:
            return judge.so_far()

        def reset_metrics(self) -> None:
            judge.reset()

        @property
        def metrics(self) -> list[Any]:
            return judge.metrics

    inputs, outputs = graphs.inputs(like), model.outputs
    if not graphs.is_sequential(like):
        outputs = keras.tree.pack_sequence_as(graphs.outputs(like), outputs)
    else:
        (outputs,) = outputs
    trained = Judged(keras.tree.pack_sequence_as(inputs, model.inputs), outputs, name=model.name)
    trained.output_names = names_of_outputs(like)
    return trained


def names_of_outputs(model: keras.Model) -> list[str]:
    """The names of the outputs of a Sequential or functional model, in the flat order.

    Those of a dict have its keys, others the names of the layers that they come from.
    """
    if graphs.is_sequential(model):
        return [model.layers[-1].name]
    structure = graphs.outputs(model)
    flat = keras.tree.flatten(structure)
    if isinstance(structure, Mapping) and len(structure) == len(flat):
        named = keras.tree.pack_sequence_as(structure, range(len(flat)))
        return sorted(structure, key=lambda key: named[key])
    names: list[str] = []
    for name in model.output_names:
        names.append(graphs.unused(name, names))
    return names
