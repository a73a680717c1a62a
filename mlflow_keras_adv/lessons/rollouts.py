"""Episodes of many environments at once, and their discounted returns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Rollout:
    """One episode of each environment, side by side; the shorter ones are padded.

    Attributes:
        states: Before each step, shape [steps, environments, ...].
        actions: Integers [steps, environments].
        rewards: float32 [steps, environments]; 0 after an episode's end.
        within: Whether the step is part of the episode, bool [steps, environments].
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
        environments: A vector environment of gymnasium; steps after an automatic reset are ignored.
        choose: A policy: from states [environments, ...] to actions [environments].
        seed: Seed of the initial states; None continues the environments' own random numbers.
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
    """Computes the return of each step: the discounted sum of its reward and the later ones.

    Args:
        rewards: Shape [steps, environments].
        discount: Discount factor of a step, from 0 to 1.

    Returns:
        Returns of the shape and dtype of the rewards.
    """
    found = np.zeros_like(rewards)
    following = np.zeros_like(rewards[0])
    for step in range(len(rewards) - 1, -1, -1):
        following = rewards[step] + discount * following
        found[step] = following
    return found
