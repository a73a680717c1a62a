"""Two losses, beside their definitions written as loops; the trainings are in test_catalogue."""

import numpy as np
import pytest
import tensorflow as tf

from projects.siamese import MARGIN, contrastive, triplet

RNG = np.random.default_rng(0)
LABELS = np.array([0, 1, 0, 2, 1, 0])
POINTS = RNG.normal(size=(6, 2)).astype(np.float32)
DISTANCES = np.linalg.norm(POINTS[:, None] - POINTS[None], axis=-1)
PAIRS = [(i, j) for i in range(6) for j in range(6)]
# A root of a sum of squares, their differences and a mean over 36, each rounded once or twice.
RELATIVE = 50 * float(np.finfo(np.float32).eps)


def test_contrastive_is_the_mean_of_both_kinds_of_pairs() -> None:
    same = [DISTANCES[i, j] ** 2 for i, j in PAIRS if LABELS[i] == LABELS[j]]
    other = [max(0.0, MARGIN - DISTANCES[i, j]) ** 2 for i, j in PAIRS if LABELS[i] != LABELS[j]]

    found = float(contrastive(LABELS, tf.constant(POINTS)))

    assert found == pytest.approx(np.mean(same) + np.mean(other), rel=RELATIVE)


def test_triplet_takes_the_hardest_partners_of_each_image() -> None:
    each = []
    for i in range(6):
        farthest = max(DISTANCES[i, j] for j in range(6) if LABELS[j] == LABELS[i])
        nearest = min(DISTANCES[i, j] for j in range(6) if LABELS[j] != LABELS[i])
        each.append(max(0.0, MARGIN + farthest - nearest))

    assert float(triplet(LABELS, tf.constant(POINTS))) == pytest.approx(np.mean(each), rel=RELATIVE)


@pytest.mark.parametrize("loss", [contrastive, triplet])
def test_equal_points_have_a_finite_gradient(loss) -> None:
    points = tf.Variable(np.zeros((4, 2), np.float32))
    with tf.GradientTape() as tape:
        value = loss(np.array([0, 0, 1, 1]), points)

    assert np.isfinite(tape.gradient(value, points)).all()
