"""The names of TensorFlow that are not public are where this package looks for them."""

from typing import Any

import tensorflow as tf

from mlflow_keras_adv.compat.tensorflow import body_of, tell_cluster, told_in_cluster


def test_the_body_of_a_loop_has_its_operations_and_their_shapes() -> None:
    def loop(x: Any) -> Any:
        return tf.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, tf.tanh(y)), [0, x])

    traced = tf.function(loop).get_concrete_function(tf.TensorSpec((2, 5)))
    (found,) = (each for each in traced.graph.get_operations() if "While" in each.type)
    made = {each.type: each for each in body_of(found, "body").get_operations()}
    assert made["Tanh"].outputs[0].shape == (2, 5)
    assert "Less" in {each.type for each in body_of(found, "cond").get_operations()}


def test_a_process_without_a_cluster_tells_nobody_and_is_told_nothing() -> None:
    """Several processes, which hear of each other, are in tests/machines."""
    assert not tell_cluster("begin", "epoch 0")
    assert told_in_cluster("begin", 0.01) is None
