"""The losses are recomputed here in NumPy, in float64, from the weights of the models."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from mlflow_keras_adv.distillation.distiller import Distiller
from mlflow_keras_adv.distillation.losses import Hint, SoftTargets

EPS = float(np.finfo(np.float32).eps)
# A loss of these nets is a chain of two dot products (6 and 8 terms), a softmax (3), a mean (12)
# and a few products: fewer than 64 float32 roundings, of numbers that are of order 1.
TOLERANCE = 64 * EPS

layers = keras.layers
X = np.random.default_rng(0).normal(size=(12, 6)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 12)
WEIGHTS = np.random.default_rng(2).uniform(0, 3, 12).astype("float32")
HINT = Hint(teacher_layer="hidden", student_layer="hidden")

keras_meets_numpy = pytest.mark.filterwarnings(  # Keras 3.15 saves through np.array(variable)
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    keras.utils.set_random_seed(0)


def net(width: int, name: str, *, normalised: bool = False, l2: float = 0.0) -> keras.Model:
    """A net that gives logits of three classes."""
    regulariser = keras.regularizers.L2(l2) if l2 else None
    return keras.Sequential(
        [
            keras.Input((6,)),
            *([layers.BatchNormalization(momentum=0.5, name="norm")] if normalised else []),
            layers.Dense(width, "tanh", name="hidden", kernel_regularizer=regulariser),
            layers.Dense(3, name="logits"),
        ],
        name=name,
    )


def crossentropy(**options: Any) -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **options)


def compiled(distiller: Distiller, learning_rate: float = 0.1, **options: Any) -> Distiller:
    optimizer = keras.optimizers.SGD(learning_rate)
    distiller.compile(optimizer, loss=crossentropy(), metrics=["accuracy"], **options)
    return distiller


def values(model: keras.Model) -> list[np.ndarray]:
    return [variable.numpy() for variable in model.variables]


def forward(model: keras.Model, x: np.ndarray = X) -> tuple[np.ndarray, np.ndarray]:
    """Features and logits of a net without normalisation, in float64."""
    kernel, bias, logits_kernel, logits_bias = (np.float64(each) for each in values(model))
    features = np.tanh(x @ kernel + bias)
    return features, features @ logits_kernel + logits_bias


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def hard_losses(student: keras.Model, x: np.ndarray = X, y: np.ndarray = Y) -> np.ndarray:
    return -log_softmax(forward(student, x)[1])[np.arange(len(y)), y]


def soft_losses(teacher: np.ndarray, student: np.ndarray, temperature: float) -> np.ndarray:
    """T² KL(teacher || student) of each example."""
    log_p, log_q = log_softmax(teacher / temperature), log_softmax(student / temperature)
    return temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)


def loss_of(distiller: Distiller, sample_weight: np.ndarray | None = None) -> float:
    return float(distiller.compute_loss(X, Y, distiller(X), sample_weight, training=False))


# The losses


@pytest.mark.parametrize("temperature", [1.0, 2.5, 10])
def test_soft_targets_are_the_softened_divergence_times_the_temperature_squared(
    temperature: float,
) -> None:
    generator = np.random.default_rng(3)
    teacher, student = generator.normal(scale=3, size=(2, 12, 5)).astype("float32")
    by_hand = soft_losses(np.float64(teacher), np.float64(student), temperature)
    swapped = soft_losses(np.float64(student), np.float64(teacher), temperature)
    loss = float(SoftTargets(temperature)(teacher, student))
    # Two log-softmaxes, an exp, a difference and a product round numbers up to |log p|, for each
    # of 5 classes; the mean over examples does not add up their errors.
    largest = max(float(abs(log_softmax(z / temperature)).max()) for z in (teacher, student))
    tolerance = temperature**2 * 5 * 5 * EPS * largest
    assert loss == pytest.approx(by_hand.mean(), abs=tolerance)
    assert abs(by_hand.mean() - swapped.mean()) > 10 * tolerance


def test_soft_targets_take_far_logits_without_overflow() -> None:
    teacher = np.array([[1e4, -1e4, 0.0]], "float32")
    student = np.array([[-1e4, 1e4, 0.0]], "float32")
    # The teacher is certain of class 0, to which the student gives log probability -2e4.
    assert float(SoftTargets(1.0)(teacher, student)) == pytest.approx(2e4, rel=4 * EPS)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_loss_mixes_labels_and_teacher_by_a_share(share: float, weighted: bool) -> None:
    student, teacher = net(4, "student"), net(8, "teacher")
    distiller = compiled(Distiller(teacher, student, SoftTargets(2.0), student_loss_weight=share))
    weights = WEIGHTS if weighted else np.ones(12)
    hard = np.sum(weights * hard_losses(student)) / 12
    soft = np.sum(weights * soft_losses(forward(teacher)[1], forward(student)[1], 2.0)) / 12
    loss = loss_of(distiller, WEIGHTS if weighted else None)
    assert loss == pytest.approx(share * hard + (1 - share) * soft, abs=TOLERANCE)


def test_hint_compares_projected_features_and_losses_have_weights() -> None:
    student, teacher = net(4, "student"), net(8, "teacher")
    losses = [SoftTargets(2.0), HINT, keras.losses.MeanSquaredError()]
    distiller = compiled(
        Distiller(
            teacher,
            student,
            losses,
            student_loss_weight=0,
            distillation_loss_weights=[0.5, 2, 0.25],
        )
    )
    (projection,) = [each for each in distiller.projections if each is not None]
    kernel, bias = (np.float64(each.numpy()) for each in projection.variables)
    (student_features, student_logits) = forward(student)
    (teacher_features, teacher_logits) = forward(teacher)
    soft = soft_losses(teacher_logits, student_logits, 2.0)
    hint = np.mean((teacher_features - (student_features @ kernel + bias)) ** 2, axis=-1)
    squares = np.mean((teacher_logits - student_logits) ** 2, axis=-1)
    by_hand = np.mean(WEIGHTS * (0.5 * soft + 2 * hint + 0.25 * squares))
    assert loss_of(distiller, WEIGHTS) == pytest.approx(by_hand, abs=4 * TOLERANCE)
    assert kernel.shape == (4, 8)
    assert any(projection.kernel is each for each in distiller.trainable_variables)
    assert not any(projection.kernel is each for each in student.variables)


def test_hint_needs_no_projection_between_equal_widths() -> None:
    student, teacher = net(8, "student"), net(8, "teacher")
    distiller = compiled(Distiller(teacher, student, HINT, student_loss_weight=0))
    by_hand = np.mean((forward(teacher)[0] - forward(student)[0]) ** 2)
    assert loss_of(distiller) == pytest.approx(by_hand, abs=TOLERANCE)
    assert len(distiller.trainable_variables) == len(student.trainable_variables)


def test_hint_on_images_projects_channels_and_weights_examples() -> None:
    def convolutional(channels: int) -> keras.Model:
        stack = [layers.Conv2D(channels, 3, name="conv"), layers.Flatten(), layers.Dense(3)]
        return keras.Sequential([keras.Input((5, 5, 1)), *stack])

    student, teacher = convolutional(2), convolutional(4)
    hint = Hint(teacher_layer="conv", student_layer="conv")
    distiller = compiled(Distiller(teacher, student, hint, student_loss_weight=0))
    images = np.random.default_rng(4).normal(size=(12, 5, 5, 1)).astype("float32")
    guided = np.float64(distiller.projections[0](student.layers[0](images)))
    squares = (np.float64(teacher.layers[0](images)) - guided) ** 2
    by_hand = np.mean(WEIGHTS * squares.mean(axis=(1, 2, 3)))
    loss = distiller.compute_loss(images, Y, distiller(images), WEIGHTS[:, None], training=False)
    assert float(loss) == pytest.approx(by_hand, abs=TOLERANCE)


def test_hint_takes_masked_sequences() -> None:
    def recurrent(units: int) -> keras.Model:
        gru = layers.GRU(units, return_sequences=True, name="gru")
        stack = [layers.Masking(), gru, layers.GlobalAveragePooling1D(), layers.Dense(3)]
        return keras.Sequential([keras.Input((4, 2)), *stack])

    sequences = np.random.default_rng(5).normal(size=(12, 4, 2)).astype("float32")
    sequences[:, 2:] = 0
    hint = Hint(teacher_layer="gru", student_layer="gru")
    student, teacher = recurrent(3), recurrent(3)
    distiller = compiled(Distiller(teacher, student, hint, student_loss_weight=0))
    features = [np.float64(m.layers[1](m.layers[0](sequences))) for m in (teacher, student)]
    by_hand = np.mean((features[0] - features[1]) ** 2)
    loss = distiller.compute_loss(sequences, Y, distiller(sequences), training=False)
    assert float(loss) == pytest.approx(by_hand, abs=TOLERANCE)


def test_student_regularisation_counts_in_full_and_teacher_regularisation_does_not() -> None:
    student, teacher = net(4, "student", l2=0.1), net(8, "teacher", l2=100.0)
    distiller = compiled(Distiller(teacher, student, SoftTargets(2.0), student_loss_weight=0.75))
    hard = hard_losses(student).mean()
    soft = soft_losses(forward(teacher)[1], forward(student)[1], 2.0).mean()
    penalty = 0.1 * np.sum(np.float64(student.variables[0].numpy()) ** 2)
    by_hand = 0.75 * hard + 0.25 * soft + penalty
    assert loss_of(distiller) == pytest.approx(by_hand, abs=TOLERANCE)


# Training


@pytest.mark.quick
def test_fit_equals_a_hand_written_tape() -> None:
    student = net(4, "student", normalised=True, l2=0.01)
    teacher = net(8, "teacher", normalised=True)
    twin = keras.models.clone_model(student)
    twin.set_weights(student.get_weights())
    distiller = compiled(
        Distiller(
            teacher,
            student,
            [SoftTargets(2.0), HINT],
            student_loss_weight=0.4,
            distillation_loss_weights=[1, 0.5],
        )
    )
    projection = [tf.Variable(each) for each in distiller.projections[1].variables]
    found = student.get_layer("hidden").kernel.numpy()

    distiller.fit(X, Y, sample_weight=WEIGHTS, batch_size=4, epochs=2, shuffle=False, verbose=0)

    features = keras.Model(twin.inputs[0], [twin.outputs[0], twin.get_layer("hidden").output])
    hints = keras.Model(teacher.inputs[0], [teacher.outputs[0], teacher.get_layer("hidden").output])
    variables = [*(each.value for each in twin.trainable_variables), *projection]
    for start in [0, 4, 8] * 2:
        rows = slice(start, start + 4)
        target, hint = hints(X[rows], training=False)
        with tf.GradientTape() as tape:
            logits, guided = features(X[rows], training=True)
            hard = tf.nn.sparse_softmax_cross_entropy_with_logits(Y[rows], logits)
            p, log_q = tf.nn.softmax(target / 2), tf.nn.log_softmax(logits / 2)
            soft = 4 * tf.reduce_sum(p * (tf.math.log(p) - log_q), axis=-1)
            guided = guided @ projection[0] + projection[1]
            distance = tf.reduce_mean((hint - guided) ** 2, axis=-1)
            losses = 0.4 * hard + 0.6 * (soft + 0.5 * distance)
            penalty = 0.01 * tf.reduce_sum(twin.get_layer("hidden").kernel ** 2)
            loss = tf.reduce_mean(WEIGHTS[rows] * losses) + penalty
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(0.1 * gradient)

    by_hand = [*values(twin), *(each.numpy() for each in projection)]
    trained = [*values(student), *(each.numpy() for each in distiller.projections[1].variables)]
    for one, other in zip(trained, by_hand, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=6 * TOLERANCE)  # six steps
    assert abs(student.get_layer("hidden").kernel.numpy() - found).max() > 1000 * TOLERANCE


def test_gradient_reaches_the_student_and_leaves_the_teacher_as_found() -> None:
    student, teacher = net(4, "student", normalised=True), net(8, "teacher", normalised=True)
    teacher.get_layer("hidden").trainable = False
    flags = [teacher.trainable, *(layer.trainable for layer in teacher.layers)]
    teacher_before, student_before = values(teacher), values(student)
    distiller = compiled(
        Distiller(teacher, student, [SoftTargets(2.0), HINT], student_loss_weight=0)
    )
    assert distiller.student is student
    with tf.GradientTape() as tape:
        loss = distiller.compute_loss(X, Y, distiller(X, training=True))
    variables = [teacher.trainable_variables, student.trainable_variables]
    to_teacher, to_student = tape.gradient(loss, variables)
    assert all(gradient is None for gradient in to_teacher)
    assert all(np.any(gradient) for gradient in to_student)

    before = distiller.evaluate(X, Y, verbose=0, return_dict=True)["distillation_loss"]
    distiller.fit(X, Y, epochs=20, verbose=0)
    after = distiller.evaluate(X, Y, verbose=0, return_dict=True)["distillation_loss"]

    assert flags == [teacher.trainable, *(layer.trainable for layer in teacher.layers)]
    assert all(map(np.array_equal, values(teacher), teacher_before))
    assert not any(map(np.array_equal, values(student), student_before))
    teachers = {id(variable) for variable in teacher.variables}
    assert not teachers & {id(variable) for variable in distiller.variables}
    assert after < before  # the student has come closer to the teacher, not the labels


def test_evaluate_and_predict_change_nothing_of_the_student() -> None:
    student, teacher = net(4, "student", normalised=True), net(8, "teacher", normalised=True)
    distiller = compiled(Distiller(teacher, student, [SoftTargets(), HINT]))
    before, mean = values(student), student.get_layer("norm").moving_mean.numpy()
    distiller.evaluate(X, Y, verbose=0)
    predicted = distiller.predict(X, verbose=0)
    assert all(map(np.array_equal, values(student), before))
    np.testing.assert_array_equal(predicted, student.predict(X, verbose=0))
    distiller.fit(X, Y, verbose=0)
    assert not np.array_equal(student.get_layer("norm").moving_mean.numpy(), mean)


def test_history_has_both_parts_of_the_loss_and_the_metrics_of_the_student() -> None:
    student, teacher = net(4, "student"), net(8, "teacher")
    distiller = compiled(
        Distiller(teacher, student, SoftTargets(2.0), student_loss_weight=0.7), 0.0
    )
    # Batches of 5, 5 and 2: an epoch's value is the mean over examples, not over batches.
    history = distiller.fit(X, Y, batch_size=5, validation_data=(X, Y), verbose=0).history
    keys = {"loss", "student_loss", "distillation_loss", "accuracy"}
    assert set(history) == keys | {f"val_{key}" for key in keys}
    hard = hard_losses(student).mean()
    soft = soft_losses(forward(teacher)[1], forward(student)[1], 2.0).mean()
    expected = {
        "loss": 0.7 * hard + 0.3 * soft,
        "student_loss": hard,
        "distillation_loss": soft,
        "accuracy": np.mean(forward(student)[1].argmax(axis=-1) == Y),
    }
    for key, value in expected.items():
        assert history[key] == pytest.approx([value], abs=TOLERANCE), key
        assert history[f"val_{key}"] == pytest.approx([value], abs=TOLERANCE), key


def test_class_weight_counts_in_both_parts() -> None:
    student, teacher = net(4, "student"), net(8, "teacher")
    distiller = compiled(Distiller(teacher, student, SoftTargets(2.0)))
    weights = np.array([0.5, 2.0, 0.0])
    logs = distiller.train_on_batch(X, Y, class_weight=dict(enumerate(weights)), return_dict=True)
    fresh_student, fresh_teacher = rebuilt()
    hard = np.mean(weights[Y] * hard_losses(fresh_student))
    soft = soft_losses(forward(fresh_teacher)[1], forward(fresh_student)[1], 2.0)
    assert logs["student_loss"] == pytest.approx(hard, abs=TOLERANCE)
    assert logs["distillation_loss"] == pytest.approx(np.mean(weights[Y] * soft), abs=TOLERANCE)


def rebuilt() -> tuple[keras.Model, keras.Model]:
    """Student and teacher with the weights that the seed gave the first ones of a test."""
    keras.utils.set_random_seed(0)
    return net(4, "student"), net(8, "teacher")


@pytest.mark.parametrize("option", [{"jit_compile": True}, {"steps_per_execution": 2}])
def test_compiled_training_equals_eager_training(option: dict[str, Any]) -> None:
    def trained(**options: Any) -> list[np.ndarray]:
        student, teacher = rebuilt()
        distiller = compiled(Distiller(teacher, student, [SoftTargets(2.0), HINT]), **options)
        distiller.fit(X, Y, batch_size=4, shuffle=False, verbose=0)
        return values(student)

    for one, other in zip(trained(**option), trained(run_eagerly=True), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=3 * TOLERANCE)  # three steps


def test_inputs_in_a_dict_come_from_a_dataset_and_a_generator() -> None:
    def two_inputs(width: int) -> keras.Model:
        inputs = {name: keras.Input((6,), name=name) for name in ("left", "right")}
        joined = layers.Concatenate()([inputs["left"], inputs["right"]])
        hidden = layers.Dense(width, "relu", name="hidden")(joined)
        return keras.Model(inputs, layers.Dense(3)(hidden))

    distiller = compiled(Distiller(two_inputs(8), two_inputs(4), [SoftTargets(), HINT]))
    batch = ({"left": X, "right": X[::-1]}, Y, WEIGHTS)
    dataset = tf.data.Dataset.from_tensor_slices(batch).batch(4)
    from_dataset = distiller.evaluate(dataset, verbose=0, return_dict=True)
    generator = (each for each in [batch])
    from_generator = distiller.evaluate(generator, steps=1, verbose=0, return_dict=True)
    assert from_dataset == pytest.approx(from_generator, abs=4 * TOLERANCE)
    distiller.fit(dataset, shuffle=False, verbose=0)


def test_subclassed_models_are_distilled_by_their_logits() -> None:
    class Subclassed(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, inputs: Any) -> Any:  # without a training argument
            return self.dense(inputs)

    student, teacher = Subclassed(), Subclassed()
    teacher(X)
    distiller = compiled(Distiller(teacher, student, SoftTargets()))
    assert np.isfinite(distiller.fit(X, Y, verbose=0).history["loss"]).all()
    with pytest.raises(ValueError, match=r"has no graph of layers.*needs a Functional model"):
        Distiller(teacher, student, Hint(teacher_layer="dense", student_layer="dense"))


def test_methods_wrapped_on_the_instance_are_called_each_step() -> None:
    distiller = compiled(
        Distiller(net(8, "teacher"), net(4, "student"), SoftTargets()), run_eagerly=True
    )
    calls: list[str] = []

    def watched(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return original(*args, **kwargs)

        return wrapper

    distiller.evaluate(X, Y, verbose=0)  # builds the loss, which calls compute_loss once more
    for owner, name in [
        (distiller, "train_step"),
        (distiller, "compute_loss"),
        (distiller.optimizer, "apply"),
    ]:
        setattr(owner, name, watched(name, getattr(owner, name)))
    distiller.make_train_function(force=True)
    distiller.fit(X, Y, batch_size=6, verbose=0)
    assert calls == ["train_step", "compute_loss", "apply"] * 2


# Mixed precision


@pytest.fixture
def mixed_float16() -> Iterator[None]:
    found = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy(found)


def test_a_mixed_precision_student_is_trained_with_loss_scaling(mixed_float16: None) -> None:
    student = net(4, "student")
    student.get_layer("hidden").activity_regularizer = keras.regularizers.L2(0.01)  # a float16 loss
    keras.config.set_dtype_policy("float32")
    distiller = compiled(Distiller(net(8, "teacher"), student, [SoftTargets(2.0), HINT]))
    assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
    assert distiller(X).dtype == "float16"
    loss = distiller.compute_loss(X, Y, distiller(X), training=False)
    assert loss.dtype == "float32"
    before = values(student)
    history = distiller.fit(X, Y, batch_size=4, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert not any(map(np.array_equal, values(student), before))


def test_inputs_reach_a_mixed_precision_student_as_they_are(mixed_float16: None) -> None:
    stack = [layers.Rescaling(1e-6, dtype="float32"), layers.Dense(3)]
    student = keras.Sequential([keras.Input((6,)), *stack])
    distiller = Distiller(net(8, "teacher"), student, SoftTargets())
    far = X * 1e6  # float16 ends at 65504
    np.testing.assert_array_equal(distiller(far), student(far))
    assert np.isfinite(distiller(far)).all()


def test_a_mixed_precision_teacher_leaves_a_float32_student_alone(mixed_float16: None) -> None:
    teacher = net(8, "teacher")
    keras.config.set_dtype_policy("float32")
    student = net(4, "student")
    distiller = compiled(Distiller(teacher, student, SoftTargets(2.0), student_loss_weight=0))
    assert not isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
    logits = np.float64(teacher(X).numpy())  # float16
    by_hand = soft_losses(logits, forward(student)[1], 2.0).mean()
    assert loss_of(distiller) == pytest.approx(by_hand, abs=TOLERANCE)


# Saving


@keras_meets_numpy
def test_saving_and_checkpoints_hold_the_student_alone(tmp_path: Path) -> None:
    student, teacher = net(4, "student", normalised=True), net(8, "teacher")
    distiller = compiled(Distiller(teacher, student, [SoftTargets(), HINT]))
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", monitor="loss")
    distiller.fit(X, Y, callbacks=[checkpoint], verbose=0)
    distiller.save(tmp_path / "saved.keras")
    for file in ("best.keras", "saved.keras"):
        loaded = keras.models.load_model(tmp_path / file)
        assert (loaded.name, loaded.count_params()) == ("student", student.count_params())
        np.testing.assert_array_equal(loaded.predict(X, verbose=0), student.predict(X, verbose=0))


@keras_meets_numpy
def test_saved_weights_resume_a_distillation(tmp_path: Path) -> None:
    def momentum(distiller: Distiller) -> Distiller:
        distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss=crossentropy())
        return distiller

    teacher = net(8, "teacher")
    first = momentum(Distiller(teacher, net(4, "student"), [SoftTargets(), HINT]))
    first.fit(X, Y, verbose=0)
    first.save_weights(tmp_path / "state.weights.h5")
    second = momentum(Distiller(teacher, net(4, "student"), [SoftTargets(), HINT]))
    second.optimizer.build(second.trainable_variables)
    second.load_weights(tmp_path / "state.weights.h5")
    for distiller in (first, second):
        distiller.fit(X, Y, verbose=0)
    assert all(map(np.array_equal, values(first), values(second)))


def test_a_distiller_is_not_cloned() -> None:
    distiller = Distiller(net(8, "teacher"), net(4, "student"), SoftTargets())
    with pytest.raises(NotImplementedError, match=r"Do so with `distiller\.student`"):
        keras.models.clone_model(distiller)


# Refusals


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf")])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match=rf"temperature is {temperature}; expected a finite"):
        SoftTargets(temperature)


@pytest.mark.parametrize("share", [-0.1, 2, float("nan")])
def test_the_share_of_the_labels_must_lie_between_0_and_1(share: float) -> None:
    with pytest.raises(ValueError, match=rf"loss_weight is {share}; expected a number from 0"):
        Distiller(net(8, "teacher"), net(4, "student"), SoftTargets(), student_loss_weight=share)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [1.0, float("nan")]])
def test_distillation_weights_must_fit_the_losses(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="expected 2 finite numbers"):
        Distiller(
            net(8, "teacher"),
            net(4, "student"),
            [SoftTargets(), HINT],
            distillation_loss_weights=weights,
        )


def softmax_ends() -> dict[str, Callable[[keras.KerasTensor], keras.KerasTensor]]:
    return {
        "activation": layers.Dense(3, "softmax"),
        "layer": layers.Softmax(),
        "sigmoid": layers.Activation("sigmoid", dtype="float32"),
        "operation": keras.ops.softmax,
        "nested": keras.Sequential([keras.Input((3,)), layers.Dense(3, "softmax")]),
    }


@pytest.mark.parametrize("kind", [kind for kind in softmax_ends() if kind != "sigmoid"])
@pytest.mark.parametrize("role", ["student", "teacher", "both"])
def test_probabilities_are_softened_as_the_logits_that_they_come_from(kind: str, role: str) -> None:
    student, teacher = net(4, "student"), net(8, "teacher")
    by_hand = soft_losses(forward(teacher)[1], forward(student)[1], 2.0).mean()
    ended = {
        name: keras.Model(model.inputs[0], softmax_ends()[kind](model.outputs[0]))
        if role in (name, "both")
        else model
        for name, model in (("student", student), ("teacher", teacher))
    }
    logits, known = {}, softmax_ends()[kind]
    if isinstance(known, layers.Dense | keras.Sequential):  # they have a kernel of their own
        for name, model in ended.items():
            inner = model.layers[-1]
            inner = inner.layers[-1] if isinstance(inner, keras.Sequential) else inner
            values = forward(student if name == "student" else teacher)[1]
            if role in (name, "both"):
                values = values @ np.float64(inner.kernel) + np.float64(inner.bias)
            logits[name] = values
        by_hand = soft_losses(logits["teacher"], logits["student"], 2.0).mean()
    distiller = Distiller(
        ended["teacher"], ended["student"], SoftTargets(2.0), student_loss_weight=0
    )
    from_logits = role == "teacher"
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    distiller.compile(keras.optimizers.SGD(0.1), loss)
    # A probability is rounded before its logarithm is taken.
    assert loss_of(distiller) == pytest.approx(by_hand, rel=16 * TOLERANCE)
    if role != "teacher":
        distiller.compile("sgd", crossentropy())
        with pytest.raises(ValueError, match="ends in a softmax, so it gives probabilities"):
            loss_of(distiller)


def test_log_probabilities_are_logits_too() -> None:
    inputs = keras.Input((6,))
    logs = keras.Model(inputs, keras.ops.log(layers.Dense(3, "softmax")(inputs)))
    Distiller(logs, net(4, "student"), SoftTargets())


@pytest.mark.parametrize(
    "loss",
    [
        "sparse_categorical_crossentropy",
        "CategoricalCrossentropy",
        keras.losses.sparse_categorical_crossentropy,
        keras.losses.SparseCategoricalCrossentropy(),
        keras.losses.BinaryCrossentropy(),
        None,
    ],
)
def test_a_student_loss_on_probabilities_is_refused_before_the_first_step(loss: Any) -> None:
    student = net(4, "student")
    before = values(student)
    distiller = Distiller(net(8, "teacher"), student, SoftTargets())
    distiller.compile("sgd", loss=loss)
    with pytest.raises(ValueError, match=r"SparseCategoricalCrossentropy\(from_logits=True\)"):
        distiller.fit(X, Y, verbose=0)
    assert all(map(np.array_equal, values(student), before))


def test_models_that_do_not_fit_together_are_refused() -> None:
    teacher = net(8, "teacher")
    with pytest.raises(TypeError, match=r"The student is a <class 'str'>; expected a keras\.Model"):
        Distiller(teacher, "student", SoftTargets())
    with pytest.raises(TypeError, match="distillation_losses holds 'kl'"):
        Distiller(teacher, net(4, "student"), ["kl"])
    with pytest.raises(ValueError, match="distillation_losses is empty"):
        Distiller(teacher, net(4, "student"), [])
    with pytest.raises(ValueError, match=r"has no weights; .*Distiller\(teacher, student"):
        Distiller(keras.Sequential([layers.Dense(3)]), net(4, "student"), SoftTargets())
    mixed_up = Hint(teacher_layer="only_here", student_layer="hidden")
    with pytest.raises(
        ValueError, match=r"teacher .* no layer 'only_here'.*has 'hidden', 'logits'"
    ):
        Distiller(teacher, net(4, "student"), mixed_up)
    with pytest.raises(ValueError, match="would train weights of the teacher: teacher/hidden"):
        Distiller(teacher, teacher, SoftTargets())
    inputs = keras.Input((6,))
    wide = layers.RepeatVector(5, name="wide")(layers.Dense(8)(inputs))
    sequence = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(wide)))
    hint = Hint(teacher_layer="wide", student_layer="hidden")
    with pytest.raises(ValueError, match=r"\(None, 4\).*\(None, 5, 8\).*equal resolution"):
        Distiller(sequence, net(4, "student"), hint)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda x: layers.Dense(1)(x), "expected equal shapes"),
        (lambda x: [layers.Dense(3)(x), layers.Dense(3)(x)], "outputs are 2, the student's 1"),
    ],
)
def test_outputs_that_cannot_be_compared_are_refused(
    outputs: Callable[[keras.KerasTensor], Any], message: str
) -> None:
    inputs = keras.Input((6,))
    distiller = compiled(
        Distiller(keras.Model(inputs, outputs(inputs)), net(4, "student"), SoftTargets())
    )
    with pytest.raises(ValueError, match=message):
        distiller.fit(X, Y, verbose=0)


# Numbers, labels and several outputs


def dense(*units: int, activation: str | None = None) -> keras.Model:
    inputs = keras.Input((6,))
    return keras.Model(inputs, layers.Dense(*units, activation=activation)(inputs))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def yes_no_losses(teacher: np.ndarray, student: np.ndarray, temperature: float) -> np.ndarray:
    """T² times the divergence of Bernoulli distributions, of each number."""
    p, q = sigmoid(teacher / temperature), sigmoid(student / temperature)
    return temperature**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))


def answers(model: keras.Model) -> Any:
    return keras.tree.map_structure(np.float64, model.predict(X, verbose=0))


@pytest.mark.parametrize("bounded", [False, True])
def test_a_regressor_learns_the_numbers_of_its_teacher(bounded: bool) -> None:
    student, teacher = dense(2, activation="sigmoid" if bounded else None), dense(2)
    true = np.random.default_rng(4).normal(size=(12, 2)).astype("float32")
    distiller = Distiller(
        teacher, student, keras.losses.MeanSquaredError(), student_loss_weight=0.3
    )
    distiller.compile(keras.optimizers.Adam(0.05), "mae", metrics=["mse"])
    taught = np.mean((answers(teacher) - answers(student)) ** 2, axis=-1)
    labelled = np.mean(np.abs(answers(student) - true), axis=-1)
    found = distiller.evaluate(X, true, sample_weight=WEIGHTS, verbose=0, return_dict=True)
    assert found["distillation_loss"] == pytest.approx(np.mean(WEIGHTS * taught), abs=TOLERANCE)
    assert found["student_loss"] == pytest.approx(np.mean(WEIGHTS * labelled), abs=TOLERANCE)
    assert found["mse"] == pytest.approx(np.mean((answers(student) - true) ** 2), abs=TOLERANCE)
    history = distiller.fit(X, true, epochs=20, verbose=0).history
    assert history["distillation_loss"][-1] < history["distillation_loss"][0]


@pytest.mark.parametrize("ending", [None, "sigmoid"])
@pytest.mark.parametrize("labels", [1, 4])
def test_labels_that_are_each_for_itself_are_softened_each(labels: int, ending: str | None) -> None:
    student, teacher = dense(labels, activation=ending), dense(labels)
    logits = [answers(teacher), answers(student)]
    if ending:
        logits[1] = np.log(logits[1] / (1 - logits[1]))
    by_hand = yes_no_losses(*logits, 3.0).mean(axis=-1)
    distiller = Distiller(
        teacher, student, SoftTargets(3.0, each=labels > 1), student_loss_weight=0
    )
    loss = keras.losses.BinaryCrossentropy(from_logits=ending is None)
    distiller.compile("sgd", loss)
    true = np.random.default_rng(5).integers(0, 2, (12, labels)).astype("float32")
    value = distiller.compute_loss(X, true, distiller(X), WEIGHTS, training=False)
    assert float(value) == pytest.approx(np.mean(WEIGHTS * by_hand), rel=1e-5)
    if labels > 1:
        wrong = Distiller(teacher, student, SoftTargets(3.0), student_loss_weight=0)
        wrong.compile("sgd", loss)
        with pytest.raises(ValueError, match=r"each for itself\. Use SoftTargets\(each=True\)"):
            wrong.compute_loss(X, true, wrong(X), training=False)


def test_what_means_different_things_is_refused_in_a_sentence() -> None:
    def refused(student: keras.Model, teacher: keras.Model, loss: Any, said: str) -> None:
        distiller = Distiller(teacher, student, loss)
        logits = student.layers[-1].activation is keras.activations.linear
        distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=logits))
        with pytest.raises(ValueError, match=said):
            loss_of(distiller)

    plain, shares = dense(3), dense(3, activation="softmax")
    squares = keras.losses.MeanSquaredError()
    refused(plain, shares, squares, "compare the teacher's softmax with the student's linear")
    refused(shares, plain, squares, "compare the teacher's linear with the student's softmax")
    divergence = keras.losses.KLDivergence()
    refused(
        plain, dense(3), divergence, "the teacher's answers for probabilities, and it gives log"
    )
    refused(plain, shares, divergence, "expects probabilities of the student, which ends in linear")
    refused(shares, shares_of(3), SoftTargets(each=True), r"classes of which one is. Use SoftTarge")
    # Both give probabilities: what Keras itself says of them.
    same = Distiller(shares_of(3), shares, divergence, student_loss_weight=0)
    same.compile("sgd", "sparse_categorical_crossentropy")
    p, q = answers(same._teacher.model), answers(shares)
    expected = np.mean((p * np.log(p / q)).sum(axis=-1))
    assert loss_of(same) == pytest.approx(expected, rel=1e-5)


def shares_of(classes: int) -> keras.Model:
    return dense(classes, activation="softmax")


def two_heads(width: int, kind: str) -> keras.Model:
    """A number and three classes: outputs in a dict or in a list."""
    inputs = keras.Input((6,))
    hidden = layers.Dense(width, "tanh", name="hidden")(inputs)
    heads = {"price": layers.Dense(1, name="price")(hidden)}
    heads["kind"] = layers.Dense(3, name="kind", activation="softmax")(hidden)
    return keras.Model(inputs, heads if kind == "dict" else list(heads.values()))


@pytest.mark.parametrize("kind", ["dict", "list"])
def test_several_outputs_are_distilled_each_by_its_losses(kind: str) -> None:
    student, teacher = two_heads(4, kind), two_heads(8, kind)
    losses = {"price": keras.losses.MeanSquaredError(), "kind": SoftTargets(2.0)}
    distiller = Distiller(
        teacher,
        student,
        [HINT, losses],
        student_loss_weight=0.6,
        distillation_loss_weights=[0.5, {"price": 2.0, "kind": 0.25}],
    )
    by_output: Any = {"price": "mse", "kind": "sparse_categorical_crossentropy"}
    true: Any = {"price": X[:, :1], "kind": Y}
    metrics: Any = {"price": ["mae"], "kind": ["accuracy"]}
    if kind == "list":
        by_output, true, metrics = (list(each.values()) for each in (by_output, true, metrics))
    distiller.compile(keras.optimizers.SGD(0.1), by_output, metrics=metrics)

    def named(model: keras.Model) -> dict[str, np.ndarray]:
        found = answers(model)
        return found if kind == "dict" else dict(zip(("price", "kind"), found, strict=True))

    theirs, ours = named(teacher), named(student)
    squares = np.mean((theirs["price"] - ours["price"]) ** 2)
    soft = soft_losses(np.log(theirs["kind"]), np.log(ours["kind"]), 2.0).mean()
    (projection,) = [each for each in distiller.projections if each is not None]
    features = [
        np.float64(keras.Model(model.inputs[0], model.get_layer("hidden").output)(X))
        for model in (teacher, student)
    ]
    guided = features[1] @ np.float64(projection.kernel) + np.float64(projection.bias)
    hint = np.mean((features[0] - guided) ** 2)
    hard = np.mean((ours["price"] - X[:, :1]) ** 2) - np.log(ours["kind"])[np.arange(12), Y].mean()
    taught = 0.5 * hint + 2 * squares + 0.25 * soft
    found = distiller.evaluate(X, true, verbose=0, return_dict=True)
    assert found["distillation_loss"] == pytest.approx(taught, rel=1e-5)
    assert found["student_loss"] == pytest.approx(hard, rel=1e-5)
    assert found["loss"] == pytest.approx(0.6 * hard + 0.4 * taught, rel=1e-5)
    assert {"price_mae", "kind_accuracy"} <= found.keys()

    weights = [WEIGHTS, np.ones(12, "float32")]
    weight: Any = dict(zip(("price", "kind"), weights, strict=True))
    given = weight if kind == "dict" else weights
    logs = distiller.evaluate(X, true, sample_weight=given, verbose=0, return_dict=True)
    off = ((theirs["price"] - ours["price"]) ** 2)[:, 0]
    weighted = 2 * np.mean(WEIGHTS * off) + 0.25 * soft
    assert logs["distillation_loss"] > 0
    assert logs["distillation_loss"] - 0.5 * hint_of(features[0], guided, WEIGHTS) == (
        pytest.approx(weighted, rel=1e-4)
    )
    history = distiller.fit(X, true, epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    wrong = Distiller(teacher, student, {"prize": SoftTargets()})
    wrong.compile("sgd", by_output)
    with pytest.raises(ValueError, match="a loss for 'prize'; the student's outputs are 'price'"):
        wrong.fit(X, true, verbose=0)


def hint_of(target: np.ndarray, guided: np.ndarray, weights: np.ndarray) -> float:
    """A hint's loss; of several outputs the weights of the first count."""
    return float(np.mean(weights * np.mean((target - guided) ** 2, axis=-1)))
