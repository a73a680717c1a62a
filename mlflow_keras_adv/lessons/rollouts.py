"""Episodes of many environments at once, and the returns that a policy learns from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Rollout:
    """One episode of each environment, side by side; the shorter ones are filled up.

    Attributes:
        states: Before each step, shape [steps, environments, ...].
        actions: What was done, integers [steps, environments].
        rewards: What it was worth, float32 [steps, environments]; 0 after an episode's end.
        within: Whether the step was made before the episode's end, bool [steps, environments].
    """

    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    within: np.ndarray


def play(
    environments: Any, choose: Callable[[np.ndarray], np.ndarray], seed: int | None = None
) -> Rollout:
    """Plays one episode of each environment.

    Args:
        environments: A vector environment of gymnasium; one that begins anew after its end is not
            listened to any more.
        choose: From states [environments, ...] to actions [environments].
        seed: Seed of the beginnings; None goes on with the environments' own random numbers.
    """
    state, _ = environments.reset(seed=seed)
    alive = np.ones(len(state), bool)
    states, actions, rewards, within = [], [], [], []
    while alive.any():
        action = choose(state)
        states.append(state)
        actions.append(action)
        within.append(alive)
        state, reward, ended, out_of_time, _ = environments.step(action)
        rewards.append(np.where(alive, reward, 0))
        alive = alive & ~(ended | out_of_time)
    return Rollout(
        np.stack(states), np.stack(actions), np.stack(rewards).astype(np.float32), np.stack(within)
    )


def returns(rewards: np.ndarray, discount: float) -> np.ndarray:
    """The discounted sum of what follows each step, that step included.

    Args:
        rewards: Shape [steps, environments].
        discount: What a reward is worth one step earlier, from 0 to 1.

    Returns:
        The shape and dtype of the rewards.
    """
    found = np.zeros_like(rewards)
    following = np.zeros_like(rewards[0])
    for step in range(len(rewards) - 1, -1, -1):
        following = rewards[step] + discount * following
        found[step] = following
    return found
