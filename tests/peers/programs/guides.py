"""Trainings by `fit`, written in the manner of Keras' and TensorFlow's public guides."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.differential import Watch
from tests.peers.programs.data import images, numbers, sequences, table

CROSSENTROPY = "sparse_categorical_crossentropy"


def classifier(units: int = 3) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(16, activation="relu"),
            layers.Dense(units, activation="softmax"),
        ]
    )


def convolutional() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(6, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(3, activation="softmax"),
        ]
    )


def functional(kind: type[keras.Model], inner: keras.Model) -> Any:
    """A subclass of `Model` around the layers of another one."""
    # Keras gives a class other bases at its first use of this kind: two runs would differ by that.
    kind(inner.inputs, inner.outputs)
    return kind(inner.inputs, inner.outputs)


def training_and_evaluation(watch: Watch) -> Any:
    """Keras, "Training & evaluation with the built-in methods"."""
    x, y = table()
    model = classifier()
    model.compile("rmsprop", CROSSENTROPY, metrics=["sparse_categorical_accuracy"])
    history = model.fit(
        x, y, batch_size=16, epochs=2, validation_split=0.25, verbose=0, callbacks=watch.callbacks
    )
    return model, history, model.evaluate(x, y, verbose=0), model.predict(x[:4], verbose=0)


def convolutional_network(watch: Watch) -> Any:
    """Keras, "Simple MNIST convnet"."""
    x, y = images()
    model = convolutional()
    model.compile("adam", CROSSENTROPY, metrics=["accuracy"])
    history = model.fit(
        x, y, batch_size=16, epochs=2, validation_split=0.25, verbose=0, callbacks=watch.callbacks
    )
    return model, history


class CustomModel(keras.Model):
    """Keras, "Customizing what happens in fit()": a first simple example."""

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=y_pred)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, y_pred)
        return {metric.name: metric.result() for metric in self.metrics}


def own_train_step(watch: Watch) -> Any:
    x, y = table()
    model = functional(CustomModel, classifier())
    model.compile("adam", CROSSENTROPY, metrics=["accuracy"])
    history = model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=watch.callbacks)
    return model, history


def own_train_step_of_a_convolutional_network(watch: Watch) -> Any:
    """Without XLA, as a step of one's own is often run."""
    x, y = images(64)
    model = functional(CustomModel, convolutional())
    model.compile("adam", CROSSENTROPY, metrics=["accuracy"], jit_compile=False)
    history = model.fit(x, y, batch_size=16, epochs=3, verbose=0, callbacks=watch.callbacks)
    return model, history


class LowerLevel(keras.Model):
    """Keras, "Customizing what happens in fit()": going lower-level; and its own evaluation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.mae_metric = keras.metrics.MeanAbsoluteError(name="mae")
        self.loss_fn = keras.losses.MeanSquaredError()

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.loss_fn(y, y_pred)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.loss_tracker.update_state(loss)
        self.mae_metric.update_state(y, y_pred)
        return {"loss": self.loss_tracker.result(), "mae": self.mae_metric.result()}

    def test_step(self, data: Any) -> Any:
        x, y = data
        y_pred = self(x, training=False)
        self.loss_tracker.update_state(self.loss_fn(y, y_pred))
        self.mae_metric.update_state(y, y_pred)
        return {"loss": self.loss_tracker.result(), "mae": self.mae_metric.result()}

    @property
    def metrics(self) -> list[Any]:
        return [self.loss_tracker, self.mae_metric]


def lower_level_train_and_test_steps(watch: Watch) -> Any:
    x, y = numbers()
    inner = keras.Sequential([keras.Input((8,)), layers.Dropout(0.3), layers.Dense(1)])
    model = functional(LowerLevel, inner)
    model.compile(optimizer="adam")
    history = model.fit(
        x, y, batch_size=16, epochs=3, validation_data=(x, y), verbose=0, callbacks=watch.callbacks
    )
    return model, history, model.evaluate(x, y, verbose=0)


class Weighted(keras.Model):
    """Keras, "Customizing what happens in fit()": sample weights and class weights."""

    def train_step(self, data: Any) -> Any:
        x, y, sample_weight = data if len(data) == 3 else (*data, None)
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=y_pred, sample_weight=sample_weight)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, y_pred, sample_weight=sample_weight)
        return {metric.name: metric.result() for metric in self.metrics}


def own_train_step_with_sample_weights(watch: Watch) -> Any:
    x, y = numbers()
    model = functional(Weighted, keras.Sequential([keras.Input((8,)), layers.Dense(1)]))
    model.compile("adam", "mse", metrics=["mae"])
    weights = np.random.default_rng(0).random(len(x))
    history = model.fit(x, y, sample_weight=weights, epochs=3, verbose=0, callbacks=watch.callbacks)
    return model, history


def class_and_sample_weights(watch: Watch) -> Any:
    x, y = table()
    model = classifier()
    model.compile("adam", CROSSENTROPY, weighted_metrics=["accuracy"])
    classes = model.fit(
        x, y, class_weight={0: 1.0, 1: 2.0, 2: 0.5}, verbose=0, callbacks=watch.callbacks
    )
    weights = np.where(y == 1, 2.0, 1.0)
    samples = model.fit(x, y, sample_weight=weights, verbose=0, callbacks=watch.callbacks)
    return model, classes, samples


class Gan(keras.Model):
    """Keras, "Customizing what happens in fit()": an end-to-end GAN."""

    def __init__(self, noise: str) -> None:
        super().__init__()
        self.discriminator = keras.Sequential(
            [keras.Input((8,)), layers.Dense(12), layers.LeakyReLU(0.2), layers.Dense(1)]
        )
        self.generator = keras.Sequential(
            [keras.Input((4,)), layers.Dense(12), layers.LeakyReLU(0.2), layers.Dense(8)]
        )
        self.noise = noise
        self.d_loss_tracker = keras.metrics.Mean(name="d_loss")
        self.g_loss_tracker = keras.metrics.Mean(name="g_loss")
        self.seed_generator = keras.random.SeedGenerator(1337)
        self.built = True

    @property
    def metrics(self) -> list[Any]:
        return [self.d_loss_tracker, self.g_loss_tracker]

    def compile(self, d_optimizer: Any, g_optimizer: Any, loss_fn: Any, **kwargs: Any) -> None:
        super().compile(**kwargs)
        self.d_optimizer = d_optimizer
        self.g_optimizer = g_optimizer
        self.loss_fn = loss_fn

    def draw(self, size: Any) -> Any:
        if self.noise == "tf":  # as the guide was before Keras 3
            return tf.random.normal((size, 4))
        return keras.random.normal((size, 4), seed=self.seed_generator)

    def train_step(self, real: Any) -> Any:
        real = real[0] if isinstance(real, tuple) else real
        size = ops.shape(real)[0]
        combined = ops.concatenate([self.generator(self.draw(size)), real], axis=0)
        labels = ops.concatenate([ops.ones((size, 1)), ops.zeros((size, 1))], axis=0)
        labels += 0.05 * tf.random.uniform(tf.shape(labels))
        with tf.GradientTape() as tape:
            d_loss = self.loss_fn(labels, self.discriminator(combined))
        gradients = tape.gradient(d_loss, self.discriminator.trainable_weights)
        self.d_optimizer.apply(gradients, self.discriminator.trainable_weights)
        noise = self.draw(size)
        with tf.GradientTape() as tape:
            predictions = self.discriminator(self.generator(noise))
            g_loss = self.loss_fn(ops.zeros((size, 1)), predictions)
        gradients = tape.gradient(g_loss, self.generator.trainable_weights)
        self.g_optimizer.apply(gradients, self.generator.trainable_weights)
        self.d_loss_tracker.update_state(d_loss)
        self.g_loss_tracker.update_state(g_loss)
        return {"d_loss": self.d_loss_tracker.result(), "g_loss": self.g_loss_tracker.result()}


def _adversarial(watch: Watch, noise: str, **compiled: Any) -> Any:
    data = tf.data.Dataset.from_tensor_slices(table()[0]).shuffle(64).batch(16, drop_remainder=True)
    gan = Gan(noise)
    gan.compile(
        keras.optimizers.Adam(3e-3),
        keras.optimizers.Adam(3e-3),
        keras.losses.BinaryCrossentropy(from_logits=True),
        **compiled,
    )
    history = gan.fit(data, epochs=3, verbose=0, callbacks=watch.callbacks)
    return gan, history, gan.d_optimizer, gan.g_optimizer


def gan(watch: Watch) -> Any:
    return _adversarial(watch, "keras")


def gan_that_draws_by_tensorflow(watch: Watch) -> Any:
    """Seeds of such numbers follow from the number of random operations that were made before."""
    return _adversarial(watch, "tf", jit_compile=False)


class WassersteinGan(Gan):
    """Keras, "WGAN-GP overriding Model.train_step": several updates of one optimizer a batch."""

    d_steps = 3

    def gradient_penalty(self, real: Any, fake: Any) -> Any:
        alpha = keras.random.normal((ops.shape(real)[0], 1), seed=self.seed_generator)
        with tf.GradientTape() as tape:
            interpolated = real + alpha * (fake - real)
            tape.watch(interpolated)
            predictions = self.discriminator(interpolated)
        gradients = tape.gradient(predictions, [interpolated])[0]
        return ops.mean((ops.sqrt(ops.sum(ops.square(gradients), axis=1) + 1e-8) - 1.0) ** 2)

    def train_step(self, real: Any) -> Any:
        size = ops.shape(real)[0]
        for _ in range(self.d_steps):
            noise = self.draw(size)
            with tf.GradientTape() as tape:
                fake = self.generator(noise, training=True)
                cost = ops.mean(self.discriminator(fake)) - ops.mean(self.discriminator(real))
                d_loss = cost + 10.0 * self.gradient_penalty(real, fake)
            gradients = tape.gradient(d_loss, self.discriminator.trainable_variables)
            self.d_optimizer.apply_gradients(
                zip(gradients, self.discriminator.trainable_variables, strict=True)
            )
        noise = self.draw(size)
        with tf.GradientTape() as tape:
            g_loss = -ops.mean(self.discriminator(self.generator(noise, training=True)))
        gradients = tape.gradient(g_loss, self.generator.trainable_variables)
        self.g_optimizer.apply_gradients(
            zip(gradients, self.generator.trainable_variables, strict=True)
        )
        return {"d_loss": d_loss, "g_loss": g_loss}


def wgan_gp(watch: Watch) -> Any:
    data = tf.data.Dataset.from_tensor_slices(table()[0]).batch(16)
    gan = WassersteinGan("keras")
    gan.compile(
        keras.optimizers.Adam(2e-3, beta_1=0.5, beta_2=0.9),
        keras.optimizers.Adam(2e-3, beta_1=0.5, beta_2=0.9),
        None,
    )
    history = gan.fit(data, epochs=2, verbose=0, callbacks=watch.callbacks)
    return gan, history, gan.d_optimizer, gan.g_optimizer


class Sampling(layers.Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1337)

    def call(self, inputs: Any) -> Any:
        mean, log_var = inputs
        noise = keras.random.normal(ops.shape(mean), seed=self.seed_generator)
        return mean + ops.exp(0.5 * log_var) * noise


class Vae(keras.Model):
    """Keras, "Variational AutoEncoder"."""

    def __init__(self) -> None:
        super().__init__()
        inputs = keras.Input((8,))
        hidden = layers.Dense(8, activation="relu")(inputs)
        mean, log_var = layers.Dense(2)(hidden), layers.Dense(2)(hidden)
        self.encoder = keras.Model(inputs, [mean, log_var, Sampling()([mean, log_var])])
        self.decoder = keras.Sequential([keras.Input((2,)), layers.Dense(8)])
        self.trackers = [
            keras.metrics.Mean(name=name) for name in ("loss", "reconstruction_loss", "kl_loss")
        ]

    @property
    def metrics(self) -> list[Any]:
        return self.trackers

    def train_step(self, data: Any) -> Any:
        with tf.GradientTape() as tape:
            mean, log_var, z = self.encoder(data)
            reconstruction = ops.mean(ops.sum(ops.square(data - self.decoder(z)), axis=1))
            kl = ops.mean(
                ops.sum(-0.5 * (1 + log_var - ops.square(mean) - ops.exp(log_var)), axis=1)
            )
            total = reconstruction + kl
        gradients = tape.gradient(total, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        for tracker, value in zip(self.trackers, (total, reconstruction, kl), strict=True):
            tracker.update_state(value)
        return {tracker.name: tracker.result() for tracker in self.trackers}


def variational_autoencoder(watch: Watch) -> Any:
    vae = Vae()
    vae.compile(optimizer=keras.optimizers.Adam())
    history = vae.fit(table()[0], epochs=3, batch_size=16, verbose=0, callbacks=watch.callbacks)
    return vae, history


def autoencoder(watch: Watch) -> Any:
    """Keras, "Building Autoencoders": the input is the target, with a penalty on the code."""
    x, _ = table()
    inputs = keras.Input((8,))
    code = layers.Dense(3, activation="relu", activity_regularizer="l1")(inputs)
    model = keras.Model(inputs, layers.Dense(8)(code))
    model.compile("adadelta", "mse")
    history = model.fit(
        x, x, epochs=2, validation_data=(x, x), verbose=0, callbacks=watch.callbacks
    )
    return model, history


def sequence_to_sequence(watch: Watch) -> Any:
    """Keras, "Character-level recurrent sequence-to-sequence model"."""
    tokens, _ = sequences()
    one_hot = keras.utils.to_categorical(tokens, 12)
    encoder_inputs = keras.Input((None, 12))
    _, *state = layers.LSTM(6, return_state=True)(encoder_inputs)
    decoder_inputs = keras.Input((None, 12))
    decoded, *_ = layers.LSTM(6, return_sequences=True, return_state=True)(
        decoder_inputs, initial_state=state
    )
    outputs = layers.Dense(12, activation="softmax")(decoded)
    model = keras.Model([encoder_inputs, decoder_inputs], outputs)
    model.compile("rmsprop", "categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    history = model.fit(
        [one_hot, one_hot], np.roll(one_hot, -1, 1), batch_size=16, verbose=0,
        callbacks=watch.callbacks,
    )  # fmt: skip
    return model, history


def masking(watch: Watch) -> Any:
    """Keras, "Understanding masking & padding"."""
    tokens, y = sequences()
    model = keras.Sequential(
        [
            layers.Embedding(12, 6, mask_zero=True),
            layers.GRU(5),
            layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile("adam", CROSSENTROPY, jit_compile=False)
    history = model.fit(tokens, y, batch_size=16, verbose=0, callbacks=watch.callbacks)
    return model, history


class _ResetStates(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        for layer in self.model.layers:
            if hasattr(layer, "reset_state"):
                layer.reset_state()


def stateful_recurrence(watch: Watch) -> Any:
    """Keras, "Working with RNNs": cross-batch statefulness."""
    x = np.random.default_rng(0).normal(size=(32, 5, 4)).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((5, 4), batch_size=8),
            layers.SimpleRNN(6, stateful=True),
            layers.Dense(1),
        ]
    )
    model.compile("sgd", "mse", jit_compile=False)
    history = model.fit(
        x, x[:, -1, :1], batch_size=8, epochs=2, shuffle=False, verbose=0,
        callbacks=[_ResetStates(), *watch.callbacks],
    )  # fmt: skip
    return model, history


class Siamese(keras.Model):
    """Keras, "Image similarity estimation using a Siamese network with a triplet loss"."""

    def __init__(self, embedding: keras.Model, margin: float = 0.5) -> None:
        super().__init__()
        self.embedding = embedding
        self.margin = margin
        self.loss_tracker = keras.metrics.Mean(name="loss")

    def call(self, inputs: Any) -> Any:
        anchor, positive, negative = (self.embedding(each) for each in inputs)
        near = ops.sum(tf.square(anchor - positive), -1)
        return near, ops.sum(tf.square(anchor - negative), -1)

    def _loss(self, data: Any) -> Any:
        near, far = self(data)
        return ops.mean(ops.maximum(near - far + self.margin, 0.0))

    def train_step(self, data: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = self._loss(data)
        gradients = tape.gradient(loss, self.embedding.trainable_weights)
        self.optimizer.apply_gradients(
            zip(gradients, self.embedding.trainable_weights, strict=True)
        )
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}

    def test_step(self, data: Any) -> Any:
        self.loss_tracker.update_state(self._loss(data))
        return {"loss": self.loss_tracker.result()}

    @property
    def metrics(self) -> list[Any]:
        return [self.loss_tracker]


def siamese_triplets(watch: Watch) -> Any:
    x, _ = table()
    triplets = tf.data.Dataset.from_tensor_slices((x, x + 0.1, x[::-1])).batch(16)
    model = Siamese(keras.Sequential([keras.Input((8,)), layers.Dense(4)]))
    model.compile(optimizer=keras.optimizers.Adam(1e-2))
    history = model.fit(
        triplets, epochs=2, validation_data=triplets, verbose=0, callbacks=watch.callbacks
    )
    return model, history, model.embedding


class Distiller(keras.Model):
    """Keras, "Knowledge distillation"."""

    def __init__(self, student: keras.Model, teacher: keras.Model) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def compile(self, *args: Any, distillation_loss_fn: Any, alpha: float, **kwargs: Any) -> None:
        super().compile(*args, **kwargs)
        self.distillation_loss_fn = distillation_loss_fn
        self.alpha = alpha

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None,
        training: bool = True,
    ) -> Any:  # fmt: skip
        taught = self.teacher(x, training=False)
        hard = super().compute_loss(x, y, y_pred, sample_weight)
        soft = self.distillation_loss_fn(
            ops.softmax(taught / 3, axis=1), ops.softmax(y_pred / 3, axis=1)
        )
        return self.alpha * hard + (1 - self.alpha) * soft * 9

    def call(self, x: Any) -> Any:
        return self.student(x)


def distillation_by_hand(watch: Watch) -> Any:
    x, y = table()
    logits = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher = keras.Sequential([keras.Input((8,)), layers.Dense(16), layers.Dense(3)])
    teacher.compile("adam", logits)
    taught = teacher.fit(x, y, verbose=0, callbacks=watch.callbacks)
    distiller = Distiller(keras.Sequential([keras.Input((8,)), layers.Dense(3)]), teacher)
    distiller.compile(
        keras.optimizers.Adam(), logits, metrics=["sparse_categorical_accuracy"],
        distillation_loss_fn=keras.losses.KLDivergence(), alpha=0.1,
    )  # fmt: skip
    distilled = distiller.fit(x, y, epochs=2, verbose=0, callbacks=watch.callbacks)
    return teacher, taught, distiller, distilled, distiller.evaluate(x, y, verbose=0)


def transfer_learning(watch: Watch) -> Any:
    """Keras, "Transfer learning & fine-tuning": freeze, train, unfreeze, compile, train."""
    x, y = images()
    base = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling2D(),
        ]
    )
    base.trainable = False
    inputs = keras.Input((8, 8, 1))
    outputs = layers.Dense(3)(layers.Dropout(0.2)(base(inputs, training=False)))
    model = keras.Model(inputs, outputs)
    logits = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(), logits, metrics=["accuracy"])
    frozen = model.fit(x, y, epochs=2, verbose=0, callbacks=watch.callbacks)
    base.trainable = True
    model.compile(keras.optimizers.Adam(1e-5), logits, metrics=["accuracy"])
    thawed = model.fit(x, y, epochs=2, verbose=0, callbacks=watch.callbacks)
    return model, frozen, thawed


def several_fits_of_one_model(watch: Watch) -> Any:
    x, y = table()
    model = classifier()
    model.compile("adam", CROSSENTROPY, metrics=["accuracy"])
    histories = [
        model.fit(x, y, batch_size=size, epochs=first + 2, initial_epoch=first, verbose=0,
                  callbacks=watch.callbacks)
        for first, size in ((0, 16), (2, 16), (4, 32))
    ]  # fmt: skip
    return model, histories


def cross_validation(watch: Watch) -> Any:
    """A model a fold: what the second one begins with follows from the seeds before."""
    x, y = table(60)
    results = []
    for fold in range(3):
        held_out = np.arange(60) % 3 == fold
        model = classifier()
        model.compile("adam", CROSSENTROPY)
        history = model.fit(
            x[~held_out], y[~held_out], validation_data=(x[held_out], y[held_out]), verbose=0,
            callbacks=watch.callbacks,
        )  # fmt: skip
        results.append((model, history))
    return results


class _RangeTest(keras.callbacks.Callback):
    """Leslie Smith's: the rate grows batch by batch until the loss does."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[float, float]] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.model.optimizer.learning_rate = 1e-4 * 2 ** len(self.seen)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen.append((float(self.model.optimizer.learning_rate), float(logs["loss"])))
        if len(self.seen) == 6:
            self.model.stop_training = True


def learning_rate_range_test(watch: Watch) -> Any:
    x, y = table()
    model = classifier()
    model.compile(keras.optimizers.SGD(1e-4, momentum=0.9), CROSSENTROPY)
    test = _RangeTest()
    history = model.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=[test, *watch.callbacks])
    return model, history, test.seen


class _Averaged(keras.callbacks.Callback):
    """An average of the weights, which the model has while it is validated."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.average = self.model.get_weights()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.average = [
            0.9 * a + 0.1 * w for a, w in zip(self.average, self.model.get_weights(), strict=True)
        ]

    def on_test_begin(self, logs: Any = None) -> None:
        self.trained = self.model.get_weights()
        self.model.set_weights(self.average)

    def on_test_end(self, logs: Any = None) -> None:
        self.model.set_weights(self.trained)


def weights_averaged_by_a_callback(watch: Watch) -> Any:
    x, y = table()
    model = classifier()
    model.compile("adam", CROSSENTROPY)
    averaged = _Averaged()
    history = model.fit(
        x, y, batch_size=16, epochs=2, validation_data=(x, y), verbose=0,
        callbacks=[averaged, *watch.callbacks],
    )  # fmt: skip
    return model, history, averaged.average


def weights_averaged_by_the_optimizer(watch: Watch) -> Any:
    x, y = table()
    model = classifier()
    model.compile(
        keras.optimizers.AdamW(0.01, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3),
        CROSSENTROPY,
    )
    history = model.fit(
        x, y, batch_size=8, epochs=2, validation_data=(x, y), verbose=0,
        callbacks=[keras.callbacks.SwapEMAWeights(swap_on_epoch=True), *watch.callbacks],
    )  # fmt: skip
    return model, history


def callbacks_of_keras(watch: Watch) -> Any:
    x, y = table()
    model = classifier()
    model.compile(keras.optimizers.SGD(0.5), CROSSENTROPY, metrics=["accuracy"])
    history = model.fit(
        x, y, batch_size=16, epochs=5, validation_data=(x[:16], 2 - y[:16]), verbose=0,
        callbacks=[
            keras.callbacks.ReduceLROnPlateau(patience=1, min_delta=1.0),
            keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9),
            keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True),
            keras.callbacks.TerminateOnNaN(),
            *watch.callbacks,
        ],
    )  # fmt: skip
    return model, history


def mixed_precision(watch: Watch) -> Any:
    """Keras, "Mixed precision": the loss is scaled, and an update skipped where it overflows."""
    x, y = table()
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(16, activation="relu", dtype="mixed_float16"),
            layers.Dense(3, activation="softmax", dtype="float32"),
        ]
    )
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(0.01), initial_scale=2.0**26, dynamic_growth_steps=4
    )
    model.compile(optimizer, CROSSENTROPY)
    history = model.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=watch.callbacks)
    return model, history


def compiled_clipped_and_accumulated(watch: Watch) -> Any:
    """XLA, `clipnorm`, accumulation and several steps a call, in one."""
    x, y = table(80)
    model = classifier()
    model.compile(
        keras.optimizers.Adam(0.01, clipnorm=0.05, gradient_accumulation_steps=2),
        CROSSENTROPY, jit_compile=True, steps_per_execution=3,
    )  # fmt: skip
    history = model.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=watch.callbacks)
    return model, history


def gradient_accumulation(watch: Watch) -> Any:
    x, y = table(56)
    model = classifier()
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=3),
        CROSSENTROPY, jit_compile=False,
    )  # fmt: skip
    history = model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=watch.callbacks)
    return model, history


def several_steps_per_execution(watch: Watch) -> Any:
    x, y = table(70)
    model = classifier()
    model.compile("rmsprop", CROSSENTROPY, steps_per_execution=4, jit_compile=False)
    history = model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=watch.callbacks)
    return model, history


def global_clipping(watch: Watch) -> Any:
    x, y = table()
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 8, warmup_target=0.2, warmup_steps=2)
    model = classifier()
    model.compile(
        keras.optimizers.SGD(schedule, global_clipnorm=0.1, weight_decay=0.01), CROSSENTROPY
    )
    history = model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=watch.callbacks)
    return model, history


def eagerly(watch: Watch) -> Any:
    x, y = table()
    model = classifier()
    model.compile("adam", CROSSENTROPY, metrics=["accuracy"], run_eagerly=True)
    history = model.fit(
        x, y, batch_size=32, epochs=2, validation_split=0.25, verbose=0, callbacks=watch.callbacks
    )
    return model, history


def several_outputs(watch: Watch) -> Any:
    """Keras, "The functional API": inputs and outputs by name, losses with weights."""
    x, y = table()
    title, body = keras.Input((4,), name="title"), keras.Input((4,), name="body")
    joined = layers.concatenate([layers.Dense(6)(title), layers.Dense(6)(body)])
    priority = layers.Dense(1, name="priority")(joined)
    department = layers.Dense(3, name="department")(joined)
    model = keras.Model([title, body], {"priority": priority, "department": department})
    model.compile(
        keras.optimizers.RMSprop(1e-3),
        loss={
            "priority": keras.losses.BinaryCrossentropy(from_logits=True),
            "department": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        },
        loss_weights={"priority": 1.0, "department": 0.2},
        metrics={"department": ["accuracy"]},
    )
    history = model.fit(
        {"title": x[:, :4], "body": x[:, 4:]},
        {"priority": (y > 1).astype("float32")[:, None], "department": y},
        batch_size=16, epochs=2, validation_split=0.25, verbose=0, callbacks=watch.callbacks,
    )  # fmt: skip
    return model, history


class TruePositives(keras.metrics.Metric):
    def __init__(self, name: str = "true_positives") -> None:
        super().__init__(name=name)
        self.count = self.add_variable((), initializer="zeros", name="count")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        hits = ops.equal(ops.cast(y_true, "int32"), ops.cast(ops.argmax(y_pred, 1), "int32"))
        self.count.assign_add(ops.sum(ops.cast(hits, "float32")))

    def result(self) -> Any:
        return self.count.value

    def reset_state(self) -> None:
        self.count.assign(0)


def own_metrics_and_loss(watch: Watch) -> Any:
    x, y = table()

    def loss(y_true: Any, y_pred: Any) -> Any:
        return ops.mean(ops.square(ops.one_hot(ops.cast(y_true, "int32"), 3) - y_pred), -1)

    def confidence(y_true: Any, y_pred: Any) -> Any:
        return ops.max(y_pred, axis=-1)

    model = classifier()
    model.compile("adam", loss, metrics=[TruePositives(), confidence])
    history = model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=watch.callbacks)
    return model, history


def metric_that_is_a_vector(watch: Watch) -> Any:
    x, y = table()
    one_hot = keras.utils.to_categorical(y, 3)
    model = classifier()
    model.compile("adam", "categorical_crossentropy", metrics=[keras.metrics.F1Score()])
    history = model.fit(
        x, one_hot, epochs=2, validation_data=(x, one_hot), verbose=0, callbacks=watch.callbacks
    )
    return model, history


class Endpoint(layers.Layer):
    """Keras, "Making new layers and models": losses that layers add."""

    def __init__(self) -> None:
        super().__init__()
        self.loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def call(self, targets: Any, logits: Any) -> Any:
        self.add_loss(self.loss_fn(targets, logits))
        return ops.softmax(logits)


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = layers.Dense(8, kernel_regularizer="l2", activity_regularizer="l2")
        self.logits = layers.Dense(3)
        self.end = Endpoint()

    def call(self, inputs: Any) -> Any:
        return self.end(inputs["targets"], self.logits(self.hidden(inputs["x"])))


def losses_added_by_layers(watch: Watch) -> Any:
    x, y = table()
    model = Subclassed()
    model.compile(optimizer="adam")
    history = model.fit({"x": x, "targets": y}, epochs=2, verbose=0, callbacks=watch.callbacks)
    return model, history


def dataset_of_a_generator(watch: Watch) -> Any:
    x, y = table()

    def examples() -> Any:
        yield from zip(x, y, strict=True)

    signature = (tf.TensorSpec((8,), tf.float32), tf.TensorSpec((), tf.int64))
    data = tf.data.Dataset.from_generator(examples, output_signature=signature)
    data = data.shuffle(64).batch(12).prefetch(2)
    model = classifier()
    model.compile("adam", CROSSENTROPY)
    until_empty = model.fit(data, epochs=2, verbose=0, callbacks=watch.callbacks)
    by_steps = model.fit(
        data.repeat(), epochs=2, steps_per_epoch=3, verbose=0, callbacks=watch.callbacks
    )
    return model, until_empty, by_steps


def python_generator(watch: Watch) -> Any:
    x, y = table()

    def batches() -> Any:
        while True:
            for begin in range(0, 48, 16):
                yield x[begin : begin + 16], y[begin : begin + 16]

    model = classifier()
    model.compile("adam", CROSSENTROPY)
    history = model.fit(
        batches(), epochs=2, steps_per_epoch=4, verbose=0, callbacks=watch.callbacks
    )
    return model, history


class Shuffled(keras.utils.PyDataset):
    def __init__(self) -> None:
        super().__init__()
        self.x, self.y = table()
        self.order = np.arange(len(self.x))
        self.epochs_ended = 0

    def __len__(self) -> int:
        return len(self.x) // 16

    def __getitem__(self, index: int) -> Any:
        chosen = self.order[16 * index : 16 * index + 16]
        return self.x[chosen], self.y[chosen]

    def on_epoch_end(self) -> None:
        self.epochs_ended += 1
        np.random.shuffle(self.order)


def py_dataset(watch: Watch) -> Any:
    data = Shuffled()
    model = classifier()
    model.compile("adam", CROSSENTROPY)
    history = model.fit(data, epochs=3, verbose=0, callbacks=watch.callbacks)
    return model, history, data.order, data.epochs_ended


def preprocessing_layers(watch: Watch) -> Any:
    """Keras, "Working with preprocessing layers": they draw random numbers in training."""
    x, y = images()
    normalization = layers.Normalization()
    normalization.adapt(x)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            normalization,
            layers.RandomFlip("horizontal"),
            layers.GaussianNoise(0.1),
            layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile("adam", CROSSENTROPY, jit_compile=False)
    history = model.fit(x, y, epochs=2, verbose=0, callbacks=watch.callbacks)
    return model, history


def low_rank_adaptation(watch: Watch) -> Any:
    x, y = table()
    model = classifier()
    model.compile("adam", CROSSENTROPY)
    full = model.fit(x, y, verbose=0, callbacks=watch.callbacks)
    model.layers[0].enable_lora(2)
    model.compile("adam", CROSSENTROPY)
    adapted = model.fit(x, y, epochs=2, verbose=0, callbacks=watch.callbacks)
    return model, full, adapted


def deep_q_learning(watch: Watch) -> Any:
    """As most do it: `fit` for one epoch on a replayed batch, against a network that lags."""
    random = np.random.default_rng(0)
    online, target = (keras.Sequential([keras.Input((4,)), layers.Dense(2)]) for _ in range(2))
    online.compile(keras.optimizers.Adam(0.01), "huber")
    losses = []
    for turn in range(6):
        states, following = random.normal(size=(2, 8, 4)).astype("float32")
        actions, rewards = random.integers(0, 2, 8), random.random(8)
        wanted = online.predict_on_batch(states)
        wanted[np.arange(8), actions] = rewards + 0.9 * target.predict_on_batch(following).max(1)
        if turn % 2:
            losses.append(online.train_on_batch(states, wanted))
        else:
            losses.append(online.fit(states, wanted, verbose=0, callbacks=watch.callbacks))
        if turn == 3:
            target.set_weights(online.get_weights())
    return online, target, losses
