"""REINFORCE: a policy learns from the returns of its own actions, with a baseline against noise.

The gradient of the expected return is that of log pi(action | state) times the return that followed
the action. Subtracting the return that is expected in the state does not change the mean of that
gradient, but reduces its variance: a second net, the baseline, learns that expected return.

    advantage = return that followed - baseline(state)
    loss      = -mean(advantage * log pi(action | state)) - bonus * entropy(pi)

Williams: Simple statistical gradient-following algorithms for connectionist reinforcement learning,
1992; returns from the action on, and baselines: Sutton, Barto: Reinforcement Learning, 2018, 13.4.

The task is gymnasium's CartPole: push a cart so that the pole on it stays up, for 500 pushes at
most; every push is worth 1. A training batch is a few episodes played at once. What to expect: the
mean return climbs from about 20 to close to 500, with dips; the entropy falls from ln 2. There is
no `--data`: the data are the episodes that the policy plays. A minute of computing on two cores.

    mlflow run . -e reinforce --env-manager local -P epochs=5
"""

from collections.abc import Iterator
from typing import Annotated, Any

import keras
import numpy as np
import tensorflow as tf
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.extras import extra
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.lessons.rollouts import play, returns

BATCHES_PER_EPOCH = 10
TESTS = 100  # episodes
STATE, ACTIONS, LONGEST = 4, 2, 500  # numbers of a state, choices, pushes of an episode


def net(outputs: int, name: str) -> keras.Model:
    """One hidden layer: from a state to the logits of the actions, or to the expected return."""
    hidden = keras.layers.Dense(64, activation="tanh")
    return keras.Sequential([keras.Input((STATE,)), hidden, keras.layers.Dense(outputs)], name=name)


def cart_poles(count: int) -> Any:
    """A vector environment of this many carts."""
    with extra("rl"):
        import gymnasium
    return gymnasium.make_vec(
        "CartPole-v1", count, vectorization_mode="vector_entry_point", max_episode_steps=LONGEST
    )


def main(
    epochs: PositiveInt = 8,
    batch_size: PositiveInt = 16,
    lr: PositiveFloat = 0.01,
    discount: Annotated[float, Field(ge=0, le=1)] = 0.995,
    entropy_bonus: NonNegativeFloat = 0.01,
    seed: NonNegativeInt = 0,
) -> None:
    """Trains a policy and its baseline on CartPole.

    Args:
        epochs: Epochs of the training; an epoch is 10 batches.
        batch_size: Episodes per batch.
        lr: Learning rate of both Adams.
        discount: Discount factor of a push, from 0 to 1.
        entropy_bonus: Weight of the entropy, which keeps the policy trying.
        seed: Seed of weights, actions and the carts' beginnings.
    """
    params = dict(locals())
    keras.utils.set_random_seed(seed)
    carts, rng = cart_poles(batch_size), np.random.default_rng(seed)
    policy, baseline = net(ACTIONS, "policy"), net(1, "baseline")
    optimizers = {"policy": keras.optimizers.Adam(lr), "baseline": keras.optimizers.Adam(lr)}
    loop = mka.Loop(policy, optimizers=optimizers, callbacks=[mka.MlflowLogger()], verbose=2)
    logits_of = tf.function(policy)

    def draw(state: np.ndarray) -> np.ndarray:
        logits = logits_of(state).numpy()
        return (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)  # ~ softmax(logits)

    def episodes() -> Iterator[tuple[np.ndarray, ...]]:
        for _ in range(BATCHES_PER_EPOCH):
            played = play(carts, draw)
            mean_return = np.float32(played.rewards.sum(axis=0).mean())
            followed = returns(played.rewards / LONGEST, discount)
            each = played.states, played.actions.astype(np.int32), followed
            yield (*(array[played.within] for array in each), mean_return)

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, STATE)),
            tf.TensorSpec((None,), tf.int32),
            tf.TensorSpec((None,)),
            tf.TensorSpec(()),
        ]
    )
    def train_step(states: Any, actions: Any, followed: Any, mean_return: Any) -> None:
        with tf.GradientTape() as tape:
            expected = tf.squeeze(baseline(states), axis=1)
            baseline_loss = tf.reduce_mean(tf.square(followed - expected))
        gradients = tape.gradient(baseline_loss, baseline.trainable_variables)
        optimizers["baseline"].apply(gradients, baseline.trainable_variables)

        advantages = followed - expected
        advantages /= tf.math.reduce_std(advantages) + 1e-6
        with tf.GradientTape() as tape:
            log_pi = tf.nn.log_softmax(policy(states))
            chosen = tf.gather(log_pi, actions, batch_dims=1)
            entropy = -tf.reduce_mean(tf.reduce_sum(tf.exp(log_pi) * log_pi, axis=1))
            loss = -tf.reduce_mean(advantages * chosen) - entropy_bonus * entropy
        gradients = tape.gradient(loss, policy.trainable_variables)
        optimizers["policy"].apply(gradients, policy.trainable_variables)
        loop.record(loss=loss, baseline_loss=baseline_loss, entropy=entropy)
        loop.record(episode_return=mean_return)

    with mka.technique("reinforce", params, seed=seed) as technique:
        carts.reset(seed=seed)
        for _ in loop.epochs(epochs):
            for batch in loop.batches(episodes()):
                train_step(*batch)

        def best(state: np.ndarray) -> np.ndarray:
            return logits_of(state).numpy().argmax(axis=1)

        test = play(cart_poles(TESTS), best, seed=10_000 + seed)
        found = test.rewards.sum(axis=0)
        scores = {"return": float(found.mean()), "return_std": float(found.std())}
        technique.finish(policy, test.states[0], name="policy", scores=scores)
        technique.conclude(
            f"The trained policy keeps the pole up for {scores['return']:.0f} of {LONGEST} pushes "
            f"on the mean of {TESTS} episodes (standard deviation {scores['return_std']:.0f}).",
            mka.Claim(
                "solved",
                f"mean return of {TESTS} fresh episodes with the best action throughout",
                scores["return"],
                at_least=475,  # where gymnasium calls the task solved
            ),
        )


if __name__ == "__main__":
    entry_point.run(main, extra="rl")
