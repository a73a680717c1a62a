"""FitProbe: what an observed `fit` compiles, and what it leaves behind."""

from collections.abc import Callable
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_keras_adv as mka

X = np.random.default_rng(0).normal(size=(96, 8)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 3, 96)
Curves = Callable[[str], dict[str, dict[int, float]]]


class Traced(keras.losses.Loss):
    """Counts how often the step that it is part of was traced."""

    def __init__(self) -> None:
        super().__init__()
        self.traces = 0

    def call(self, y_true: Any, y_pred: Any) -> Any:
        self.traces += 1
        return keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)


def compiled(**arguments: Any) -> tuple[keras.Model, Traced]:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    loss = Traced()
    model.compile(keras.optimizers.SGD(0.1), loss, **arguments)
    return model, loss


def fit(model: keras.Model, *others: Any, batch_size: int = 16) -> None:
    arguments = {"batch_size": batch_size, "shuffle": False, "verbose": 0}
    model.fit(X, Y, **arguments, callbacks=[mka.MlflowLogger(), *others])


@pytest.mark.parametrize(
    "arguments", [{}, {"jit_compile": True}, {"steps_per_execution": 4}], ids=str
)
def test_a_second_fit_traces_nothing_and_is_recorded_as_the_first(
    arguments: dict[str, Any], experiment: str, curves: Curves
) -> None:
    model, loss = compiled(**arguments)
    plain, _ = compiled(**arguments)
    with mka.track("again", log_system_metrics=False) as run:
        fit(model)
        assert "train_step" not in vars(model)
        traces = loss.traces
        fit(model)
        fit(model)
    assert loss.traces == traces
    for _ in range(3):
        plain.fit(X, Y, batch_size=16, shuffle=False, verbose=0)
    for ours, theirs in zip(model.variables, plain.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    found = curves(run.run_id)
    for key in ("batch/loss", "gradient/norm", "optimizer/learning_rate"):
        assert list(found[key]) == list(range(1, 19))


def test_what_has_changed_is_traced_anew(experiment: str, curves: Curves) -> None:
    model, loss = compiled()
    with mka.track("changed", log_system_metrics=False) as run:
        fit(model)
        model.optimizer = keras.optimizers.SGD(0.2)  # has a table of its own
        fit(model)
        traces = loss.traces
        model.compile(keras.optimizers.SGD(0.3), loss)
        fit(model)
        assert loss.traces > traces
    rates = list(curves(run.run_id)["optimizer/learning_rate"].values())
    np.testing.assert_array_equal(rates, np.repeat(np.float32([0.1, 0.2, 0.3]), 6))


def test_a_new_shape_is_recorded_by_the_same_function(experiment: str, curves: Curves) -> None:
    model, loss = compiled()
    with mka.track("shapes", log_system_metrics=False) as run:
        fit(model, batch_size=16)
        traces = loss.traces
        fit(model, batch_size=32)
        assert loss.traces > traces
    found = curves(run.run_id)
    assert list(found["batch/loss"]) == list(found["gradient/norm"]) == list(range(1, 10))


def test_layers_are_observed_when_they_are_asked_for(experiment: str, curves: Curves) -> None:
    model, loss = compiled()
    with mka.track("layers", log_system_metrics=False) as run:
        fit(model)
        fit(model, mka.LayerNorms(as_metrics=True))
        traces = loss.traces
        fit(model)
        fit(model, mka.LayerNorms(as_metrics=True))
        assert loss.traces == traces
    found = curves(run.run_id)
    assert list(found["batch/loss"]) == list(range(1, 25))
    (layer,) = [key for key in found if key.startswith("gradient/layer/")]
    assert list(found[layer]) == [*range(7, 13), *range(19, 25)]


def test_between_two_observed_fits_the_model_trains_unobserved(
    experiment: str, curves: Curves
) -> None:
    model, _ = compiled()
    with mka.track("between", log_system_metrics=False) as run:
        fit(model)
        model.fit(X, Y, batch_size=16, verbose=0)
        fit(model)
    assert list(curves(run.run_id)["batch/loss"]) == list(range(1, 13))
    assert int(model.optimizer.iterations) == 18


class Recompiles(keras.callbacks.Callback):
    """Unfreezes and compiles anew at the begin of an epoch, as Keras asks it to be done."""

    def __init__(self, epoch: int, optimizer: Any) -> None:
        super().__init__()
        self._epoch, self._optimizer = epoch, optimizer

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == self._epoch:
            self.model.compile(self._optimizer, "mse")
            self.model.make_train_function()


def regression(**arguments: Any) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.1), "mae", **arguments)
    return model


TARGETS = np.random.default_rng(2).normal(size=(96, 3)).astype(np.float32)
FIT: dict[str, Any] = {"batch_size": 16, "shuffle": False, "verbose": 0}


@pytest.mark.parametrize("logger_first", [True, False])
def test_a_recompile_in_the_middle_is_followed_from_the_first_update_on(
    logger_first: bool,
    experiment: str,
    curves: Curves,
    caplog: pytest.LogCaptureFixture,
    client: mlflow.MlflowClient,
) -> None:
    def three_fits(*loggers: Any) -> tuple[keras.Model, Any]:
        model = regression()
        model.fit(X, TARGETS, **FIT)
        callbacks = [Recompiles(1, keras.optimizers.SGD(0.5)), *loggers]
        model.fit(X, TARGETS, **FIT, epochs=3, callbacks=callbacks[:: -1 if logger_first else 1])
        model.fit(X, TARGETS, **FIT)
        return model, model.train_function

    plain, _ = three_fits()
    with mka.track("recompiled", log_system_metrics=False) as run:
        observed, function = three_fits(mka.MlflowLogger())
    for ours, theirs in zip(observed.variables, plain.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert int(observed.optimizer.iterations) == 18, "the last fit trained"
    assert not {"train_step", "compute_loss", "compile"} & set(vars(observed))
    assert function is observed.train_function
    found = curves(run.run_id)
    rates = list(found["optimizer/learning_rate"].values())
    np.testing.assert_array_equal(rates, np.repeat(np.float32([0.1, 0.5]), [6, 12]))
    assert list(found["gradient/norm"]) == list(found["batch/loss"]) == list(range(1, 19))
    assert "has another optimizer in the middle of its training" in caplog.text
    tags = client.get_run(run.run_id).data.tags
    assert tags["param.optimizer.learning_rate.changed"] == "0.5"


class Stops(keras.callbacks.Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("same_optimizer", [True, False])
def test_what_is_compiled_after_an_interruption_is_what_trains(
    same_optimizer: bool, experiment: str
) -> None:
    def thought_again(*loggers: Any) -> keras.Model:
        model = regression()
        with pytest.raises(KeyboardInterrupt):
            model.fit(X, TARGETS, **FIT, callbacks=[Stops(), *loggers])
        assert "train_step" not in vars(model)
        optimizer = model.optimizer if same_optimizer else keras.optimizers.SGD(0.5)
        model.compile(optimizer, "mse")
        model.fit(X, TARGETS, **FIT, callbacks=list(loggers))
        model.fit(X, TARGETS, **FIT)
        return model

    plain = thought_again()
    observed = thought_again(mka.MlflowLogger())
    for ours, theirs in zip(observed.variables, plain.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_train_function_of_the_users_own_without_force(experiment: str, curves: Curves) -> None:
    class Own(keras.Sequential):
        def make_train_function(self) -> Any:  # type: ignore[override]
            if self.train_function is None:
                step = tf.function(self.train_step)
                self.train_function = lambda iterator: step(next(iterator))
            return self.train_function

    def made() -> keras.Model:
        keras.utils.set_random_seed(0)
        model = Own([keras.Input((8,)), keras.layers.Dense(3)])
        model.compile("sgd", "mse")
        return model

    plain, observed = made(), made()
    plain.fit(X, TARGETS, **FIT, epochs=2)
    with mka.track("own", log_system_metrics=False) as run:
        observed.fit(X, TARGETS, **FIT, epochs=2, callbacks=[mka.MlflowLogger()])
    for ours, theirs in zip(observed.variables, plain.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    found = curves(run.run_id)
    assert list(found["gradient/norm"]) == list(found["batch/loss"]) == list(range(1, 13))


class Lookahead(keras.optimizers.Optimizer):
    """An optimizer of a user's own, around another one under its own name for it."""

    def __init__(self, inner: Any, **kwargs: Any) -> None:
        super().__init__(learning_rate=0.1, **kwargs)
        self.inner_optimizer = inner

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        self.inner_optimizer.apply(grads, trainable_variables)


def test_an_attribute_named_inner_optimizer_is_no_loss_scaling(
    experiment: str, curves: Curves
) -> None:
    model = regression()
    model.compile(Lookahead(keras.optimizers.SGD(0.3)), "mse")
    with mka.track("lookahead", log_system_metrics=False) as run:
        model.fit(X, TARGETS, **FIT, callbacks=[mka.MlflowLogger()])
    found = curves(run.run_id)
    assert list(found["gradient/norm"]) == list(range(1, 7))
    assert "optimizer/loss_scale" not in found


def test_several_updates_of_one_optimizer_in_a_batch_are_said(
    experiment: str, curves: Curves, caplog: pytest.LogCaptureFixture
) -> None:
    class Twice(keras.Sequential):
        def train_step(self, data: Any) -> Any:
            super().train_step(data)
            return super().train_step(data)

    model = Twice([keras.Input((8,)), keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    with mka.track("twice", log_system_metrics=False) as run:
        model.fit(X, TARGETS, **FIT, epochs=2, callbacks=[mka.MlflowLogger()])
    assert caplog.text.count("makes more than one update a batch") == 1
    assert list(curves(run.run_id)["gradient/norm"]) == list(range(1, 13))


class Variational(keras.Model):
    """Returns values of its own from its step, and bypasses `compute_loss`."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            error = tf.reduce_mean(tf.square(y - self.dense(x)))
            penalty = 0.1 * tf.reduce_sum(tf.square(self.dense.kernel))
            loss = error + penalty
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss, "kl_loss": penalty, "per_class": tf.zeros([3]), "note": "text"}


@pytest.mark.parametrize("mode", [{}, {"jit_compile": True}, {"run_eagerly": True}], ids=str)
def test_what_a_step_of_the_users_own_returns_is_recorded_per_step(
    mode: dict[str, bool], experiment: str, curves: Curves
) -> None:
    keras.utils.set_random_seed(0)
    model = Variational()
    model.compile(keras.optimizers.SGD(0.1), **mode)
    seen: list[tuple[float, float]] = []

    class Notes(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            seen.append((float(logs["loss"]), float(logs["kl_loss"])))

    if mode.get("jit_compile"):  # no text leaves XLA
        step = model.train_step
        model.train_step = lambda data: {  # type: ignore[method-assign]
            key: value for key, value in step(data).items() if key != "note"
        }
    with mka.track("variational", log_system_metrics=False) as run:
        model.fit(X, TARGETS, **FIT, callbacks=[mka.MlflowLogger(), Notes()])
    found = curves(run.run_id)
    losses, penalties = zip(*seen, strict=True)
    np.testing.assert_array_equal(list(found["batch/loss"].values()), losses)
    np.testing.assert_array_equal(list(found["batch/kl_loss"].values()), penalties)


def sparse() -> Any:
    dense = tf.constant(np.where(X > 0, X, 0))
    return tf.data.Dataset.from_tensor_slices((tf.sparse.from_dense(dense), TARGETS)).batch(16)


def of_unknown_rank() -> Any:
    def batch(index: Any) -> Any:
        start = 16 * int(index)
        return X[start : start + 16], TARGETS[start : start + 16]

    data = tf.data.Dataset.range(6)
    return data.map(lambda each: tf.numpy_function(batch, [each], [tf.float32, tf.float32]))


@pytest.mark.quick
@pytest.mark.parametrize("data", [sparse, of_unknown_rank])
def test_batches_of_every_kind_are_counted(data: Any, experiment: str, curves: Curves) -> None:
    class Either(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(3)
            self.dense.build((None, 8))

        def call(self, x: Any) -> Any:
            if isinstance(x, tf.SparseTensor):
                return tf.sparse.sparse_dense_matmul(x, self.dense.kernel) + self.dense.bias
            return self.dense(tf.reshape(x, [-1, 8]))

        def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, **_: Any) -> Any:
            return tf.reduce_mean(tf.square(tf.reshape(y, [-1, 3]) - y_pred))

        def train_step(self, data: Any) -> Any:
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self.call(x))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {"loss": loss}

    def trained(*loggers: Any) -> keras.Model:
        keras.utils.set_random_seed(0)
        model = Either()
        model.compile(keras.optimizers.SGD(0.1))
        model.fit(data(), shuffle=False, verbose=0, callbacks=list(loggers))
        return model

    plain = trained()
    with mka.track("kinds", log_system_metrics=False) as run:
        observed = trained(mka.MlflowLogger(), mka.StallAlert("loss"))
    for ours, theirs in zip(observed.variables, plain.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    found = curves(run.run_id)
    assert list(found["gradient/norm"]) == list(found["batch/loss"]) == list(range(1, 7))
    assert found["train/examples_per_second"][6] > 0


@pytest.mark.parametrize("fit_inside", [True, False])
def test_a_fit_in_the_scope_of_a_strategy(
    fit_inside: bool, experiment: str, curves: Curves
) -> None:
    def trained(*loggers: Any) -> keras.Model:
        strategy = tf.distribute.MirroredStrategy(["cpu:0"])
        with strategy.scope():
            model = regression()
            if fit_inside:
                model.fit(X, TARGETS, **FIT, callbacks=list(loggers))
        if not fit_inside:
            model.fit(X, TARGETS, **FIT, callbacks=list(loggers))
        return model

    plain = trained()
    with mka.track("scope", log_system_metrics=False) as run:
        observed = trained(mka.MlflowLogger(), mka.LayerNorms())
    for ours, theirs in zip(observed.variables, plain.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    found = curves(run.run_id)
    assert list(found["gradient/norm"]) == list(found["batch/loss"]) == list(range(1, 7))
