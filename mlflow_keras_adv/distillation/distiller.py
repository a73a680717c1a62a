"""Distiller: trains a small student with the help of a trained teacher, through ordinary `fit`."""

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import keras
import tensorflow as tf

from mlflow_keras_adv.compat.keras import compiled_loss, mask_of, put_mask
from mlflow_keras_adv.distillation.losses import Hint, SoftTargets
from mlflow_keras_adv.errors import received
from mlflow_keras_adv.metrics.logits import (
    PROBABILITIES,
    endings_of,
    require_losses_fit,
    takes_logits,
)

Shape = tuple[int | None, ...]
ByOutput = Mapping[str, Any]

# The only output of a model, if that is no dict.
_ALONE = ""
_ORDER = "The order is Distiller(teacher, student, …)."
# Losses that take the teacher's outputs as labels, and therefore as probabilities.
_OF_PROBABILITIES = (
    keras.losses.KLDivergence,
    keras.losses.BinaryCrossentropy,
    keras.losses.BinaryFocalCrossentropy,
    keras.losses.CategoricalCrossentropy,
    keras.losses.CategoricalFocalCrossentropy,
)


class Distiller(keras.Model):
    """A student in training. Calling it returns the student's output.

    The loss is

        w · student_loss + (1 - w) · distillation_loss + the student's regularisation

    where w is `student_loss_weight`, `student_loss` what `compile(loss=...)` says about the labels,
    and `distillation_loss` the weighted sum of the distillation losses. `fit` and `evaluate` report
    both beside `loss`. Sample and class weights count in both, as in any Keras loss; in a `Hint` an
    example counts with the mean of its weights, of several outputs those of the first. The losses
    are computed in float32.

    Student and teacher take the same input and give the same outputs, one or several, of equal
    shapes: logits or probabilities of classes, or numbers. `SoftTargets` takes of either what it
    needs: of an output that ends in a softmax or sigmoid the logarithms. A regressor learns from
    its teacher's numbers by `keras.losses.MeanSquaredError()`. The teacher runs in inference mode;
    nothing of it is changed, trained or saved.

    `save`, and so `keras.callbacks.ModelCheckpoint`, writes the student alone. `save_weights` and
    `load_weights` serve to resume a distillation: student, projections and optimizer.

    Example:
        ```python
        distiller = Distiller(
            teacher, student, SoftTargets(temperature=4.0), student_loss_weight=0.3
        )
        distiller.compile(
            optimizer="adam",
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        distiller.fit(x, y, validation_split=0.1, epochs=10)
        student.save("student.keras")
        ```

    The arguments are named and ordered as in `keras.distillation.Distiller`, which this class does
    not extend: in Keras 3.15 its default `LogitsDistillation` compares logits without a softmax,
    sample weights and the student's regularisation are ignored, a mixed-precision student is
    trained without loss scaling, features must be of equal width, `evaluate` can change the
    student's batch normalization, and a checkpoint holds the teacher too.

    Args:
        teacher: A trained model. It is not saved with the distiller.
        student: The model to train, kept as the attribute `student`. Its dtype policy becomes the
            distiller's: `compile` scales the loss of a mixed_float16 student.
        distillation_losses: One loss or several: `SoftTargets`, `Hint`, or any other
            `keras.losses.Loss`, which gets the teacher's output as `y_true` and the student's as
            `y_pred`. For several outputs, a dict of losses by the outputs' names; a loss outside of
            a dict applies to each output. Lists may hold dicts:
            `[Hint(…), {"kind": SoftTargets(), "price": MeanSquaredError()}]`.
        distillation_loss_weights: A factor for each of several losses; 1 by default. A dict of
            losses has one for all in it, or a dict.
        student_loss_weight: Weight of the loss on the labels, from 0 (teacher only) to 1 (labels
            only).
        name: Name of the distiller.

    Raises:
        TypeError: A model is no Keras model, or a loss no Keras loss.
        ValueError: A number is out of range, or the models do not fit together; the message says
            which and what to do. Losses of logits for probabilities, or the other way round, are
            refused at the first step: the name "sparse_categorical_crossentropy" expects
            probabilities.
    """

    def __init__(
        self,
        teacher: keras.Model,
        student: keras.Model,
        distillation_losses: keras.losses.Loss | ByOutput | Sequence[keras.losses.Loss | ByOutput],
        *,
        distillation_loss_weights: Sequence[float | Mapping[str, float]]
        | Mapping[str, float]
        | None = None,
        student_loss_weight: float = 0.5,
        name: str = "distiller",
    ) -> None:
        _check_models(teacher, student)
        outputs, losses, weights = _taken_apart(distillation_losses, distillation_loss_weights)
        _check_arguments(losses, weights, student_loss_weight)
        # No autocast: the inputs reach the student as they are, and its own layers cast them.
        super().__init__(name=name, dtype=student.dtype_policy, autocast=False)
        self.student = student
        self.built = student.built
        self.student_loss_weight = float(student_loss_weight)
        self.distillation_losses = list(losses)
        self.distillation_loss_weights = [float(weight) for weight in weights]
        self._outputs_of_losses = outputs
        if (names := getattr(student, "output_names", None)) is not None:
            self.output_names = list(names)  # Keras calls losses and metrics after them
        hints = [loss for loss in losses if isinstance(loss, Hint)]
        self._student_pass = _ForwardPass(
            "student", student, {hint.student_layer for hint in hints}
        )
        self._teacher = _Untracked(teacher)
        self._teacher_pass = _ForwardPass(
            "teacher", teacher, {hint.teacher_layer for hint in hints}
        )
        self.projections = [self._projection(each) for each in losses]
        self.student_loss_tracker = keras.metrics.Mean(name="student_loss")
        self.distillation_loss_tracker = keras.metrics.Mean(name="distillation_loss")

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The student's output."""
        output, features = self._student_pass(inputs, training=training)
        # Keras hands the output alone on to compute_loss. What else belongs to this pass travels
        # with it, as Keras' own masks do.
        keras.tree.flatten(output)[0]._student_features = features
        return output

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Computes the loss of a batch.

        Args:
            x: The inputs of the batch, for the teacher.
            y: Labels.
            y_pred: The output of this distiller for `x`.
            sample_weight: Weights as Keras' losses take them, or None.
            training: Ignored: `y_pred` comes from the right pass already.

        Returns:
            The loss, a float32 scalar.
        """
        answers = _by_output(y_pred, self._names)
        order = _in_order(y_pred, list(answers))
        gives, taught = _endings(self.student, order), _endings(self._teacher.model, order)
        self._check_losses(answers, gives, taught)
        student_loss = _float32(compiled_loss(self, y, y_pred, sample_weight))
        distillation_loss = self._distillation_loss(
            x, y_pred, answers, gives, taught, sample_weight
        )

        batch_size = keras.ops.shape(next(t for t in keras.tree.flatten(x) if t is not None))[0]
        replicas = tf.distribute.get_strategy().num_replicas_in_sync  # Keras' losses divide by it
        self.student_loss_tracker.update_state(student_loss * replicas, batch_size)
        self.distillation_loss_tracker.update_state(distillation_loss * replicas, batch_size)

        share = self.student_loss_weight
        total = share * student_loss + (1 - share) * distillation_loss
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

    @property
    def _names(self) -> list[str]:
        return list(getattr(self.student, "output_names", None) or ())

    def _check_losses(
        self,
        answers: Mapping[str, Any],
        gives: Mapping[str, str | None],
        taught: Mapping[str, str | None],
    ) -> None:
        """Rejects, while a step is traced, losses that misinterpret an output."""
        losses = _for_outputs(self.loss, list(answers))
        require_losses_fit(losses, gives)
        for output, loss in zip(self._outputs_of_losses, self.distillation_losses, strict=True):
            if output is not None and output not in answers:
                raise ValueError(
                    f"distillation_losses has a loss for {output!r}; the student's outputs are "
                    f"{', '.join(map(repr, answers))}."
                )
            for name in answers if output is None else [output]:
                _check_fits(loss, name, taught[name], gives[name], losses.get(name), answers[name])

    def _distillation_loss(
        self,
        x: Any,
        y_pred: Any,
        answers: Mapping[str, Any],
        gives: Mapping[str, str | None],
        shown: Mapping[str, str | None],
        sample_weight: Any,
    ) -> Any:
        # Without stop_gradient an eager tape would walk back through the teacher for nothing.
        taught, teacher_features = keras.tree.map_structure(
            keras.ops.stop_gradient, self._teacher_pass(x, training=False)
        )
        targets = _matched(answers, taught, named=isinstance(y_pred, Mapping))
        first = keras.tree.flatten(y_pred)[0]
        if hasattr(first, "_student_features"):
            student_features = first._student_features
        else:  # a stand-in, on which Keras builds the loss before the first step
            _, student_features = self._student_pass(x, training=False)
        weights = _for_outputs(sample_weight, list(answers))

        total = keras.ops.zeros((), "float32")
        for loss, output, weight, projection in zip(
            self.distillation_losses,
            self._outputs_of_losses,
            self.distillation_loss_weights,
            self.projections,
            strict=True,
        ):
            if isinstance(loss, Hint):
                answer = student_features[loss.student_layer]
                answer = _rows(answer if projection is None else projection(answer))
                target = _rows(teacher_features[loss.teacher_layer])
                each = weights.get(next(iter(answers)) if output is None else output)
                if each is not None:
                    each = keras.ops.mean(_rows(_float32(each)), axis=-1)
                total += weight * _float32(loss(target, answer, each))
                continue
            for name in answers if output is None else [output]:
                target, answer = targets[name], answers[name]
                if isinstance(loss, SoftTargets):
                    mask = mask_of(answer)
                    target, answer = _logits(target, shown[name]), _logits(answer, gives[name])
                    if mask is not None:
                        put_mask(answer, mask)
                total += weight * _float32(loss(target, answer, weights.get(name)))
        return total

    def _projection(self, loss: keras.losses.Loss) -> keras.layers.Layer | None:
        """Makes a projection of the student's features to the teacher's width, if needed."""
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
    """Returns a model's output and, from the same pass, the outputs of some of its layers.

    Not a Keras object, on purpose: Keras trains, counts and saves every model that it finds among
    the attributes of another one, and must not do so with the teacher.
    """

    def __init__(self, role: str, model: keras.Model, layers: set[str]) -> None:
        self._model = model
        self.feature_shapes: dict[str, Shape] = {}
        if not layers:
            return
        if getattr(model, "outputs", None) is None:
            raise ValueError(
                f"The {role} {model.name!r} has no graph of layers to take features from; a Hint "
                "needs a Functional model, or a Sequential one that starts with keras.Input."
            )
        found = {layer.name for layer in model.layers}
        if missing := sorted(layers - found):
            raise ValueError(
                f"The {role} {model.name!r} has no layer {missing[0]!r}, which a Hint names; it "
                f"has {', '.join(map(repr, sorted(found)))}. {_ORDER}"
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
        return result if self.feature_shapes else (result, {})


class _Untracked:
    """A model that Keras does not find among the attributes of another one."""

    def __init__(self, model: keras.Model) -> None:
        self.model = model


def _check_models(teacher: keras.Model, student: keras.Model) -> None:
    for role, model in (("teacher", teacher), ("student", student)):
        if not isinstance(model, keras.Model):
            raise TypeError(f"The {role} is a {type(model)}; expected a keras.Model. {_ORDER}")
    if not teacher.built:
        raise ValueError(
            f"The teacher {teacher.name!r} has no weights; train or load it first. {_ORDER}"
        )
    teachers = {id(variable) for variable in teacher.variables}
    if shared := [each.path for each in student.trainable_variables if id(each) in teachers]:
        raise ValueError(
            f"The student would train weights of the teacher: {', '.join(shared)}; expected "
            "weights of its own. Clone the layers that both use, or freeze them."
        )


def _taken_apart(given: Any, weights: Any) -> tuple[list[str | None], list[Any], list[float]]:
    """Pairs each loss with its output (None for all) and its factor.

    Raises:
        ValueError: The factors are not as many as the losses.
    """
    alone = isinstance(given, keras.losses.Loss | Mapping)
    if not alone and not isinstance(given, Sequence):
        raise TypeError(
            f"Received {received(given)} as distillation_losses; expected a loss, such as "
            "SoftTargets(), a list of them, or a dict of them by the student's outputs."
        )
    items = [given] if alone else list(given)
    if weights is None:
        weights = [1.0] * len(items)
    factors = [weights] if isinstance(weights, Mapping) else list(weights)
    if len(factors) != len(items):
        raise ValueError(
            f"distillation_loss_weights is {factors}; expected {len(items)} finite numbers, 0 or "
            "more, one for each loss."
        )
    found: list[tuple[str | None, Any, float]] = []
    for item, factor in zip(items, factors, strict=True):
        if not isinstance(item, Mapping):
            found.append((None, item, factor if isinstance(factor, int | float) else math.nan))
            continue
        for output, losses in item.items():
            own = factor[output] if isinstance(factor, Mapping) else factor
            several = isinstance(losses, list | tuple)
            found += [(output, loss, own) for loss in (losses if several else [losses])]
    outputs, losses, numbers = zip(*found, strict=True) if found else ((), (), ())
    return list(outputs), list(losses), list(numbers)


def _check_fits(
    loss: keras.losses.Loss,
    output: str,
    taught: str | None,
    gives: str | None,
    labels: Any,
    answer: Any,
) -> None:
    """Rejects a loss between outputs of different meaning, where their meaning is known."""
    of = f" of the output {output!r}" if output else ""
    if isinstance(loss, SoftTargets):
        each = "sigmoid" in (taught, gives) or (labels is not None and _is_binary(labels))
        if answer.shape[-1] > 1 and (each != loss.each) and (each or "softmax" in (taught, gives)):
            raise ValueError(
                f"SoftTargets(each={loss.each}) takes the answers{of} for "
                + (
                    "labels that are each for itself, and they are classes of which one is"
                    if loss.each
                    else "classes of which one is, and they are labels that are each for itself"
                )
                + f". Use SoftTargets(each={each})."
            )
        return
    if isinstance(loss, Hint):
        return
    if isinstance(loss, _OF_PROBABILITIES):
        if taught == "linear":
            raise ValueError(
                f"{type(loss).__name__} takes the teacher's answers{of} for probabilities, and it "
                "gives logits. Use SoftTargets(temperature=1.0), or end the teacher in a softmax."
            )
        wanted = bool(takes_logits(loss))
        if gives is not None and wanted == (gives in PROBABILITIES):
            raise ValueError(
                f"{type(loss).__name__} expects {'logits' if wanted else 'probabilities'} of the "
                f"student{of}, which ends in {gives}. Give it from_logits={not wanted}."
            )
        return
    opinion = None if labels is None else takes_logits(labels)
    if opinion is None or None in (taught, gives):  # numbers, or not known
        return
    if (taught in PROBABILITIES) != (gives in PROBABILITIES):
        raise ValueError(
            f"{type(loss).__name__} would compare the teacher's {taught} with the student's {gives}"
            f"{of}; expected logits of both or probabilities of both. Use SoftTargets, or end both "
            "alike."
        )


def _is_binary(loss: Any) -> bool:
    found = keras.losses.get(loss)
    return "binary" in f"{type(found).__name__} {getattr(found, '__name__', '')}".lower()


def _by_output(answers: Any, names: Sequence[str]) -> dict[str, Any]:
    """Outputs of a model, by name."""
    if isinstance(answers, Mapping):
        return dict(answers)
    if not isinstance(answers, list | tuple):
        return {_ALONE: answers}
    if len(names) != len(answers):
        names = [f"output_{place}" for place in range(len(answers))]
    return dict(zip(names, answers, strict=True))


def _for_outputs(given: Any, outputs: list[str]) -> dict[str, Any]:
    """Values that were given per output, in the order of the outputs, or once for all."""
    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, list | tuple) and len(given) == len(outputs):
        return dict(zip(outputs, given, strict=True))
    return dict.fromkeys(outputs, given)


def _matched(answers: Mapping[str, Any], taught: Any, *, named: bool) -> dict[str, Any]:
    """The teacher's outputs by the names of the student's.

    Raises:
        ValueError: Their names or shapes do not match.
    """
    by_name = isinstance(taught, Mapping)
    same = by_name == named and (not by_name or set(taught) == set(answers))
    count = len(taught) if isinstance(taught, list | tuple | Mapping) else 1
    if not same or count != len(answers):
        found = ", ".join(map(repr, taught)) if isinstance(taught, Mapping) else count
        raise ValueError(
            f"The teacher's outputs are {found}, the student's "
            f"{', '.join(map(repr, answers)) if named else len(answers)}; expected the same. Pass "
            "models that end in the outputs to distil."
        )
    targets = _by_output(taught, list(answers))
    if not by_name:  # in their order, whatever the teacher calls them
        targets = dict(zip(answers, targets.values(), strict=True))
    for name, answer in answers.items():
        if not _shapes_agree(targets[name].shape[1:], answer.shape[1:]):
            of = f" on {name!r}" if name else ""
            raise ValueError(
                f"The teacher gives{of} outputs of shape {tuple(targets[name].shape)}, the student "
                f"of shape {tuple(answer.shape)}; expected equal shapes. Give both the same "
                "classes or targets."
            )
    return targets


def _endings(model: keras.Model, names: Sequence[str]) -> dict[str, str | None]:
    """The final activation of each output, where it is known, by name and in Keras' order."""
    return dict.fromkeys(names) | dict(zip(names, endings_of(model), strict=False))


def _in_order(answers: Any, names: Sequence[str]) -> list[str]:
    """Names of outputs in the order in which Keras flattens them: those of a dict sorted."""
    nested = isinstance(answers, Mapping)
    return list(keras.tree.flatten({name: name for name in names})) if nested else list(names)


def _logits(values: Any, ending: str | None) -> Any:
    """Logits whose softmax or sigmoid is the output given."""
    if ending not in PROBABILITIES:
        return values
    tiny = keras.backend.epsilon()
    shares = keras.ops.clip(_float32(values), tiny, 1.0 - tiny if ending == "sigmoid" else 1.0)
    logs = keras.ops.log(shares)
    return logs if ending == "softmax" else logs - keras.ops.log(1.0 - shares)


def _check_arguments(
    losses: Sequence[Any], weights: Sequence[float], student_loss_weight: float
) -> None:
    if not 0 <= student_loss_weight <= 1:
        raise ValueError(
            f"student_loss_weight is {student_loss_weight!r}; expected a number from 0 (teacher "
            "only) to 1 (labels only)."
        )
    if not losses:
        raise ValueError(
            "distillation_losses is empty; expected a loss, for example SoftTargets()."
        )
    for loss in losses:
        if not isinstance(loss, keras.losses.Loss):
            raise TypeError(
                f"distillation_losses holds {loss!r}; expected SoftTargets, Hint or another "
                "keras.losses.Loss object."
            )
    if len(weights) != len(losses) or not all(0 <= weight < math.inf for weight in weights):
        raise ValueError(
            f"distillation_loss_weights is {list(weights)}; expected {len(losses)} finite numbers, "
            "0 or more, one for each loss."
        )


def _shapes_agree(one: Sequence[int | None], other: Sequence[int | None]) -> bool:
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(None in pair or pair[0] == pair[1] for pair in pairs)


def _float32(value: Any) -> Any:
    return keras.ops.cast(value, "float32")


def _rows(values: Any) -> Any:
    """One row per example, without the mask by which Keras would weight the values."""
    return keras.ops.reshape(values, (keras.ops.shape(values)[0], -1))
