"""Few-shot tasks, by what they are made of."""

import numpy as np
import pytest

from mlflow_keras_adv.lessons.few_shot import Tasks

CLASSES = [np.arange(20.0).reshape(20, 1) + 100 * label for label in range(4)]


def test_a_task_learns_from_some_samples_and_is_judged_by_others() -> None:
    tasks = Tasks(CLASSES, ways=3, shots=2, queries=5)

    x, y, queries, labels = tasks.draw(np.random.default_rng(0), count=7)

    assert x.shape == (7, 6, 1)
    assert queries.shape == (7, 15, 1)
    for task in range(7):
        seen, asked = x[task, :, 0], queries[task, :, 0]
        assert len({*seen, *asked}) == 21
        of_class = {y[task, i]: seen[i] // 100 for i in range(6)}
        assert len(set(of_class.values())) == 3
        assert [of_class[label] for label in labels[task]] == (asked // 100).tolist()


@pytest.mark.parametrize(("ways", "shots"), [(5, 1), (2, 16)])
def test_more_than_there_is_cannot_be_asked_for(ways: int, shots: int) -> None:
    with pytest.raises(ValueError, match=f"got {ways} and {shots}, .* 4 classes and 15 samples"):
        Tasks(CLASSES, ways, shots, queries=5)
