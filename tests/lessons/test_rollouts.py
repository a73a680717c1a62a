"""What a policy learns from, on carts that follow a script."""

import numpy as np

from mlflow_keras_adv.lessons.rollouts import play, returns


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
    played = play(Carts(), lambda state: np.array([0, 1]))

    assert played.rewards.T.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert played.within.T.tolist() == [[True, True, False, False], [True] * 4]
    assert played.states[:, 0, 0].tolist() == [0, 1, 2, 3]  # the state before each push
    assert played.actions.tolist() == [[0, 1]] * 4


def test_a_return_is_the_discounted_sum_of_what_follows() -> None:
    rewards = np.array([[1, 1], [1, 1], [0, 1]], np.float32)

    found = returns(rewards, discount=0.5)

    assert found.T.tolist() == [[1.5, 1, 0], [1.75, 1.5, 1]]  # halves: exact in float32
