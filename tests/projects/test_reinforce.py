"""What the policy learns from, on carts that follow a script; the training is in test_catalogue."""

import sys

import mlflow
import numpy as np
import pytest

from mlflow_keras_adv import UserError
from projects import reinforce


class Carts:
    """Two carts: the pole of the first falls at its second push, the other's time is up at four."""

    def reset(self, seed: int | None = None) -> tuple[np.ndarray, dict[str, object]]:
        self.pushes = 0
        return np.zeros((2, 4), np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, ...]:
        self.pushes += 1
        fell = np.array([self.pushes == 2, False])
        out_of_time = np.array([False, self.pushes == 4])
        # After its end a cart begins anew, and goes on being pushed.
        return np.full((2, 4), self.pushes, np.float32), np.ones(2), fell, out_of_time, {}


def test_an_episode_ends_where_its_pole_falls_or_its_time_is_up() -> None:
    states, actions, rewards = reinforce.play(Carts(), lambda state: np.array([0, 1]))

    assert rewards.T.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert states[:, 0, 0].tolist() == [0, 1, 2, 3]  # the state before each push
    assert actions.tolist() == [[0, 1]] * 4


def test_a_return_is_the_discounted_sum_of_what_follows() -> None:
    rewards = np.array([[1, 1], [1, 1], [0, 1]], np.float32)

    found = reinforce.returns_from(rewards, discount=0.5)

    assert found.T.tolist() == [[1.5, 1, 0], [1.75, 1.5, 1]]  # halves: exact in float32


def test_without_gymnasium_one_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, experiment: str, client: mlflow.MlflowClient
) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)

    with pytest.raises(UserError, match=r'gymnasium .* pip install -e "\.\[rl\]"'):
        reinforce.main(epochs=1)

    assert client.search_runs([experiment]) == []
