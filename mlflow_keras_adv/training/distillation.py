"""Distiller: trains a small student with the help of a trained teacher, through ordinary `fit`."""

import math
from collections.abc import Sequence
from os import PathLike
from typing import Any

import keras
import tensorflow as tf

from mlflow_keras_adv.training.distillation_losses import Hint
from mlflow_keras_adv.training.logits import probability_ending, require_loss_on_logits

Shape = tuple[int | None, ...]


class Distiller(keras.Model):
    """A student in training; called, it gives the student's output.

    The loss is

        (1 - alpha) · student_loss + alpha · distillation_loss + the student's regularisation

    where `student_loss` is what `compile(loss=...)` says about the labels, and `distillation_loss`
    the weighted sum of the distillation losses. `fit` and `evaluate` report both beside `loss`.
    Sample and class weights count in both, as in any Keras loss; in a `Hint` an example counts
    with the mean of its weights. The losses are computed in float32.

    Student and teacher take the same input and give one output: logits, of equal shapes. The
    teacher runs in inference mode; nothing of it is changed, trained or saved.

    `save`, and so `keras.callbacks.ModelCheckpoint`, writes the student alone. `save_weights` and
    `load_weights` serve to resume a distillation: student, projections and optimizer.

    Example:
        ```python
        distiller = Distiller(student, teacher, SoftTargets(temperature=4.0), alpha=0.7)
        distiller.compile(
            optimizer="adam",
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        distiller.fit(x, y, validation_split=0.1, epochs=10)
        student.save("student.keras")
        ```

    Args:
        student: The model to train, kept as the attribute `student`. Its dtype policy becomes the
            distiller's: `compile` scales the loss of a mixed_float16 student.
        teacher: A trained model.
        distillation: One loss or several: `SoftTargets`, `Hint`, or any other `keras.losses.Loss`,
            which gets the teacher's logits as `y_true` and the student's as `y_pred`.
        alpha: Weight of the distillation part, from 0 (labels only) to 1 (teacher only).
        distillation_weights: A factor for each of several losses; 1 by default.
        name: Name of the distiller.

    Raises:
        TypeError: A model is no Keras model, or a loss no Keras loss.
        ValueError: A number is out of range, or the models do not fit together; the message says
            which and what to do. A `compile(loss=...)` that expects probabilities, as the name
            "sparse_categorical_crossentropy" does, is refused at the first step.
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model,
        distillation: keras.losses.Loss | Sequence[keras.losses.Loss],
        *,
        alpha: float = 0.5,
        distillation_weights: Sequence[float] | None = None,
        name: str = "distiller",
    ) -> None:
        losses = [distillation] if isinstance(distillation, keras.losses.Loss) else distillation
        weights = [1.0] * len(losses) if distillation_weights is None else distillation_weights
        _check_models(student, teacher)
        _check_distillation(losses, weights, alpha)
        # No autocast: the inputs reach the student as they are, and its own layers cast them.
        super().__init__(name=name, dtype=student.dtype_policy, autocast=False)
        self.student = student
        self.built = student.built
        self.alpha = float(alpha)
        self.distillation = list(losses)
        self.distillation_weights = [float(weight) for weight in weights]
        hints = [loss for loss in losses if isinstance(loss, Hint)]
        self._student_pass = _ForwardPass(student, {hint.student_layer for hint in hints})
        self._teacher_pass = _ForwardPass(teacher, {hint.teacher_layer for hint in hints})
        self.projections = [self._projection(each) for each in losses]
        self.student_loss_tracker = keras.metrics.Mean(name="student_loss")
        self.distillation_loss_tracker = keras.metrics.Mean(name="distillation_loss")

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The student's output."""
        output, features = self._student_pass(inputs, training=training)
        # Keras hands the output alone on to compute_loss. What else belongs to this pass travels
        # with it, as Keras' own masks do.
        output._student_features = features
        return output

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The loss of a batch, a float32 scalar.

        Args:
            x: The batch's input, which the teacher is shown too.
            y: Labels.
            y_pred: What this distiller, called on `x`, gave.
            sample_weight: Weights as Keras' losses take them, or None.
            training: Ignored: `y_pred` comes from the right pass already.
        """
        require_loss_on_logits(self.loss)
        # What the stock compute_loss calls; Keras has no public name for it.
        student_loss = _float32(self._compile_loss(y, y_pred, sample_weight))
        distillation_loss = self._distillation_loss(x, y_pred, sample_weight)

        batch_size = keras.ops.shape(next(t for t in keras.tree.flatten(x) if t is not None))[0]
        replicas = tf.distribute.get_strategy().num_replicas_in_sync  # Keras' losses divide by it
        self.student_loss_tracker.update_state(student_loss * replicas, batch_size)
        self.distillation_loss_tracker.update_state(distillation_loss * replicas, batch_size)

        total = (1 - self.alpha) * student_loss + self.alpha * distillation_loss
        return sum((keras.ops.sum(_float32(loss)) for loss in self.losses), total)

    def save(
        self, filepath: str | PathLike[str], overwrite: bool = True, zipped: bool | None = None
    ) -> None:
        """Saves the student alone; arguments as of `keras.Model.save`."""
        self.student.save(filepath, overwrite=overwrite, zipped=zipped)

    def get_config(self) -> dict[str, Any]:
        """Raises `NotImplementedError`: a distiller lives no longer than the training."""
        raise NotImplementedError(
            "A Distiller cannot be serialised, cloned or copied. Do so with `distiller.student` "
            "and pass the result to a new Distiller."
        )

    def _distillation_loss(self, x: Any, y_pred: Any, sample_weight: Any) -> Any:
        # Without stop_gradient an eager tape would walk back through the teacher for nothing.
        teacher_logits, teacher_features = keras.tree.map_structure(
            keras.ops.stop_gradient, self._teacher_pass(x, training=False)
        )
        if not _shapes_agree(teacher_logits.shape[1:], y_pred.shape[1:]):
            raise ValueError(
                f"The teacher gives logits of shape {tuple(teacher_logits.shape)}, the student of "
                f"shape {tuple(y_pred.shape)}; expected equal shapes. Give both the same classes."
            )
        if hasattr(y_pred, "_student_features"):
            student_features = y_pred._student_features
        else:  # a stand-in, on which Keras builds the loss before the first step
            _, student_features = self._student_pass(x, training=False)

        total = keras.ops.zeros((), "float32")
        for loss, weight, projection in zip(
            self.distillation, self.distillation_weights, self.projections, strict=True
        ):
            target, answer, example_weight = teacher_logits, y_pred, sample_weight
            if isinstance(loss, Hint):
                answer = student_features[loss.student_layer]
                answer = _rows(answer if projection is None else projection(answer))
                target = _rows(teacher_features[loss.teacher_layer])
                if sample_weight is not None:
                    example_weight = keras.ops.mean(_rows(_float32(sample_weight)), axis=-1)
            total += weight * _float32(loss(target, answer, example_weight))
        return total

    def _projection(self, loss: keras.losses.Loss) -> keras.layers.Layer | None:
        """Brings the student's features to the width of the teacher's, where they differ."""
        if not isinstance(loss, Hint):
            return None
        student = self._student_pass.feature_shapes[loss.student_layer]
        teacher = self._teacher_pass.feature_shapes[loss.teacher_layer]
        if None in (student[-1], teacher[-1]) or not _shapes_agree(student[1:-1], teacher[1:-1]):
            raise ValueError(
                f"The student's layer {loss.student_layer!r} gives features of shape {student}, "
                f"the teacher's {loss.teacher_layer!r} of shape {teacher}; expected the same but "
                "for the last axis, and a known size there. Choose layers of equal resolution."
            )
        if student[-1] == teacher[-1]:
            return None
        projection = keras.layers.Dense(
            teacher[-1], dtype="float32", name=f"{loss.name}_projection"
        )
        projection.build(student)
        return projection


class _ForwardPass:
    """Gives a model's output and, from the same pass, the outputs of some of its layers.

    Not a Keras object, on purpose: Keras trains, counts and saves every model that it finds in
    the attributes of another one, and the teacher shall be none of that.
    """

    def __init__(self, model: keras.Model, layers: set[str]) -> None:
        self._name = model.name
        self._model = model
        self.feature_shapes: dict[str, Shape] = {}
        if not layers:
            return
        if getattr(model, "outputs", None) is None:
            raise ValueError(
                f"The model {model.name!r} has no graph of layers to take features from; a Hint "
                "needs a Functional model, or a Sequential one that starts with keras.Input."
            )
        features = {name: model.get_layer(name).output for name in sorted(layers)}
        self.feature_shapes = {name: tuple(each.shape) for name, each in features.items()}
        # A Sequential model has `inputs`, but no `input` before it is called.
        sequential = isinstance(model, keras.Sequential)
        inputs = model.inputs[0] if sequential else model.input
        output = model.outputs[0] if sequential else model.output
        self._model = keras.Model(inputs, [output, features])

    def __call__(self, x: Any, training: bool | None) -> tuple[Any, dict[str, Any]]:
        result = self._model(x, training=training)
        output, features = result if self.feature_shapes else (result, {})
        if keras.tree.is_nested(output):
            raise ValueError(
                f"The model {self._name!r} gives a {type(output).__name__} of outputs; expected "
                "one tensor of logits. Pass a model that ends in the output to distil."
            )
        return output, features


def _check_models(student: keras.Model, teacher: keras.Model) -> None:
    for role, model in (("student", student), ("teacher", teacher)):
        if not isinstance(model, keras.Model):
            raise TypeError(f"The {role} is a {type(model)}; expected a keras.Model.")
        if ending := probability_ending(model):
            raise ValueError(
                f"The {role} {model.name!r} ends in {ending}, so it gives probabilities; expected "
                "logits. Leave the last activation out and use losses with from_logits=True."
            )
    if not teacher.built:
        raise ValueError(f"The teacher {teacher.name!r} has no weights; train or load it first.")
    teachers = {id(variable) for variable in teacher.variables}
    if shared := [each.path for each in student.trainable_variables if id(each) in teachers]:
        raise ValueError(
            f"The student would train weights of the teacher: {', '.join(shared)}; expected "
            "weights of its own. Clone the layers that both use, or freeze them."
        )


def _check_distillation(losses: Sequence[Any], weights: Sequence[float], alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(
            f"alpha is {alpha!r}; expected a number from 0 (labels only) to 1 (teacher only)."
        )
    if not losses:
        raise ValueError("distillation is empty; expected a loss, for example SoftTargets().")
    for loss in losses:
        if not isinstance(loss, keras.losses.Loss):
            raise TypeError(
                f"distillation holds {loss!r}; expected SoftTargets, Hint or another "
                "keras.losses.Loss object."
            )
    if len(weights) != len(losses) or not all(0 <= weight < math.inf for weight in weights):
        raise ValueError(
            f"distillation_weights is {list(weights)}; expected {len(losses)} finite numbers, 0 or "
            "more, one for each loss."
        )


def _shapes_agree(one: Sequence[int | None], other: Sequence[int | None]) -> bool:
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(None in pair or pair[0] == pair[1] for pair in pairs)


def _float32(value: Any) -> Any:
    return keras.ops.cast(value, "float32")


def _rows(values: Any) -> Any:
    """One row for each example; also free of the mask that Keras would weight the values with."""
    return keras.ops.reshape(values, (keras.ops.shape(values)[0], -1))
