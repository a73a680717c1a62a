"""The same exact record under every way of training: precision, accumulation, many optimizers."""

import copy
import pickle
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_keras_adv as mka
from tests.warm import PYTHON

EPS = float(np.finfo(np.float32).eps)
ROUNDING = 100 * EPS  # some 10 to 100 float32 roundings on either way, adding up at worst

rng = np.random.default_rng(0)
X = rng.normal(size=(96, 8)).astype(np.float32)
Y = rng.integers(0, 3, 96)
BATCH = 16
BATCHES = [(X[i : i + BATCH], Y[i : i + BATCH]) for i in range(0, 96, BATCH)]
MODES = pytest.mark.parametrize(
    "mode",
    [{"jit_compile": False}, {"jit_compile": True}, {"run_eagerly": True}],
    ids=lambda mode: next(iter(f"{key}={value}" for key, value in mode.items())),
)
Curves = Callable[[str], dict[str, dict[int, float]]]


def crossentropy() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net() -> keras.Model:
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(16, activation="relu", name="hidden")
    head = keras.layers.Dense(3, dtype="float32", name="head")
    return keras.Sequential([keras.Input((8,)), hidden, head], name="net")


def gradients_of(model: Any, x: Any, y: Any, weights: list[Any] | None = None) -> list[np.ndarray]:
    """Dense float64 gradients of the mean crossentropy, in eager float32."""
    variables = model.trainable_variables if weights is None else weights
    with tf.GradientTape() as tape:
        loss = crossentropy()(y, model(x, training=True))
    return [np.asarray(tf.convert_to_tensor(g), float) for g in tape.gradient(loss, variables)]


def norm(gradients: list[np.ndarray]) -> float:
    return float(np.sqrt(sum(np.sum(np.square(g)) for g in gradients)))


def fit_recorded(model: Any, x: Any = X, y: Any = Y, **fit: Any) -> str:
    arguments = {"batch_size": BATCH, "shuffle": False, "verbose": 0} | fit
    with mka.track("fit", log_system_metrics=False) as run:
        model.fit(x, y, **arguments, callbacks=[mka.MlflowLogger()])
    return run.run_id


class Halving(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of the user's own."""

    def __call__(self, step: Any) -> Any:
        return 0.1 * 0.5 ** tf.cast(step, tf.float32)


SCHEDULES = [
    keras.optimizers.schedules.CosineDecay(0.1, 5),
    keras.optimizers.schedules.CosineDecay(0.0, 4, warmup_target=0.1, warmup_steps=2),
    keras.optimizers.schedules.CosineDecayRestarts(0.1, 2),
    keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5, staircase=True),
    keras.optimizers.schedules.InverseTimeDecay(0.1, 1, 0.5),
    keras.optimizers.schedules.PiecewiseConstantDecay([1, 3], [0.1, 0.05, 0.01]),
    keras.optimizers.schedules.PolynomialDecay(0.1, 4, 0.01, power=2.0),
    Halving(),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda each: type(each).__name__)
def test_the_rate_of_each_update_under_every_schedule(
    schedule: Any, experiment: str, curves: Curves
) -> None:
    model = net()
    model.compile(keras.optimizers.SGD(schedule), crossentropy(), steps_per_execution=3)
    found = curves(fit_recorded(model))["optimizer/learning_rate"]
    expected = [float(schedule(step)) for step in range(6)]
    # Of the largest rate: 1 + cos() loses the relative accuracy of what is near 0.
    np.testing.assert_allclose(list(found.values()), expected, rtol=0, atol=0.1 * 8 * EPS)


def test_the_rate_under_reduce_lr_on_plateau(experiment: str, curves: Curves) -> None:
    model = net()
    model.compile(keras.optimizers.SGD(0.1), crossentropy())
    plateau = keras.callbacks.ReduceLROnPlateau("loss", 0.5, patience=1, min_delta=1e9, verbose=0)
    with mka.track("plateau", log_system_metrics=False) as run:
        arguments = {"batch_size": BATCH, "epochs": 4, "verbose": 0}
        model.fit(X, Y, **arguments, callbacks=[plateau, mka.MlflowLogger()])
    found = curves(run.run_id)["optimizer/learning_rate"]
    # No improvement counts from the second epoch on; the first is the best so far.
    expected = np.repeat(np.float32([0.1, 0.1, 0.05, 0.025]), 6)
    np.testing.assert_array_equal(list(found.values()), expected)


@MODES
def test_accumulation_records_the_accumulated_update_once(
    mode: dict[str, bool], experiment: str, curves: Curves
) -> None:
    model = net()
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=4, global_clipnorm=0.1)
    model.compile(optimizer, crossentropy(), **mode)
    found = curves(fit_recorded(model))

    replayed = net()
    four = [gradients_of(replayed, x, y) for x, y in BATCHES[:4]]
    mean = [np.mean(each, axis=0) for each in zip(*four, strict=True)]
    # On the axis of batches the only update is at the fourth; the trailing two make none.
    assert found["gradient/norm"] == {4: pytest.approx(norm(mean), rel=ROUNDING)}
    assert found["gradient/norm_clipped"] == {4: pytest.approx(0.1, rel=ROUNDING)}
    assert list(found["optimizer/learning_rate"]) == [4]
    assert list(found["batch/loss"]) == [1, 2, 3, 4, 5, 6]


@MODES
@pytest.mark.parametrize("explicit", [True, False])
def test_mixed_float16_records_unscaled_norms_the_scale_and_skipped_updates(
    mode: dict[str, bool], explicit: bool, experiment: str, curves: Curves
) -> None:
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        model = net()
        optimizer = keras.optimizers.SGD(0.1)
        if explicit:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**32)
        model.compile(optimizer, crossentropy(), **mode)
        if not explicit:
            assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        found = curves(fit_recorded(model, epochs=4))
    finally:
        keras.mixed_precision.set_dtype_policy("float32")

    scales = list(found["optimizer/loss_scale"].values())
    steps = list(range(1, 25))
    assert list(found["optimizer/loss_scale"]) == steps
    updates = list(found["gradient/norm"])
    skipped = [step for step in steps if step not in updates]
    # Halved after each overflow, and never doubled within 24 steps.
    expected = 2.0**32 if explicit else 2.0**15
    for step, scale in zip(steps, scales, strict=True):
        assert scale == expected
        expected /= 2 if step in skipped else 1
    if explicit:
        assert skipped, "float16 overflows at 65504: a scale of 2**32 must have overflowed"
        counted = {step: number for number, step in enumerate(skipped, start=1)}
        assert found["optimizer/skipped_updates"] == counted
        assert found["gradient/nonfinite"] == counted
        assert int(model.optimizer.inner_optimizer.iterations) == len(updates)
    else:
        assert not skipped
        assert "optimizer/skipped_updates" not in found
    # Unscaled: the float32 norm, to float16's 11 bits through three layers of products.
    first = norm(gradients_of(net(), *BATCHES[(updates[0] - 1) % 6]))
    assert found["gradient/norm"][updates[0]] == pytest.approx(first, rel=2**-7)


def test_mixed_bfloat16_records_as_float32_does(experiment: str, curves: Curves) -> None:
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        model = net()
        model.compile(keras.optimizers.SGD(0.1), crossentropy())
        run_id = fit_recorded(model)
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    found = curves(run_id)
    first = norm(gradients_of(net(), *BATCHES[0]))
    assert found["gradient/norm"][1] == pytest.approx(first, rel=2**-5)  # bfloat16 has 8 bits
    assert list(found["gradient/norm"]) == [1, 2, 3, 4, 5, 6]
    assert "optimizer/loss_scale" not in found
    tags = mlflow.MlflowClient().get_run(run_id).data.tags
    assert tags["dtype_policy"] == "mixed_bfloat16"


def test_nonfinite_gradients_are_counted_and_infinite_norms_not_plotted(
    experiment: str, curves: Curves
) -> None:
    poisoned = X.copy()
    poisoned[20] = np.nan
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.1), crossentropy())
    found = curves(fit_recorded(model, poisoned))
    assert np.isnan(found["gradient/norm"][2])
    assert found["gradient/nonfinite"] == {
        2: 1,
        3: 2,
        4: 3,
        5: 4,
        6: 5,
    }  # NaN weights from there on

    huge = X * np.float32(1e30)
    model = net()
    model.compile(keras.optimizers.SGD(0.0), crossentropy())
    found = curves(fit_recorded(model, huge))
    assert all(np.isfinite(v) for v in found.get("gradient/norm", {}).values())
    assert len(found["gradient/nonfinite"]) == 6


@MODES
def test_embedding_gradients_have_the_norm_of_the_dense_gradient(
    mode: dict[str, bool], experiment: str, curves: Curves
) -> None:
    tokens = rng.integers(0, 10, (96, 5))

    def embedding_net() -> keras.Model:
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Embedding(10, 4), keras.layers.Flatten(), keras.layers.Dense(3)]
        return keras.Sequential([keras.Input((5,), dtype="int32"), *layers])

    model = embedding_net()
    model.compile(keras.optimizers.SGD(0.1), crossentropy(), **mode)
    found = curves(fit_recorded(model, tokens))
    replayed = embedding_net()
    for step, start in enumerate(range(0, 96, BATCH), start=1):
        batch = tokens[start : start + BATCH], Y[start : start + BATCH]
        gradients = gradients_of(replayed, *batch)
        assert found["gradient/norm"][step] == pytest.approx(norm(gradients), rel=ROUNDING)
        for variable, gradient in zip(replayed.trainable_variables, gradients, strict=True):
            variable.assign_sub(0.1 * gradient)


def test_frozen_layers_and_layers_without_gradient(experiment: str, curves: Curves) -> None:
    class Unused(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            self.weight = self.add_weight(shape=(3,), name="unused")

        def call(self, inputs: Any) -> Any:
            return inputs

    def partly_frozen() -> keras.Model:
        base = net()
        base.layers[0].trainable = False
        return keras.Sequential([keras.Input((8,)), base, Unused()])

    model = partly_frozen()
    model.compile(keras.optimizers.SGD(0.1), crossentropy())
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        found = curves(fit_recorded(model))
    head = partly_frozen()
    expected = norm(gradients_of(head, *BATCHES[0], head.trainable_variables[:2]))
    assert found["gradient/norm"][1] == pytest.approx(expected, rel=ROUNDING)


@MODES
def test_the_children_of_a_multi_optimizer_have_their_own_curves(
    mode: dict[str, bool], experiment: str, curves: Curves, client: mlflow.MlflowClient
) -> None:
    model = net()
    optimizers = keras.optimizers.OptimizerMap(
        keras.optimizers.SGD(0.1), {"net/hidden/.*": keras.optimizers.Adam(0.01)}
    )
    model.compile(keras.optimizers.MultiOptimizer(optimizers), crossentropy(), **mode)
    run_id = fit_recorded(model)
    found = curves(run_id)
    replayed = net()
    hidden, head = replayed.trainable_variables[:2], replayed.trainable_variables[2:]
    for child, variables, rate in [("child_0", hidden, 0.01), ("child_1", head, 0.1)]:
        first = norm(gradients_of(replayed, *BATCHES[0], variables))
        assert found[f"gradient/{child}/norm"][1] == pytest.approx(first, rel=ROUNDING)
        assert set(found[f"optimizer/{child}/learning_rate"].values()) == {np.float32(rate)}
        assert len(found[f"gradient/{child}/norm"]) == 6
    assert "gradient/norm" not in found
    params = client.get_run(run_id).data.params
    assert params["optimizer.child_0.class"] == "Adam"
    assert params["optimizer.child_1.class"] == "SGD"


class Gan(keras.Model):
    """Two models, two optimizers, alternating steps; what `compile` was given is never used."""

    def __init__(self) -> None:
        super().__init__()
        keras.utils.set_random_seed(0)
        dense = keras.layers.Dense
        self.generator = keras.Sequential([keras.Input((4,)), dense(8)])
        self.critic = keras.Sequential([keras.Input((8,)), dense(8, "relu"), dense(1)])

    def compile(self, g_optimizer: Any, d_optimizer: Any, **arguments: Any) -> None:
        super().compile(**arguments)
        self.g_optimizer, self.d_optimizer = g_optimizer, d_optimizer

    def train_step(self, data: Any) -> dict[str, Any]:
        noise = tf.ones([tf.shape(data)[0], 4])
        with tf.GradientTape() as tape:
            d_loss = tf.reduce_mean(self.critic(self.generator(noise)) - self.critic(data))
        variables = self.critic.trainable_variables
        self.d_optimizer.apply_gradients(
            zip(tape.gradient(d_loss, variables), variables, strict=True)
        )
        with tf.GradientTape() as tape:
            g_loss = -tf.reduce_mean(self.critic(self.generator(noise)))
        variables = self.generator.trainable_variables
        self.g_optimizer.apply_gradients(
            zip(tape.gradient(g_loss, variables), variables, strict=True)
        )
        return {"d_loss": d_loss, "g_loss": g_loss}


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_gan_records_both_optimizers_under_their_own_names(
    jit_compile: bool, experiment: str, curves: Curves, client: mlflow.MlflowClient
) -> None:
    model = Gan()
    model.compile(keras.optimizers.SGD(0.02), keras.optimizers.SGD(0.05), jit_compile=jit_compile)
    with mka.track("gan", log_system_metrics=False) as run:
        model.fit(X, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[mka.MlflowLogger()])
    found = curves(run.run_id)

    replayed = Gan()
    replayed.compile(keras.optimizers.SGD(0.02), keras.optimizers.SGD(0.05))
    noise = tf.ones([BATCH, 4])
    for step, (x, _) in enumerate(BATCHES, start=1):
        for name, net_, rate in [
            ("d_optimizer", replayed.critic, 0.05),
            ("g_optimizer", replayed.generator, 0.02),
        ]:
            with tf.GradientTape() as tape:
                fake = tf.reduce_mean(replayed.critic(replayed.generator(noise)))
                loss = fake - tf.reduce_mean(replayed.critic(x)) if rate == 0.05 else -fake
            gradients = tape.gradient(loss, net_.trainable_variables)
            expected = norm([np.asarray(g, float) for g in gradients])
            # d_loss is the difference of nearly equal means: its error is that of the terms.
            assert found[f"gradient/{name}/norm"][step] == pytest.approx(expected, rel=1e-4)
            assert found[f"optimizer/{name}/learning_rate"][step] == np.float32(rate)
            for variable, gradient in zip(net_.trainable_variables, gradients, strict=True):
                variable.assign_sub(rate * gradient)
    assert not {key for key in found if "/optimizer/" in key}, "compile's default took no step"
    params = client.get_run(run.run_id).data.params
    assert params["optimizer.d_optimizer.learning_rate"] == "0.05"
    assert not {key for key in params if "rmsprop" in params[key].lower()}


def test_two_models_trained_in_turn_share_the_axis_of_their_run(
    experiment: str, curves: Curves
) -> None:
    first, second = net(), net()
    for model in (first, second):
        model.compile(keras.optimizers.SGD(0.1), crossentropy())
    with mka.track("in turn", log_system_metrics=False) as run:
        for model in (first, second, first):
            model.fit(X, Y, batch_size=BATCH, verbose=0, callbacks=[mka.MlflowLogger()])
    assert list(curves(run.run_id)["gradient/norm"]) == list(range(1, 19))


def test_a_custom_train_step_and_a_subclassed_model(experiment: str, curves: Curves) -> None:
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            keras.utils.set_random_seed(0)
            self.dense = keras.layers.Dense(3)

        def call(self, inputs: Any) -> Any:
            return self.dense(inputs)

        def train_step(self, data: Any) -> dict[str, Any]:
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(y=y, y_pred=self(x, training=True))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(gradients, self.trainable_variables)
            return {"loss": loss}

    model = Own()
    model.compile(keras.optimizers.SGD(0.1), crossentropy())
    found = curves(fit_recorded(model))
    replayed = Own()
    replayed(X[:1])
    first = norm(gradients_of(replayed, *BATCHES[0]))
    assert found["gradient/norm"][1] == pytest.approx(first, rel=ROUNDING)
    loss = float(crossentropy()(BATCHES[0][1], replayed(BATCHES[0][0])))
    assert found["batch/loss"][1] == pytest.approx(loss, rel=ROUNDING)


class SavesMeanwhile(keras.callbacks.Callback):
    """Does to a model under observation everything that a user might."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.loaded: Any = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        model: Any = self.model
        model.save(self.folder / "model.keras")
        self.loaded = keras.saving.load_model(self.folder / "model.keras")
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), self.loaded):
            assert not {"train_step", "compute_loss"} & set(vars(other))
            assert not {"apply", "_clip_gradients"} & set(vars(other.optimizer))
        with warnings.catch_warnings():
            # With or without us Keras copies a bare optimizer without its state, and says so.
            warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
            pickled = pickle.dumps(model.optimizer)
            for other in (copy.deepcopy(model.optimizer), pickle.loads(pickled)):
                assert not {"apply", "_clip_gradients"} & set(vars(other))
        keras.models.clone_model(model)
        model.export(self.folder / "exported", verbose=False)
        tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(self.folder / "check")


@pytest.mark.slow
def test_saving_and_copying_during_observation(
    experiment: str, curves: Curves, tmp_path: Path
) -> None:
    def trained(callbacks: list[Any], epochs: int) -> keras.Model:
        model = net()
        model.compile(keras.optimizers.Adam(0.01), crossentropy())
        model.fit(
            X, Y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks
        )
        return model

    saves = SavesMeanwhile(tmp_path)
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", monitor="loss")
    with mka.track("saves", log_system_metrics=False):
        observed = trained([mka.MlflowLogger(), saves, checkpoint], 2)
    plain = trained([], 2)
    for ours, theirs in zip(observed.variables, plain.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for loaded in (saves.loaded, keras.saving.load_model(tmp_path / "best.keras")):
        assert len(plain.optimizer.variables) == 2 + 2 * 4  # iterations, rate, moments
        for ours, theirs in zip(loaded.optimizer.variables, plain.optimizer.variables, strict=True):
            np.testing.assert_array_equal(ours, theirs)


DISTRIBUTED = """
import keras, numpy as np, tensorflow as tf
import mlflow_keras_adv as mka

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(96, 8)).astype("float32"), rng.integers(0, 3, 96)
keras.mixed_precision.set_dtype_policy(POLICY)
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(16, activation="relu", name="hidden")
    head = keras.layers.Dense(3, dtype="float32", name="head")
    model = keras.Sequential([keras.Input((8,)), hidden, head])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
with mka.track("mirrored", log_system_metrics=False) as run:
    model.fit(x, y, batch_size=16, shuffle=False, verbose=0, callbacks=[mka.MlflowLogger()])
print("run", run.run_id)
"""


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_mirrored_strategy_records_the_reduced_gradient_once(
    policy: str, experiment: str, curves: Curves
) -> None:
    program = DISTRIBUTED.replace("POLICY", repr(policy))
    command = [PYTHON, "-c", program]
    root = Path(__file__).parents[2]
    shown = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    found = curves(shown.stdout.split()[-1])
    replayed = net()
    tolerance = ROUNDING if policy == "float32" else 2**-7
    for step, (x, y) in enumerate(BATCHES, start=1):
        gradients = gradients_of(replayed, x, y)
        assert found["gradient/norm"][step] == pytest.approx(norm(gradients), rel=tolerance)
        loss = float(crossentropy()(y, replayed(x)))
        assert found["batch/loss"][step] == pytest.approx(loss, rel=tolerance)
        for variable, gradient in zip(replayed.trainable_variables, gradients, strict=True):
            variable.assign_sub(0.1 * gradient)
    assert list(found["batch/loss"]) == [1, 2, 3, 4, 5, 6]
    seconds = found["train/step_ms"][6] * 6 / 1000
    assert found["train/examples_per_second"][6] * seconds == pytest.approx(96)
