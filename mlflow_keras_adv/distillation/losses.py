"""Losses between a student and its teacher: softened predictions, and features."""

import math
from typing import Any

import keras


@keras.saving.register_keras_serializable(package="mlflow_keras_adv")
class SoftTargets(keras.losses.Loss):
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), for each example.

    The higher the temperature, the more the student learns of the classes that the teacher finds
    unlikely. The gradient of the softened divergence shrinks as 1/T²; the factor T² undoes that,
    so that weights keep their meaning when the temperature changes.

    Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531.

    A single logit is that of a binary decision. With `each=True` every logit is one: then the
    divergence is that of two classes, averaged over the labels.

    Args:
        temperature: T, above 0.
        each: Whether the logits are those of independent labels (multi-label) and not of mutually
            exclusive classes.
        name: Name of the loss.

    Raises:
        ValueError: The temperature is not a finite number above 0.
    """

    def __init__(
        self, temperature: float = 4.0, *, each: bool = False, name: str = "soft_targets"
    ) -> None:
        if not 0 < temperature < math.inf:
            raise ValueError(
                f"temperature is {temperature!r}; expected a finite number above 0. "
                "Usual values lie between 1 and 20."
            )
        super().__init__(name=name, dtype="float32")
        self.temperature = float(temperature)
        self.each = bool(each)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Computes the loss of each example.

        Args:
            y_true: The teacher's logits, of shape (batch, ..., classes).
            y_pred: The student's, of the same shape.

        Returns:
            Losses of shape (batch, ...).
        """
        if self.each or y_pred.shape[-1] == 1:  # the softmax of one is 1 whatever it says
            return self.temperature**2 * keras.ops.mean(self._yes_and_no(y_true, y_pred), axis=-1)
        log_teacher = keras.ops.log_softmax(y_true / self.temperature)
        log_student = keras.ops.log_softmax(y_pred / self.temperature)
        divergence = keras.ops.exp(log_teacher) * (log_teacher - log_student)
        return self.temperature**2 * keras.ops.sum(divergence, axis=-1)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {"temperature": self.temperature, "each": self.each, "name": self.name}

    def _yes_and_no(self, y_true: Any, y_pred: Any) -> Any:
        divergence = 0.0
        for sign in (1, -1):
            log_teacher = keras.ops.log_sigmoid(sign * y_true / self.temperature)
            log_student = keras.ops.log_sigmoid(sign * y_pred / self.temperature)
            divergence += keras.ops.exp(log_teacher) * (log_teacher - log_student)
        return divergence


@keras.saving.register_keras_serializable(package="mlflow_keras_adv")
class Hint(keras.losses.MeanSquaredError):
    """Mean squared difference between the features of a teacher's and of a student's layer.

    Where the last axes (features or channels) differ in size, the `Distiller` learns a linear
    projection of the student's features: a `Dense` on the last axis, on images a 1x1 convolution.

    Romero et al.: FitNets: Hints for Thin Deep Nets, 2014, arXiv:1412.6550, equation 3, with the
    mean over all features in place of half their sum, so that a weight suits layers of any size.
    Padded positions of masked sequences count like all others.

    Args:
        teacher_layer: Name of the layer whose output is the hint.
        student_layer: Name of the layer that is guided by it.
        name: Name of the loss.
    """

    def __init__(self, *, teacher_layer: str, student_layer: str, name: str = "hint") -> None:
        super().__init__(name=name, dtype="float32")
        self.teacher_layer = teacher_layer
        self.student_layer = student_layer

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        layers = {"teacher_layer": self.teacher_layer, "student_layer": self.student_layer}
        return {**layers, "name": self.name}
