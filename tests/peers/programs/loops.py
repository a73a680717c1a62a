"""Loops of one's own, written in the manner of public guides; some draw and some share."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.differential import Watch
from tests.peers.programs.data import images, numbers, sequences, table
from tests.peers.programs.guides import WassersteinGan, classifier, convolutional

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _batches(x: Any, y: Any, size: int = 16) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((x, y)).shuffle(64).batch(size)


def training_loop_from_scratch(watch: Watch) -> Any:
    """Keras, "Writing a training loop from scratch in TensorFlow"."""
    model = keras.Sequential([keras.Input((8,)), layers.Dense(12, "relu"), layers.Dense(3)])
    optimizer = keras.optimizers.Adam(1e-2)
    accuracy = keras.metrics.SparseCategoricalAccuracy()
    loop = watch.loop(model, optimizer)
    data = _batches(*table())
    reached = []

    @tf.function
    def train_step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            logits = model(x, training=True)
            loss = LOGITS(y, logits)
        gradients = tape.gradient(loss, model.trainable_weights)
        optimizer.apply(gradients, model.trainable_weights)
        accuracy.update_state(y, logits)
        loop.record(loss=loss)
        return loss

    for _ in loop.epochs(2):
        losses = [train_step(x, y) for x, y in loop.batches(data)]
        reached.append((losses, accuracy.result()))
        loop.log(accuracy=accuracy.result())
        accuracy.reset_state()
    return model, optimizer, reached


def loop_without_a_graph(watch: Watch) -> Any:
    model = keras.Sequential([keras.Input((8,)), layers.Dropout(0.5), layers.Dense(1)])
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True)
    loop = watch.loop(model, optimizer)
    for _ in loop.epochs(2):
        for x, y in loop.batches(_batches(*numbers())):
            with tf.GradientTape() as tape:
                loss = ops.mean(ops.square(model(x, training=True) - y))
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            loop.record(loss=loss)
    return model, optimizer


def loop_compiled_by_xla(watch: Watch) -> Any:
    model = keras.Sequential([keras.Input((8,)), layers.Dense(12, "relu"), layers.Dense(3)])
    optimizer = keras.optimizers.Adam(1e-2, global_clipnorm=0.1)
    loop = watch.loop(model, optimizer)

    @tf.function(jit_compile=True)
    def train_step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = LOGITS(y, model(x, training=True))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        loop.record(loss=loss)

    for _ in loop.epochs(2):
        for x, y in loop.batches(_batches(*table())):
            train_step(x, y)
    return model, optimizer


def several_steps_a_call(watch: Watch) -> Any:
    """`Loop.run`: the loop over the batches is in the graph too."""
    model = convolutional()
    optimizer = keras.optimizers.Adam(1e-2)
    loop = watch.loop(model, optimizer)
    crossentropy = keras.losses.SparseCategoricalCrossentropy()

    def train_step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = crossentropy(y, model(x, training=True))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        loop.record(loss=loss)

    data = _batches(*images(), size=8)
    for _ in loop.epochs(2):
        loop.run(train_step, data, steps_per_call=4)
    return model, optimizer


def convolutional_gan(watch: Watch) -> Any:
    """TensorFlow, "Deep Convolutional Generative Adversarial Network"."""
    generator = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(4 * 4 * 4, use_bias=False),
            layers.BatchNormalization(),
            layers.LeakyReLU(),
            layers.Reshape((4, 4, 4)),
            layers.Conv2DTranspose(1, 3, strides=2, padding="same", activation="tanh"),
        ]
    )
    discriminator = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, strides=2),
            layers.LeakyReLU(),
            layers.Dropout(0.3),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )
    optimizers = {"generator": keras.optimizers.Adam(1e-3), "critic": keras.optimizers.Adam(1e-3)}
    loop = watch.loop(generator, optimizers)
    entropy = keras.losses.BinaryCrossentropy(from_logits=True)

    @tf.function
    def train_step(real: Any) -> None:
        noise = tf.random.normal([16, 6])
        with tf.GradientTape() as g_tape, tf.GradientTape() as d_tape:
            fake = generator(noise, training=True)
            of_real = discriminator(real, training=True)
            of_fake = discriminator(fake, training=True)
            g_loss = entropy(tf.ones_like(of_fake), of_fake)
            d_loss = entropy(tf.ones_like(of_real), of_real)
            d_loss += entropy(tf.zeros_like(of_fake), of_fake)
        for optimizer, tape, loss, model in (
            (optimizers["generator"], g_tape, g_loss, generator),
            (optimizers["critic"], d_tape, d_loss, discriminator),
        ):
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        loop.record(g_loss=g_loss, d_loss=d_loss)

    data = tf.data.Dataset.from_tensor_slices(images()[0]).shuffle(64).batch(16)
    for _ in loop.epochs(2):
        for real in loop.batches(data):
            train_step(real)
    return generator, discriminator, optimizers


def wasserstein_gan(watch: Watch) -> Any:
    """A step of several updates, called as a function and not by `fit`."""
    gan = WassersteinGan("tf")
    optimizers = {"critic": keras.optimizers.Adam(1e-3), "generator": keras.optimizers.Adam(1e-3)}
    gan.compile(optimizers["critic"], optimizers["generator"], None)
    loop = watch.loop(gan, optimizers)
    step = tf.function(gan.train_step)
    data = tf.data.Dataset.from_tensor_slices(table()[0]).batch(16)
    losses = []
    for _ in loop.epochs(2):
        losses += [step(real) for real in loop.batches(data)]
    return gan, optimizers, losses


def _task(random: np.random.Generator) -> Any:
    amplitude, phase = random.uniform(0.5, 2.0), random.uniform(0, np.pi)
    x = random.uniform(-3, 3, (10, 1)).astype("float32")
    return x, (amplitude * np.sin(x + phase)).astype("float32")


def _regressor() -> keras.Model:
    return keras.Sequential([keras.Input((1,)), layers.Dense(8, "tanh"), layers.Dense(1)])


def reptile(watch: Watch) -> Any:
    """Keras, "Few-Shot learning with Reptile": the weights are set from outside after each task."""
    model, optimizer = _regressor(), keras.optimizers.SGD(0.02)
    random = np.random.default_rng(0)
    loop = watch.loop(model, optimizer)
    for meta_step in loop.epochs(3):
        rate = 0.5 * (1 - meta_step / 3)
        before = model.get_weights()
        x, y = _task(random)
        for _ in loop.batches(range(4)):
            with tf.GradientTape() as tape:
                loss = keras.losses.MeanSquaredError()(y, model(x))
            gradients = tape.gradient(loss, model.trainable_weights)
            optimizer.apply_gradients(zip(gradients, model.trainable_weights, strict=True))
        after = model.get_weights()
        model.set_weights(
            [old + (new - old) * rate for old, new in zip(before, after, strict=True)]
        )
    return model, optimizer


def model_agnostic_meta_learning(watch: Watch) -> Any:
    """MAML: a gradient through a gradient step."""
    model, optimizer = _regressor(), keras.optimizers.Adam(0.01)
    random = np.random.default_rng(0)
    loop = watch.loop(model, optimizer)
    own = model.trainable_variables

    @tf.function
    def meta_step(x: Any, y: Any) -> None:
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                loss = ops.mean(ops.square(model(x) - y))
            adapted = [
                weight - 0.1 * gradient
                for weight, gradient in zip(own, inner.gradient(loss, own), strict=True)
            ]
            hidden = tf.tanh(x @ adapted[0] + adapted[1])
            meta_loss = ops.mean(ops.square(hidden @ adapted[2] + adapted[3] - y))
        optimizer.apply(outer.gradient(meta_loss, own), own)
        loop.record(loss=meta_loss)

    for _ in loop.epochs(2):
        for x, y in loop.batches([_task(random) for _ in range(3)]):
            meta_step(tf.constant(x), tf.constant(y))
    return model, optimizer


def actor_critic(watch: Watch) -> Any:
    """Keras, "Actor Critic Method": an update an episode, in a world of two rooms."""
    inputs = keras.Input((4,))
    common = layers.Dense(8, activation="relu")(inputs)
    model = keras.Model(
        inputs, [layers.Dense(2, activation="softmax")(common), layers.Dense(1)(common)]
    )
    optimizer = keras.optimizers.Adam(0.01)
    huber = keras.losses.Huber()
    loop = watch.loop(model, optimizer)
    totals = []
    for _ in loop.epochs(2):
        for _ in loop.batches(range(3)):
            state = np.zeros(4, "float32")
            with tf.GradientTape() as tape:
                chosen, values, rewards = [], [], []
                for _ in range(5):
                    probabilities, value = model(state[None])
                    action = np.random.choice(2, p=_distribution(probabilities))
                    chosen.append(ops.log(probabilities[0, action]))
                    values.append(value[0, 0])
                    rewards.append(float(action == int(state.sum()) % 2))
                    state[action] += 1.0
                returns = np.cumsum(rewards[::-1])[::-1].astype("float32")
                returns = (returns - returns.mean()) / (returns.std() + 1e-6)
                loss = sum(
                    -log * (ret - value) + huber([value], [ret])
                    for log, value, ret in zip(chosen, values, returns, strict=True)
                )
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            totals.append(sum(rewards))
            loop.record(reward=totals[-1])
    return model, optimizer, totals


def _distribution(probabilities: Any) -> Any:
    row = np.asarray(probabilities, "float64")[0]
    return row / row.sum()


def translation_with_a_teacher(watch: Watch) -> Any:
    """TensorFlow's guides of seq2seq with attention: a loop over time inside the step."""
    tokens, _ = sequences()
    embedding = layers.Embedding(12, 6)
    cell, out = layers.GRUCell(6), layers.Dense(12)
    inputs = keras.Input((), dtype="int32"), keras.Input((6,))
    _, state = cell(embedding(inputs[0]), [inputs[1]])
    model = keras.Model(inputs, [out(state[0]), state[0]])
    optimizer = keras.optimizers.Adam(0.01, clipvalue=0.5)
    loop = watch.loop(model, optimizer)

    @tf.function
    def train_step(batch: Any) -> None:
        with tf.GradientTape() as tape:
            loss, state = tf.constant(0.0), tf.zeros((tf.shape(batch)[0], 6))
            for time in range(6):
                logits, state = model([batch[:, time], state])
                mask = tf.cast(batch[:, time + 1] > 0, tf.float32)
                losses = keras.losses.sparse_categorical_crossentropy(
                    batch[:, time + 1], logits, from_logits=True
                )
                loss += tf.reduce_sum(mask * losses) / 6.0
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        loop.record(loss=loss)

    data = tf.data.Dataset.from_tensor_slices(tokens).batch(16)
    for _ in loop.epochs(2):
        for batch in loop.batches(data):
            train_step(batch)
    return model, optimizer


def loss_scaling_by_hand(watch: Watch) -> Any:
    """TensorFlow, "Mixed precision": training with a loop of one's own."""
    model = keras.Sequential(
        [keras.Input((8,)), layers.Dense(8, "relu", dtype="mixed_float16"), layers.Dense(3)]
    )
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.1), initial_scale=2.0**20, dynamic_growth_steps=3
    )
    loop = watch.loop(model, optimizer)

    @tf.function
    def train_step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = LOGITS(y, model(x, training=True))
            scaled = optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        loop.record(loss=loss)

    for _ in loop.epochs(3):
        for x, y in loop.batches(_batches(*table(), size=12)):
            train_step(x, y)
    return model, optimizer


def gradients_accumulated_by_hand(watch: Watch) -> Any:
    model, optimizer = classifier(), keras.optimizers.Adam(0.01)
    loop = watch.loop(model, optimizer)
    sums = [tf.Variable(tf.zeros(each.shape)) for each in model.trainable_variables]
    crossentropy = keras.losses.SparseCategoricalCrossentropy()

    @tf.function
    def add(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = crossentropy(y, model(x, training=True))
        for total, gradient in zip(
            sums, tape.gradient(loss, model.trainable_variables), strict=True
        ):
            total.assign_add(gradient / 2.0)
        loop.record(loss=loss)

    @tf.function
    def update() -> None:
        optimizer.apply([*map(tf.identity, sums)], iter(model.trainable_variables))
        for total in sums:
            total.assign(tf.zeros_like(total))

    for _ in loop.epochs(2):
        for index, (x, y) in enumerate(loop.batches(_batches(*table(), size=12))):
            add(x, y)
            if index % 2:
                update()
    return model, optimizer


def two_models_by_one_optimizer(watch: Watch) -> Any:
    """Student and teacher learn from each other, by one optimizer for both."""
    models = classifier(), classifier()
    optimizer = keras.optimizers.Adam(0.01)
    variables = [each for model in models for each in model.trainable_variables]
    optimizer.build(variables)
    loop = watch.loop(models[0], optimizer)
    crossentropy = keras.losses.SparseCategoricalCrossentropy()

    @tf.function
    def train_step(x: Any, y: Any) -> None:
        for model, other in (models, models[::-1]):
            with tf.GradientTape() as tape:
                own, soft = model(x, training=True), tf.stop_gradient(other(x))
                loss = crossentropy(y, own) + keras.losses.KLDivergence()(soft, own)
            optimizer.apply(
                tape.gradient(loss, model.trainable_variables), model.trainable_variables
            )

    for _ in loop.epochs(2):
        for x, y in loop.batches(_batches(*table())):
            train_step(x, y)
    return *models, optimizer


def stateless_apply(watch: Watch) -> Any:
    """As a loop in the manner of JAX has it: Keras refuses that on TensorFlow, and goes on so."""
    model, optimizer = classifier(), keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)
    loop = watch.loop(model, optimizer)
    crossentropy = keras.losses.SparseCategoricalCrossentropy()
    messages = []
    for _ in loop.epochs(1):
        for x, y in loop.batches(_batches(*table())):
            with tf.GradientTape() as tape:
                loss = crossentropy(y, model(x, training=True))
            own = model.trainable_variables
            gradients = tape.gradient(loss, own)
            try:
                optimizer.stateless_apply(optimizer.variables, gradients, own)
            except ValueError as error:
                messages.append(str(error))
            optimizer.apply(gradients, own)
    return model, optimizer, messages


def loop_on_a_mirrored_strategy(watch: Watch) -> Any:
    """TensorFlow, "Custom training with tf.distribute.Strategy"."""
    strategy = tf.distribute.MirroredStrategy(["/cpu:0"])
    data = tf.data.Dataset.from_tensor_slices(table()).batch(16)
    spread = strategy.experimental_distribute_dataset(data)
    with strategy.scope():
        model = classifier()
        optimizer = keras.optimizers.Adam(0.01)
        optimizer.build(model.trainable_variables)
    loop = watch.loop(model, optimizer)
    crossentropy = keras.losses.SparseCategoricalCrossentropy(reduction=None)

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            losses = crossentropy(y, model(x, training=True))
            loss = tf.nn.compute_average_loss(losses, global_batch_size=16)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    @tf.function
    def train_step(x: Any, y: Any) -> Any:
        return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(step, (x, y)), axis=None)

    losses = []
    for _ in loop.epochs(2):
        losses += [train_step(x, y) for x, y in loop.batches(spread)]
    return model, optimizer, losses


def loop_inside_the_scope(watch: Watch) -> Any:
    """The guide again, with the whole loop in the scope."""
    strategy = tf.distribute.MirroredStrategy(["/cpu:0"])
    with strategy.scope():
        return loop_on_one_device(watch)


def loop_on_one_device(watch: Watch) -> Any:
    model, optimizer = classifier(), keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)
    loop = watch.loop(model, optimizer)
    crossentropy = keras.losses.SparseCategoricalCrossentropy()

    @tf.function
    def train_step(x: Any, y: Any) -> Any:
        def step(x: Any, y: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = crossentropy(y, model(x, training=True))
            own = model.trainable_variables
            optimizer.apply(tape.gradient(loss, own), own)
            return loss

        return tf.distribute.get_strategy().run(step, (x, y))

    losses = []
    for _ in loop.epochs(2):
        losses += [train_step(x, y) for x, y in loop.batches(_batches(*table()))]
    return model, optimizer, losses


def sparse_batches(watch: Watch) -> Any:
    x, y = table()
    sparse = tf.sparse.from_dense(np.where(x > 0, x, 0.0))
    data = tf.data.Dataset.from_tensor_slices((sparse, y)).batch(16)
    model, optimizer = classifier(), keras.optimizers.SGD(0.1)
    loop = watch.loop(model, optimizer)
    crossentropy = keras.losses.SparseCategoricalCrossentropy()

    def train_step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = crossentropy(y, model(tf.sparse.to_dense(x), training=True))
        own = model.trainable_variables
        optimizer.apply(tape.gradient(loss, own), own)
        loop.record(loss=loss)

    compiled = tf.function(train_step)
    for _ in loop.epochs(1):
        for x, y in loop.batches(data):
            compiled(x, y)
    for _ in loop.epochs(1):
        loop.run(train_step, data, steps_per_call=2)
    return model, optimizer


def train_on_batch(watch: Watch) -> Any:
    """The loop of many a GAN: `train_on_batch` of compiled models, one frozen in the other."""
    x, _ = table()
    critic = keras.Sequential([keras.Input((8,)), layers.Dense(6, "relu"), layers.Dense(1)])
    critic.compile(keras.optimizers.Adam(0.01), keras.losses.BinaryCrossentropy(from_logits=True))
    generator = keras.Sequential([keras.Input((4,)), layers.Dense(8)])
    inputs = keras.Input((4,))
    critic.trainable = False
    both = keras.Model(inputs, critic(generator(inputs)))
    both.compile(keras.optimizers.Adam(0.01), keras.losses.BinaryCrossentropy(from_logits=True))
    critic.trainable = True
    loop = watch.loop(both, {"critic": critic.optimizer, "generator": both.optimizer})
    losses = []
    for _ in loop.epochs(2):
        for begin in loop.batches(range(0, 48, 16)):
            noise = np.random.normal(size=(16, 4)).astype("float32")
            fake = generator.predict_on_batch(noise)
            losses.append(critic.train_on_batch(x[begin : begin + 16], np.ones((16, 1))))
            losses.append(critic.train_on_batch(fake, np.zeros((16, 1))))
            losses.append(both.train_on_batch(noise, np.ones((16, 1))))
    return critic, generator, both, losses


def loop_left_early_and_begun_again(watch: Watch) -> Any:
    model, optimizer = classifier(), keras.optimizers.Adam(0.01)
    loop = watch.loop(model, optimizer)
    crossentropy = keras.losses.SparseCategoricalCrossentropy()

    @tf.function
    def train_step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = crossentropy(y, model(x, training=True))
        own = model.trainable_variables
        optimizer.apply(tape.gradient(loss, own), own)

    for epoch in loop.epochs(4):
        for index, (x, y) in enumerate(loop.batches(_batches(*table()))):
            if index == 2:
                break
            train_step(x, y)
        if epoch == 1:
            break
    for x, y in _batches(*table()):
        train_step(x, y)  # outside of any loop
    for _ in loop.epochs(1):
        for x, y in loop.batches(_batches(*table())):
            train_step(x, y)
    return model, optimizer
