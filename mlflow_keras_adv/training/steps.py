"""Building blocks of a training step that is written by hand: clipping and accumulation.

They do what the arguments of a Keras optimizer cannot do: clip the parts of a model by different
norms, return the norm before clipping, update on an incomplete last group. If an optimizer with
`clipnorm`, `global_clipnorm`, `clipvalue` or `gradient_accumulation_steps` does all you need, use
that: it works in a `GradientTape` loop as it does in `fit`.

Loss scaling for float16 (Micikevicius et al. 2018, arXiv:1710.03740) has no block here, because
that of Keras works with a tape, too: if gradients are not finite it skips the update and halves the
scale, and it doubles the scale after a number of good updates.

    ```python
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-3))

    @tf.function
    def train_step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_fn(y, model(x, training=True))
            scaled_loss = optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled_loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        return loss
    ```

The gradients of a scaled loss are scaled: clip them by the arguments of the inner optimizer, which
gets them unscaled, not by the functions below. A `GradientAccumulator` can be put in between.
"""

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from mlflow_keras_adv.training.cluster import sums_over_replicas
from mlflow_keras_adv.training.observe import global_norm


def clip_by_value(gradients: Iterable[Any], value: Any) -> list[Any]:
    """Limits every element of every gradient to `[-value, value]`.

    Like `clipvalue` of a Keras optimizer, but exact for the gradient of an `Embedding`: Keras and
    `tf.clip_by_value` limit each occurrence of a row separately, so that the sum for a token that
    occurs twice may be twice `value`. Here the rows are summed first, which makes that gradient
    dense.

    Args:
        gradients: Tensors, `IndexedSlices` or None, of any shape and float dtype.
        value: Positive number or scalar tensor.

    Returns:
        The clipped gradients, in order; None where None was given.

    Raises:
        ValueError: If `value` is a number that is not positive.
    """
    _check_positive("value", value)
    return [
        None
        if gradient is None
        else tf.clip_by_value(tf.convert_to_tensor(gradient), -value, value)
        for gradient in gradients
    ]


def clip_by_norm(gradients: Iterable[Any], norm: Any) -> list[Any]:
    """Scales every gradient whose L2 norm exceeds `norm` down to that norm.

    Like `clipnorm` of a Keras optimizer, but exact for the gradient of an `Embedding`; see
    `clip_by_global_norm`, which this applies to each gradient separately.

    Args:
        gradients: Tensors, `IndexedSlices` or None, of any shape and float dtype.
        norm: Positive number or scalar tensor.

    Returns:
        The clipped gradients, in order and of the types given; None where None was given.

    Raises:
        ValueError: If `norm` is a number that is not positive.
    """
    return [clip_by_global_norm([gradient], norm)[0][0] for gradient in gradients]


def clip_by_global_norm(gradients: Iterable[Any], norm: Any) -> tuple[list[Any], Any]:
    """Scales all gradients by one factor, so that their global L2 norm is at most `norm`.

    The factor is `min(1, norm / global norm)` (Pascanu, Mikolov and Bengio 2013, arXiv:1211.5063).
    Like `global_clipnorm` of a Keras optimizer, but exact for the gradient of an `Embedding`: Keras
    and `tf.clip_by_global_norm` count each occurrence of a row separately, so that the result may
    exceed `norm` if a token occurs twice in a batch. Under a distribution strategy the norm is that
    of the gradients summed over the replicas.

    Args:
        gradients: Tensors, `IndexedSlices` or None, of any shape and float dtype.
        norm: Positive number or scalar tensor.

    Returns:
        The clipped gradients, in order and of the types given, and the global norm before clipping,
        a float32 scalar. If that is not finite, all gradients become NaN, as in Keras.

    Raises:
        ValueError: If `norm` is a number that is not positive.
    """
    _check_positive("norm", norm)
    gradients = list(gradients)
    present = [gradient for gradient in gradients if gradient is not None]
    norm_before = global_norm(sums_over_replicas(present))
    clipped, _ = tf.clip_by_global_norm(gradients, norm, use_norm=norm_before)
    return clipped, norm_before


def gradient_cosine(first: Iterable[Any], second: Iterable[Any]) -> Any:
    """Computes the cosine of the angle between two gradients, to compare two losses.

    Args:
        first: Tensors of any shape, one for each weight.
        second: As many, of the same shapes.

    Returns:
        A scalar tensor from -1 to 1; 0 if one of the gradients is zero.
    """
    a, b = (tf.concat([tf.reshape(each, [-1]) for each in parts], 0) for parts in (first, second))
    return tf.math.divide_no_nan(tf.reduce_sum(a * b), tf.norm(a) * tf.norm(b))


class GradientAccumulator:
    """Updates once every `steps` micro-batches, with the mean of their gradients.

    With micro-batches of equal size and a loss that is a mean, the update is that of one batch
    `steps` times as large. Unlike `gradient_accumulation_steps` of a Keras optimizer, it can apply
    an incomplete last group (`flush`), and the optimizer's iterations, and so learning-rate
    schedules and moving averages of the weights, count updates and not micro-batches.

    It keeps one variable per model variable that has a gradient; they are made on first use, which
    may be in the first trace of a `tf.function`.

    Example:
        ```python
        accumulator = GradientAccumulator(4)

        @tf.function
        def train_step(x, y):
            with tf.GradientTape() as tape:
                loss = loss_fn(y, model(x, training=True))
            gradients = tape.gradient(loss, model.trainable_variables)
            accumulator.apply(optimizer, gradients, model.trainable_variables)

        for x, y in train:
            train_step(x, y)
        accumulator.flush(optimizer)
        ```

    Args:
        steps: Number of micro-batches in a group.

    Raises:
        ValueError: If `steps` is less than 1.
    """

    def __init__(self, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"Received steps={steps}; expected 1 or more micro-batches a group.")
        self.steps = steps
        self._variables: list[Any] = []
        self._sums: list[Any] = []
        self._count: Any = None

    def apply(self, optimizer: Any, gradients: Iterable[Any], variables: Iterable[Any]) -> Any:
        """Adds the gradients of one micro-batch, and updates if the group is complete.

        Args:
            optimizer: A Keras optimizer. Under a `LossScaleOptimizer` a group with a gradient that
                is not finite is skipped as a whole.
            gradients: Tensors, `IndexedSlices` or None, one per variable. A variable that has none
                at the first call reaches the optimizer with None; later None counts as zero.
            variables: The variables to update; the same ones at every call.

        Returns:
            Whether an update was due, a bool scalar tensor.

        Raises:
            ValueError: If the variables are not those of the first call, or one has a gradient that
                had none then.
            RuntimeError: If several replicas are trained.
        """
        gradients, variables = list(gradients), list(variables)
        self._prepare(gradients, variables)
        for gradient, total, variable in zip(gradients, self._sums, variables, strict=True):
            if gradient is None:
                continue
            if total is None:
                raise ValueError(
                    f"Received a gradient for {variable.name!r}, which had none at the first call. "
                    "Make one GradientAccumulator for each step function."
                )
            if isinstance(gradient, tf.IndexedSlices):
                total.scatter_add(gradient)
            else:
                total.assign_add(gradient)
        return self._update_if(self._count.assign_add(1) >= self.steps, optimizer)

    def flush(self, optimizer: Any) -> Any:
        """Updates with the mean of an incomplete group, if there is one.

        Without it, micro-batches left over at the end of an epoch belong to the first group of the
        next one, as in Keras. In a `Loop`, call it between the end of `loop.batches` and that of
        the epoch; it is recorded as an update of the last batch.

        Args:
            optimizer: The optimizer given to `apply`.

        Returns:
            Whether an update was due, a bool scalar tensor.
        """
        if self._count is None:
            return tf.constant(False)
        return self._update_if(self._count > 0, optimizer)

    def _prepare(self, gradients: list[Any], variables: list[Any]) -> None:
        context = tf.distribute.get_replica_context()
        if context is not None and context.num_replicas_in_sync > 1:
            raise RuntimeError(
                f"Received gradients of one of {context.num_replicas_in_sync} replicas, but a "
                "distribution strategy cannot sum over replicas in a conditional update. Train "
                "on one device, or without accumulation."
            )
        if self._count is None:
            # Filled with zeros now, also while a step is being traced: that trace may yet fail.
            with tf.init_scope():
                self._sums = [
                    None
                    if gradient is None
                    else tf.Variable(tf.zeros(variable.shape, variable.dtype), trainable=False)
                    for gradient, variable in zip(gradients, variables, strict=True)
                ]
                self._count = tf.Variable(0, trainable=False)
            self._variables = variables
        if list(map(id, variables)) != list(map(id, self._variables)):
            raise ValueError(
                f"Received {len(variables)} variables that are not the {len(self._variables)} of "
                "the first call, in their order. Make one GradientAccumulator for each list of "
                "variables."
            )

    def _update_if(self, due: Any, optimizer: Any) -> Any:
        def update() -> None:
            means = [
                None if each is None else each / tf.cast(self._count, each.dtype)
                for each in self._sums
            ]
            optimizer.apply_gradients(zip(means, self._variables, strict=True))
            for each in self._sums:
                if each is not None:
                    each.assign(tf.zeros_like(each))
            self._count.assign(0)

        tf.cond(due, update, lambda: None)
        return due


def _check_positive(name: str, limit: Any) -> None:
    if isinstance(limit, (int, float)) and not limit > 0:
        raise ValueError(f"Received {name}={limit}; expected a positive number.")
