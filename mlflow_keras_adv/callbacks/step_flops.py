"""StepFlops: what the steps of a training compute, and how many of it a second."""

from collections.abc import Mapping

import tensorflow as tf

from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.metrics.flops import Flops, flops_of_step
from mlflow_keras_adv.training.session import TrainingSession
from mlflow_keras_adv.training.watching import looking_away


class StepFlops:
    """Floating-point operations of a step of `fit`, from a trace of its own.

    Args:
        session: The training.
    """

    def __init__(self, session: TrainingSession) -> None:
        self._session = session
        self._counted: dict[int, Flops] = {}

    def of_largest(self, sizes: Mapping[int, int]) -> Flops:
        """The operations of a step with the largest batch, counted once for each size.

        Args:
            sizes: How many batches of so many examples the epoch had, at least one.

        Raises:
            UserError: It cannot be counted.
        """
        size = max(sizes)
        if size not in self._counted:
            self._counted[size] = self._count(size)
        return self._counted[size]

    def of_epoch(self, sizes: Mapping[int, int]) -> float:
        """The operations of all steps of an epoch; a smaller batch is counted in proportion."""
        examples = sum(size * count for size, count in sizes.items())
        return self.of_largest(sizes).total * examples / max(sizes)

    @keeps_random_state()
    def _count(self, size: int) -> Flops:
        model, batch = self._session.model, self._session.batch
        if not self._session.in_fit:
            raise UserError(
                "A Loop does not know the step that it runs. Count it with "
                "metrics.flops.flops_of_function(train_step, x, y), and log it with loop.log."
            )
        if batch is None:
            raise UserError("Its batches are no dense tensors, or the step has several replicas.")

        def sized(spec: tf.TensorSpec) -> tf.TensorSpec:
            free = spec.shape.rank and spec.shape[0] is None
            return tf.TensorSpec([size, *spec.shape[1:]], spec.dtype) if free else spec

        with looking_away():
            found = flops_of_step(model, tf.nest.map_structure(sized, batch))
        if found.has_unknown_shapes:
            raise UserError(f"Of it: {found.left_out}.")
        return found
