"""Trainings by `fit` that reach into what an observer has its hands on."""

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import keras
import numpy as np
import scipy.sparse
import tensorflow as tf
from keras import layers, ops

from tests.differential import Watch
from tests.peers.programs.data import numbers, table
from tests.peers.programs.guides import CROSSENTROPY, CustomModel, classifier, functional


class Lookahead(keras.optimizers.Optimizer):
    """Zhang et al. 2019: slow weights that follow the fast ones of another optimizer."""

    under = "inner_optimizer"

    def __init__(self, fast: Any, every: int = 3, alpha: float = 0.5) -> None:
        super().__init__(learning_rate=float(fast.learning_rate), name="lookahead")
        setattr(self, self.under, fast)
        self.every, self.alpha = every, alpha

    @property
    def fast(self) -> Any:
        return getattr(self, self.under)

    def build(self, variables: Any) -> None:
        super().build(variables)
        self.fast.build(variables)
        self.slow = [
            self.add_variable_from_reference(each, name="slow", initializer="zeros")
            for each in variables
        ]
        for slow, variable in zip(self.slow, variables, strict=True):
            slow.assign(variable)

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        variables = list(trainable_variables or self._trainable_variables)
        if not self.built:
            with keras.name_scope(self.name):
                self.build(variables)
        self.fast.apply(grads, variables)
        self._iterations.assign_add(1)
        synchronizes = ops.equal(self._iterations % self.every, 0)
        for slow, variable in zip(self.slow, variables, strict=True):
            new = ops.where(synchronizes, slow + self.alpha * (variable - slow), slow)
            variable.assign(ops.where(synchronizes, new, variable))
            slow.assign(new)


class LookaheadOfItsOwn(Lookahead):
    under = "_base"


def _fit(watch: Watch, optimizer: Any, **compiled: Any) -> Any:
    x, y = table()
    model = classifier()
    model.compile(optimizer, CROSSENTROPY, **compiled)
    history = model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=watch.callbacks)
    return model, history


def lookahead_with_an_inner_optimizer(watch: Watch) -> Any:
    """Not a `LossScaleOptimizer`, though an attribute is called as one of its."""
    return _fit(watch, Lookahead(keras.optimizers.SGD(0.1)))


def lookahead_under_another_name(watch: Watch) -> Any:
    return _fit(watch, LookaheadOfItsOwn(keras.optimizers.Adam(0.01, clipnorm=0.1)))


class Centralized(keras.optimizers.SGD):
    """Gradients are centred before they are applied, by an override as Keras' examples have it."""

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        centred = [
            grad - ops.mean(grad, axis=0, keepdims=True) if len(grad.shape) > 1 else grad
            for grad in grads
        ]
        super().apply(centred, trainable_variables)


def gradients_centralized_by_a_subclass(watch: Watch) -> Any:
    return _fit(watch, Centralized(0.1, momentum=0.9))


def several_optimizers_of_one_model(watch: Watch) -> Any:
    x, y = table()
    model = classifier()
    by_path = keras.optimizers.OptimizerMap(keras.optimizers.Adam(1e-3))
    by_path[model.layers[1].kernel.path] = keras.optimizers.SGD(0.1, clipnorm=0.1)
    model.compile(keras.optimizers.MultiOptimizer(by_path), CROSSENTROPY)
    history = model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=watch.callbacks)
    return model, history


class SharpnessAware(keras.Model):
    """Foret et al. 2020: a first gradient to climb by, a second one to descend by."""

    def train_step(self, data: Any) -> Any:
        x, y = data
        variables = self.trainable_variables
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        gradients = tape.gradient(loss, variables)
        scale = 0.05 / (tf.linalg.global_norm(gradients) + 1e-12)
        climbs = [scale * gradient for gradient in gradients]
        for variable, climb in zip(variables, climbs, strict=True):
            variable.assign_add(climb)
        with tf.GradientTape() as tape:
            above = self.compute_loss(y=y, y_pred=self(x, training=True))
        gradients = tape.gradient(above, variables)
        for variable, climb in zip(variables, climbs, strict=True):
            variable.assign_sub(climb)
        self.optimizer.apply(gradients, variables)
        return {"loss": loss, "sharpness": above - loss}


def sharpness_aware_minimization(watch: Watch) -> Any:
    x, y = table()
    model = functional(SharpnessAware, classifier())
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), CROSSENTROPY)
    history = model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=watch.callbacks)
    return model, history


class SharpnessAwareOptimizer(keras.optimizers.Optimizer):
    """The same as an optimizer of two steps, which are applied in one batch."""

    def __init__(self, base: Any) -> None:
        super().__init__(learning_rate=float(base.learning_rate), name="sam")
        self.base_optimizer = base

    def build(self, variables: Any) -> None:
        super().build(variables)
        self.base_optimizer.build(variables)
        self.climbs = [
            self.add_variable_from_reference(each, name="climb", initializer="zeros")
            for each in variables
        ]

    def first_step(self, gradients: Any, variables: Any) -> None:
        if not self.built:
            self.build(variables)
        scale = 0.05 / (tf.linalg.global_norm(gradients) + 1e-12)
        for climb, gradient, variable in zip(self.climbs, gradients, variables, strict=True):
            climb.assign(scale * gradient)
            variable.assign_add(climb)

    def second_step(self, gradients: Any, variables: Any) -> None:
        for climb, variable in zip(self.climbs, variables, strict=True):
            variable.assign_sub(climb)
        self.base_optimizer.apply_gradients(zip(gradients, variables, strict=True))


class TrainedInTwoSteps(keras.Model):
    def train_step(self, data: Any) -> Any:
        x, y = data
        for step in (self.optimizer.first_step, self.optimizer.second_step):
            with tf.GradientTape() as tape:
                loss = self.compute_loss(y=y, y_pred=self(x, training=True))
            step(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


def sharpness_aware_optimizer(watch: Watch) -> Any:
    x, y = table()
    model = functional(TrainedInTwoSteps, classifier())
    model.compile(SharpnessAwareOptimizer(keras.optimizers.SGD(0.1)), CROSSENTROPY)
    history = model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=watch.callbacks)
    return model, history


class AppliedBy(keras.Model):
    """Hands its gradients to the optimizer in a way that Keras' signature allows."""

    way: Callable[[Any, Any, Any], Any]

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        type(self).way(self.optimizer, gradients, self.trainable_variables)
        return {"loss": loss}


def _applied(watch: Watch, way: Callable[[Any, Any, Any], Any], optimizer: Any = None) -> Any:
    x, y = table()
    model = functional(type("Model", (AppliedBy,), {"way": staticmethod(way)}), classifier())
    model.compile(optimizer or keras.optimizers.SGD(0.1), CROSSENTROPY, jit_compile=False)
    history = model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=watch.callbacks)
    return model, history


def applies_a_generator_of_variables(watch: Watch) -> Any:
    return _applied(watch, lambda optimizer, grads, own: optimizer.apply(grads, (v for v in own)))


def applies_what_keras_refuses(watch: Watch) -> Any:
    """A generator of gradients has no length; the model trains no more than it does plain."""
    try:
        return _applied(
            watch, lambda optimizer, grads, own: optimizer.apply((g for g in grads), own)
        )
    except TypeError as error:
        return str(error)


def _itself(variable: Any) -> Any:
    return variable


def applies_maps(watch: Watch) -> Any:
    return _applied(
        watch,
        lambda optimizer, grads, own: optimizer.apply(
            [*map(tf.identity, grads)], map(_itself, own)
        ),
    )


def applies_the_columns_of_a_zip(watch: Watch) -> Any:
    return _applied(
        watch,
        lambda optimizer, grads, own: optimizer.apply(
            *zip(*zip(grads, own, strict=True), strict=True)
        ),
    )


def applies_a_zip(watch: Watch) -> Any:
    return _applied(
        watch, lambda optimizer, grads, own: optimizer.apply_gradients(zip(grads, own, strict=True))
    )


def applies_a_generator_of_pairs(watch: Watch) -> Any:
    return _applied(
        watch,
        lambda optimizer, grads, own: optimizer.apply_gradients(
            pair for pair in zip(grads, own, strict=True)
        ),
    )


def applies_by_keyword(watch: Watch) -> Any:
    return _applied(
        watch,
        lambda optimizer, grads, own: optimizer.apply(grads=grads, trainable_variables=own),
    )


def applies_by_keyword_the_other_way_round(watch: Watch) -> Any:
    return _applied(
        watch,
        lambda optimizer, grads, own: optimizer.apply(trainable_variables=own, grads=grads),
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=1.0),
    )


def applies_gradients_by_keyword(watch: Watch) -> Any:
    return _applied(
        watch,
        lambda optimizer, grads, own: optimizer.apply_gradients(
            grads_and_vars=zip(grads, own, strict=True)
        ),
    )


def applies_to_all_it_was_built_with(watch: Watch) -> Any:
    def apply(optimizer: Any, gradients: Any, variables: Any) -> None:
        if not optimizer.built:
            optimizer.build(variables)
        optimizer.apply(gradients)

    return _applied(watch, apply)


def applies_a_part_at_a_time(watch: Watch) -> Any:
    """Two updates a batch by one optimizer, each of a part of the variables."""

    def apply(optimizer: Any, gradients: Any, variables: Any) -> None:
        if not optimizer.built:
            optimizer.build(variables)
        optimizer.apply(gradients[:2], variables[:2])
        optimizer.apply(gradients[2:], variables[2:])

    return _applied(watch, apply, keras.optimizers.Adam(0.01, clipnorm=0.1))


def several_updates_a_batch(watch: Watch) -> Any:
    def apply(optimizer: Any, gradients: Any, variables: Any) -> None:
        for share in (0.5, 0.3, 0.2):
            optimizer.apply([share * gradient for gradient in gradients], variables)

    return _applied(watch, apply, keras.optimizers.Adam(0.01))


def updates_without_the_optimizers_apply(watch: Watch) -> Any:
    """No optimizer at all: the step descends by itself."""

    def apply(optimizer: Any, gradients: Any, variables: Any) -> None:
        for gradient, variable in zip(gradients, variables, strict=True):
            variable.assign_sub(0.1 * gradient)

    return _applied(watch, apply)


class MakesItsFunction(CustomModel):
    """Has its own train function, as some libraries do; Keras' signature has `force`."""

    def make_train_function(self, force: bool = False) -> Any:
        if self.train_function is not None and not force:
            return self.train_function

        @tf.function
        def function(iterator: Any) -> Any:
            return self.train_step(next(iterator))

        self.train_function = function
        return function


class MakesItsFunctionWithoutForce(CustomModel):
    def make_train_function(self) -> Any:  # type: ignore[override]
        if self.train_function is None:
            self.train_function = tf.function(lambda iterator: self.train_step(next(iterator)))
        return self.train_function


def _own_function(watch: Watch, kind: type[CustomModel]) -> Any:
    x, y = table()
    model = functional(kind, classifier())
    model.compile("adam", CROSSENTROPY, metrics=["accuracy"])
    histories = [
        model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=watch.callbacks)
        for _ in range(2)
    ]
    return model, histories


def makes_its_own_train_function(watch: Watch) -> Any:
    return _own_function(watch, MakesItsFunction)


def makes_its_own_train_function_without_force(watch: Watch) -> Any:
    return _own_function(watch, MakesItsFunctionWithoutForce)


def train_function_made_before(watch: Watch) -> Any:
    x, y = table()
    model = classifier()
    model.compile("adam", CROSSENTROPY)
    function = model.make_train_function()
    history = model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=watch.callbacks)
    after = model.train_function is function or model.train_function is None
    return model, history, after


class _Compiles(keras.callbacks.Callback):
    """Takes up another optimizer, rate and loss in the middle of a training, once."""

    def __init__(self, hook: str, at: int) -> None:
        super().__init__()
        self.at = at
        self.called = 0
        setattr(self, hook, self._compile)

    def _compile(self, *args: Any, **kwargs: Any) -> None:
        self.called += 1
        if self.called == self.at:
            self.model.layers[0].trainable = not self.model.layers[0].trainable
            self.model.compile(
                keras.optimizers.Adam(0.05), CROSSENTROPY, metrics=["accuracy"], jit_compile=False
            )
            # `fit` calls what it finds there, and finds None after `compile`.
            self.model.make_train_function()
            self.model.make_test_function()


def _compiled_in(watch: Watch, hook: str, at: int = 2) -> Any:
    x, y = table()
    model = classifier()
    model.layers[0].trainable = False
    model.compile(keras.optimizers.SGD(0.1), CROSSENTROPY, metrics=["accuracy"], jit_compile=False)
    with watch.aside():
        before = model.fit(x, y, batch_size=16, verbose=0)
    compiles = _Compiles(hook, at)
    watched = model.fit(
        x, y, batch_size=16, epochs=3, validation_data=(x, y), verbose=0,
        callbacks=[compiles, *watch.callbacks],
    )  # fmt: skip
    with watch.aside():
        after = model.fit(x, y, batch_size=16, epochs=2, verbose=0)
    return model, before, watched, after, compiles.called


def compiles_on_train_begin(watch: Watch) -> Any:
    return _compiled_in(watch, "on_train_begin", 1)


def compiles_on_epoch_begin(watch: Watch) -> Any:
    return _compiled_in(watch, "on_epoch_begin")


def compiles_on_train_batch_begin(watch: Watch) -> Any:
    return _compiled_in(watch, "on_train_batch_begin", 5)


def compiles_on_train_batch_end(watch: Watch) -> Any:
    return _compiled_in(watch, "on_train_batch_end", 5)


def compiles_on_test_begin(watch: Watch) -> Any:
    return _compiled_in(watch, "on_test_begin")


def compiles_on_test_end(watch: Watch) -> Any:
    return _compiled_in(watch, "on_test_end")


def compiles_on_epoch_end(watch: Watch) -> Any:
    return _compiled_in(watch, "on_epoch_end")


def compiles_on_train_end(watch: Watch) -> Any:
    return _compiled_in(watch, "on_train_end", 1)


def compiles_behind_the_observer(watch: Watch) -> Any:
    """The callback that compiles stands behind the one that observes."""
    x, y = table()
    model = classifier()
    model.compile(keras.optimizers.SGD(0.1), CROSSENTROPY, metrics=["accuracy"], jit_compile=False)
    watched = model.fit(
        x, y, batch_size=16, epochs=3, verbose=0,
        callbacks=[*watch.callbacks, _Compiles("on_epoch_begin", 2)],
    )  # fmt: skip
    with watch.aside():
        after = model.fit(x, y, batch_size=16, verbose=0)
    return model, watched, after


def changes_the_rate_and_the_optimizer_between_fits(watch: Watch) -> Any:
    x, y = table()
    model = classifier()
    model.compile(keras.optimizers.SGD(0.1), CROSSENTROPY)
    first = model.fit(x, y, batch_size=16, verbose=0, callbacks=watch.callbacks)
    model.optimizer.learning_rate = 0.01
    second = model.fit(x, y, batch_size=16, verbose=0, callbacks=watch.callbacks)
    model.compile(model.optimizer, CROSSENTROPY)
    third = model.fit(x, y, batch_size=16, verbose=0, callbacks=watch.callbacks)
    model.optimizer = keras.optimizers.Adam(0.01)
    model.train_function = None
    fourth = model.fit(x, y, batch_size=16, verbose=0, callbacks=watch.callbacks)
    return model, first, second, third, fourth


class _Interrupts(keras.callbacks.Callback):
    def __init__(self, at: int, error: type[BaseException]) -> None:
        super().__init__()
        self.at, self.error = at, error

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == self.at:
            raise self.error


def _interrupted(watch: Watch, error: type[BaseException]) -> Any:
    """Another loss, by the same optimizer, after a training that was broken off."""
    x, y = numbers()
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4), layers.Dense(1)])
    optimizer = keras.optimizers.SGD(0.01)
    model.compile(optimizer, "mae", jit_compile=False)
    with suppress(error):
        model.fit(
            x, y, batch_size=16, verbose=0, callbacks=[_Interrupts(1, error), *watch.callbacks]
        )
    model.compile(optimizer, "mse", jit_compile=False)
    again = model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=watch.callbacks)
    with watch.aside():
        after = model.fit(x, y, batch_size=16, verbose=0)
    return model, again, after


def interrupted_and_compiled_anew(watch: Watch) -> Any:
    return _interrupted(watch, KeyboardInterrupt)


def broken_off_and_compiled_anew(watch: Watch) -> Any:
    return _interrupted(watch, RuntimeError)


def interrupted_and_gone_on(watch: Watch) -> Any:
    x, y = table()
    model = classifier()
    model.compile("adam", CROSSENTROPY)
    interrupts = _Interrupts(1, KeyboardInterrupt)
    with suppress(KeyboardInterrupt):
        model.fit(x, y, batch_size=16, verbose=0, callbacks=[*watch.callbacks, interrupts])
    with watch.aside():
        plain = model.fit(x, y, batch_size=16, verbose=0)
    again = model.fit(x, y, batch_size=16, verbose=0, callbacks=watch.callbacks)
    return model, plain, again


def two_models_that_share_an_optimizer(watch: Watch) -> Any:
    x, y = table()
    one, other = classifier(), classifier()
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build([*one.trainable_variables, *other.trainable_variables])
    histories = []
    for model in (one, other):
        model.compile(optimizer, CROSSENTROPY)
    for _ in range(2):
        for model in (one, other):
            histories.append(model.fit(x, y, batch_size=16, verbose=0, callbacks=watch.callbacks))
    return one, other, histories


def two_threads_in_turn(watch: Watch) -> Any:
    """One model, trained by one thread and then by another."""
    x, y = table()
    model = classifier()
    model.compile("adam", CROSSENTROPY)
    histories: list[Any] = []

    def train() -> None:
        histories.append(model.fit(x, y, batch_size=16, verbose=0, callbacks=watch.callbacks))

    for _ in range(2):
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
    train()
    return model, histories


class _TrainsAnother(keras.callbacks.Callback):
    """An auxiliary model that is fitted while the other one is."""

    def __init__(self, auxiliary: Any, inner: Callable[[], Iterable[Any]]) -> None:
        super().__init__()
        self.auxiliary, self.inner = auxiliary, inner
        self.histories: list[Any] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        x, y = table()
        self.histories.append(
            self.auxiliary.fit(x, y, batch_size=24, verbose=0, callbacks=list(self.inner()))
        )


def fits_another_model_inside(watch: Watch) -> Any:
    x, y = table()
    model, auxiliary = classifier(), classifier()
    for each in (model, auxiliary):
        each.compile("adam", CROSSENTROPY)
    trains = _TrainsAnother(auxiliary, lambda: watch.callbacks)
    history = model.fit(
        x, y, batch_size=16, epochs=2, verbose=0, callbacks=[trains, *watch.callbacks]
    )
    return model, auxiliary, history, trains.histories


def trains_on_batches_before_and_after(watch: Watch) -> Any:
    x, y = table()
    model = classifier()
    model.compile("adam", CROSSENTROPY, metrics=["accuracy"])
    before = [model.train_on_batch(x[:16], y[:16]) for _ in range(2)]
    fitted = model.fit(x, y, batch_size=16, verbose=0, callbacks=watch.callbacks)
    after = [model.train_on_batch(x[16:32], y[16:32]) for _ in range(2)]
    tested = model.test_on_batch(x, y)
    again = model.fit(x, y, batch_size=16, verbose=0, callbacks=watch.callbacks)
    return model, before, fitted, after, tested, again


class _TrainsOnABatch(keras.callbacks.Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        x, y = table()
        self.last = self.model.train_on_batch(x[:8], y[:8])


def trains_on_a_batch_inside(watch: Watch) -> Any:
    x, y = table()
    model = classifier()
    model.compile("adam", CROSSENTROPY)
    callback = _TrainsOnABatch()
    history = model.fit(
        x, y, batch_size=16, epochs=2, verbose=0, callbacks=[callback, *watch.callbacks]
    )
    return model, history, callback.last


def sparse_tensors(watch: Watch) -> Any:
    x, y = table()
    sparse = tf.sparse.from_dense(np.where(x > 0, x, 0.0))
    data = tf.data.Dataset.from_tensor_slices((sparse, y)).batch(16)
    inputs = keras.Input((8,), sparse=True)
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(inputs))
    model.compile("adam", CROSSENTROPY, jit_compile=False)
    history = model.fit(data, epochs=2, verbose=0, callbacks=watch.callbacks)
    return model, history


def sparse_matrix(watch: Watch) -> Any:
    x, y = table()
    inputs = keras.Input((8,), sparse=True)
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(inputs))
    model.compile("adam", CROSSENTROPY, jit_compile=False)
    history = model.fit(
        scipy.sparse.csr_matrix(np.where(x > 0, x, 0.0)), y, batch_size=16, epochs=2, verbose=0,
        callbacks=watch.callbacks,
    )  # fmt: skip
    return model, history


def ragged_tensors(watch: Watch) -> Any:
    x = tf.ragged.constant([[1, 2, 3], [4], [5, 6], [7, 8, 9, 10]] * 8)
    y = np.arange(32) % 3
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)

    class Pooled(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = layers.Embedding(12, 4)
            self.dense = layers.Dense(3, activation="softmax")

        def call(self, tokens: Any) -> Any:
            return self.dense(ops.mean(self.embedding(tokens.to_tensor()), axis=1))

    model = Pooled()
    model.compile("adam", CROSSENTROPY, jit_compile=False)
    history = model.fit(data, epochs=2, verbose=0, callbacks=watch.callbacks)
    return model, history


def batches_of_unknown_rank(watch: Watch) -> Any:
    x, y = table()

    def doubled(x: Any, y: Any) -> Any:
        return tf.numpy_function(lambda x, y: (2 * x, y), [x, y], (tf.float32, tf.int64))

    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16).map(doubled)

    class Reshaped(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, x: Any) -> Any:
            return self.dense(tf.reshape(x, (-1, 8)))

        def compute_loss(
            self, x: Any = None, y: Any = None, y_pred: Any = None, *rest: Any, **kw: Any
        ) -> Any:
            labels = tf.reshape(y, (-1,))
            return tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=y_pred)
            )

    model = Reshaped()
    model.build((None, 8))
    model.compile("adam", jit_compile=False)
    history = model.fit(data, epochs=2, verbose=0, callbacks=watch.callbacks)
    return model, history


def mirrored_strategy(watch: Watch) -> Any:
    """TensorFlow, "Distributed training with Keras": `fit` behind the scope."""
    x, y = table()
    strategy = tf.distribute.MirroredStrategy(["/cpu:0"])
    with strategy.scope():
        model = classifier()
        model.compile("adam", CROSSENTROPY, metrics=["accuracy"], jit_compile=False)
    history = model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=watch.callbacks)
    return model, history


def mirrored_strategy_with_fit_in_its_scope(watch: Watch) -> Any:
    """TensorFlow, "Distributed training", where `fit` stands in the scope."""
    x, y = table()
    strategy = tf.distribute.MirroredStrategy(["/cpu:0"])
    with strategy.scope():
        model = classifier()
        model.compile("adam", CROSSENTROPY, metrics=["accuracy"], jit_compile=False)
        history = model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=watch.callbacks)
    return model, history


class NamedAsOurs(keras.Model):
    """Has attributes and outputs of names that an observer uses too."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = layers.Dense(4)
        self.val_arousal = layers.Dense(1)
        self.epoch = layers.Dense(1)
        self.observed = {"observed": True}
        self.recorder = None
        self.step_ms = 5

    def call(self, x: Any) -> Any:
        hidden = self.hidden(x)
        return {"val_arousal": self.val_arousal(hidden), "epoch": self.epoch(hidden)}


def names_that_an_observer_uses_too(watch: Watch) -> Any:
    x, y = numbers()
    model = NamedAsOurs()
    model.compile("adam", {"val_arousal": "mse", "epoch": "mae"})
    history = model.fit(x, {"val_arousal": y, "epoch": y}, verbose=0, callbacks=watch.callbacks)
    return model, history, dict(model.observed)


class _Adds(keras.callbacks.Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs["learning_rate"] = np.float32(0.5)
        logs["confusion"] = np.eye(2)
        logs["a/b"] = 1


def values_that_callbacks_add(watch: Watch) -> Any:
    x, y = table()
    model = classifier()
    model.compile("adam", CROSSENTROPY)
    history = model.fit(x, y, epochs=2, verbose=0, callbacks=[_Adds(), *watch.callbacks, _Adds()])
    return model, history


def losses_that_are_not_finite(watch: Watch) -> Any:
    x, y = numbers()
    model = keras.Sequential([keras.Input((8,)), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1e20), "mse")
    history = model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=watch.callbacks)
    return model, history


def copies_made_inside(watch: Watch) -> Any:
    """A clone, a saved file and a copy of the optimizer, taken in the middle of a training."""
    x, y = table()
    model = classifier()
    model.compile("adam", CROSSENTROPY)
    taken: dict[str, Any] = {}

    class Takes(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            taken["clone"] = keras.models.clone_model(self.model)
            taken["clone"].set_weights(self.model.get_weights())
            optimizer = self.model.optimizer
            taken["optimizer"] = type(optimizer).from_config(optimizer.get_config())

    history = model.fit(
        x, y, batch_size=16, epochs=2, verbose=0, callbacks=[*watch.callbacks, Takes()]
    )
    clone = taken["clone"]
    clone.compile(taken["optimizer"], CROSSENTROPY)
    again = clone.fit(x, y, batch_size=16, verbose=0, callbacks=watch.callbacks)
    return model, history, clone, again


def stops_inside_an_epoch(watch: Watch) -> Any:
    class Stops(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.stop_training = batch == 1

    x, y = table()
    model = classifier()
    model.compile("adam", CROSSENTROPY)
    stopped = model.fit(
        x, y, batch_size=8, epochs=3, verbose=0, callbacks=[Stops(), *watch.callbacks]
    )
    gone_on = model.fit(x, y, batch_size=8, verbose=0, callbacks=watch.callbacks)
    return model, stopped, gone_on


def callback_list_of_its_own(watch: Watch) -> Any:
    x, y = table()
    model = classifier()
    model.compile("adam", CROSSENTROPY)
    callbacks = keras.callbacks.CallbackList(watch.callbacks, add_history=True, model=model)
    history = model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=callbacks)
    return model, history


def empty_data(watch: Watch) -> Any:
    """What plain Keras raises is raised, and the model trains afterwards."""
    x, y = table()
    model = classifier()
    model.compile("adam", CROSSENTROPY)
    message = ""
    try:
        model.fit(x[:0], y[:0], verbose=0, callbacks=watch.callbacks)
    except ValueError as error:
        message = str(error)
    history = model.fit(x, y, verbose=0, callbacks=watch.callbacks)
    return model, history, message


def fit_of_a_subclass_that_overrides_it(watch: Watch) -> Any:
    class Own(CustomModel):
        def fit(self, *args: Any, **kwargs: Any) -> Any:
            kwargs.setdefault("epochs", 2)
            return super().fit(*args, **kwargs)

    x, y = table()
    model = functional(Own, classifier())
    model.compile("adam", CROSSENTROPY, metrics=["accuracy"])
    history = model.fit(x, y, 16, verbose=0, callbacks=watch.callbacks)
    return model, history
