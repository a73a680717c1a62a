"""What attention sees and what it does not; the trainings are in test_catalogue."""

from pathlib import Path

import keras
import numpy as np
import pytest

from mlflow_keras_adv.lessons.sequences import PADDING, sequences
from projects.sequence import net


@pytest.mark.parametrize(("reach", "seen"), [(0, range(12)), (2, range(3, 8))])
def test_a_word_is_told_by_what_is_within_reach_and_never_by_padding(
    reach: int, seen: range
) -> None:
    keras.utils.set_random_seed(0)
    model = net(8, reach)
    row = np.arange(5, 17)[None]
    before = np.array(model(row))[0, 5]

    changed = []
    for place in range(12):
        other = row.copy()
        other[0, place] = 28
        if not np.allclose(model(other)[0, 5], before, atol=1e-6):
            changed.append(place)
    assert changed == list(seen)

    padded = np.pad(row, ((0, 0), (0, 9)))
    np.testing.assert_allclose(model(padded)[0, 5], before, atol=1e-6)
    shorter = np.where(np.arange(12) < 6, row, PADDING)  # what lay behind is gone
    assert not np.allclose(model(shorter)[0, 5], before, atol=1e-6)


def test_a_file_holds_all_of_it(tmp_path: Path) -> None:
    model, x = net(8, 3), sequences(4, 16, seed=0)[0]
    model.save(tmp_path / "net.keras")
    loaded = keras.saving.load_model(tmp_path / "net.keras")

    assert loaded.layers[2].reach == 3
    np.testing.assert_array_equal(loaded(x), model(x))
