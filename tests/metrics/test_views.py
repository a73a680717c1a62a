"""What there is to be seen of each kind of task, against scikit-learn, Keras and NumPy."""

from typing import Any

import keras
import numpy as np
import pytest
import sklearn.metrics as sk

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.metrics.task import kind_of
from mlflow_keras_adv.metrics.views.by_kind import view_of
from mlflow_keras_adv.metrics.views.numbers import quantiles
from mlflow_keras_adv.metrics.views.outputs import Known, seen
from mlflow_keras_adv.metrics.views.pictures import confusion_figure, pixels, samples_figure
from mlflow_keras_adv.metrics.views.view import Output, View, like_answers, spread

RNG = np.random.default_rng(0)
N = 40
NUMBERS = RNG.normal(size=(N, 3))
GUESSES = NUMBERS + RNG.normal(scale=0.5, size=(N, 3))
YES = RNG.integers(0, 2, N)
LOGITS = 2 * YES - 1 + RNG.normal(scale=1.5, size=N)
SHARES = 1 / (1 + np.exp(-LOGITS))
WEIGHTS = np.where(np.arange(N) % 5 == 0, 0.0, RNG.uniform(0.5, 2, N))
KEPT = WEIGHTS > 0


def drawn(view: View) -> set[str]:
    """Draws every figure."""
    for draw in view.figures.values():
        assert pixels(draw()).std() > 0
    return set(view.figures)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("targets", [1, 3])
def test_a_regression_is_measured_as_scikit_learn_does(targets: int, weighted: bool) -> None:
    true, found = NUMBERS[:, :targets], GUESSES[:, :targets]
    weights = WEIGHTS if weighted else None
    view = view_of("regression", Output(true, found, weights))
    rows = KEPT if weighted else slice(None)
    arguments: Any = (true[rows], found[rows])
    named: Any = {"sample_weight": WEIGHTS[rows] if weighted else None}
    assert view.numbers["mae"] == pytest.approx(sk.mean_absolute_error(*arguments, **named))
    mean = sk.mean_squared_error(*arguments, **named)
    assert view.numbers["rmse"] == pytest.approx(np.sqrt(mean))
    assert view.numbers["r2"] == pytest.approx(sk.r2_score(*arguments, **named))
    assert view.directions["r2"] == "max"
    assert view.directions["error_p90"] == "min"
    r2 = sk.r2_score(*arguments, multioutput="raw_values", **named)
    np.testing.assert_allclose(view.tables["per_target"]["r2"], r2)
    if not weighted:
        off = np.abs(true - found).reshape(-1)
        assert view.numbers["error_p90"] == np.quantile(off, 0.9, method="inverted_cdf")
    assert drawn(view) == {"predicted_over_true", "residuals"}
    off = np.abs(found - true).mean(axis=1)
    worst = [row for row in np.argsort(-off, kind="stable") if not weighted or KEPT[row]]
    assert view.rows["index"].tolist() == worst
    column = "error" if targets == 1 else "error/2"
    np.testing.assert_allclose(view.rows[column], (found - true)[worst, -1])


def test_labels_of_a_regression_may_lack_the_axis_of_the_target() -> None:
    flat = view_of("regression", Output(NUMBERS[:, 0], GUESSES[:, :1]))
    assert flat.numbers == view_of("regression", Output(NUMBERS[:, :1], GUESSES[:, 0])).numbers
    with pytest.raises(ValueError, match=r"labels of shape \(40, 3\) for answers of shape \(40, 1"):
        like_answers(NUMBERS, GUESSES[:, :1])
    with pytest.raises(ValueError, match=r"labels of shape \(40,\) for answers of shape \(40, 3"):
        like_answers(NUMBERS[:, 0], GUESSES)


def test_what_is_not_finite_and_a_single_sample_are_told() -> None:
    broken = GUESSES.copy()
    broken[3, 1] = np.nan
    view = view_of("regression", Output(NUMBERS, broken))
    assert np.isnan(view.numbers["mae"])
    assert "r2" not in view.numbers
    assert view.rows["index"].iloc[0] == 3
    assert not drawn(view)
    assert [each.partition(":")[0] for each in view.unseen] == ["R²", "Residuals"]
    alone = view_of("regression", Output(NUMBERS[:1], GUESSES[:1]))
    assert "r2" not in alone.numbers
    assert np.isfinite(alone.numbers["mae"])


def test_quantiles_are_those_of_numpy_and_weights_count_as_copies() -> None:
    values, copies = RNG.normal(size=30), RNG.integers(1, 4, 30)
    percents = (1, 25, 50, 90, 99)
    expected = np.quantile(
        np.repeat(values, copies), np.array(percents) / 100, method="inverted_cdf"
    )
    np.testing.assert_array_equal(quantiles(values, copies.astype(float), percents), expected)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scale", ["probabilities", "logits", "margins"])
def test_a_binary_answer_is_measured_as_scikit_learn_does(scale: Any, weighted: bool) -> None:
    answers = SHARES if scale == "probabilities" else LOGITS
    labels = np.where(YES, 1, -1) if scale == "margins" else YES
    weights = WEIGHTS if weighted else None
    view = view_of("binary", Output(labels[:, None], answers[:, None], weights, scale=scale))
    rows = KEPT if weighted else slice(None)
    named: Any = {"sample_weight": WEIGHTS[rows] if weighted else None}
    label, chosen = YES[rows], (LOGITS > 0)[rows]
    assert view.numbers["threshold"] == (0.5 if scale == "probabilities" else 0)
    expected = {
        "accuracy": sk.accuracy_score(label, chosen, **named),
        "roc_auc": sk.roc_auc_score(label, answers[rows], **named),
        "average_precision": sk.average_precision_score(label, answers[rows], **named),
        "precision": sk.precision_score(label, chosen, **named),
        "recall": sk.recall_score(label, chosen, **named),
        "f1": sk.f1_score(label, chosen, **named),
    }
    assert {key: view.numbers[key] for key in expected} == pytest.approx(expected)
    counts = view.tables["confusion_counts"][[0, 1]].to_numpy()
    np.testing.assert_allclose(counts, sk.confusion_matrix(label, chosen, **named))
    figures = {"confusion_matrix", "roc", "precision_recall"}
    if scale != "margins":
        figures |= {"reliability"}
        assert set(view.rows) == {"index", "label", "predicted", "probability", "correct"}
        index = view.rows["index"].to_numpy()
        np.testing.assert_allclose(view.rows["probability"], SHARES[index], rtol=1e-12)
    assert drawn(view) == figures
    assert view.rows["correct"].is_monotonic_increasing


def test_curves_need_both_labels_and_the_sentence_says_so() -> None:
    view = view_of("binary", Output(np.ones(5), SHARES[:5]))
    assert "roc_auc" not in view.numbers
    assert view.unseen == ["Curves and their areas: all labels are the same."]
    assert drawn(view) == {"confusion_matrix", "reliability"}
    unknown = np.where(np.arange(5) == 1, np.nan, SHARES[:5])
    view = view_of("binary", Output(YES[:5], unknown))
    assert view.rows["index"].iloc[0] == 1
    assert view.rows["predicted"].iloc[0] is None
    right = (YES[:5] == (SHARES[:5] > 0.5)) & (np.arange(5) != 1)
    assert view.numbers["accuracy"] == right.mean()


def test_several_labels_are_measured_each() -> None:
    labels = RNG.integers(0, 2, (N, 4))
    labels[:, 3] = 0
    answers = 1 / (1 + np.exp(-(2 * labels - 1 + RNG.normal(scale=1.5, size=(N, 4)))))
    view = view_of("multi-label", Output(labels, answers, WEIGHTS, names=list("abcd")))
    table = view.tables["per_label"]
    chosen, weight = (answers > 0.5)[KEPT], WEIGHTS[KEPT]
    for place in range(3):
        label, found = labels[KEPT, place], chosen[:, place]
        row = table.iloc[place]
        assert row["f1"] == pytest.approx(sk.f1_score(label, found, sample_weight=weight))
        mean = sk.average_precision_score(label, answers[KEPT, place], sample_weight=weight)
        assert row["average_precision"] == pytest.approx(mean)
    assert np.isnan(table["average_precision"].iloc[3])
    assert view.unseen == ["The average precision of d: no sample has it."]
    right = keras.metrics.BinaryAccuracy()
    right.update_state(labels, answers, sample_weight=WEIGHTS)
    assert view.numbers["binary_accuracy"] == pytest.approx(float(right.result()), rel=1e-6)
    exact = sk.accuracy_score(labels[KEPT], chosen, sample_weight=weight)
    assert view.numbers["exact_match"] == pytest.approx(exact)
    assert drawn(view) == {"per_label", "average_precision"}
    assert view.rows["wrong"].is_monotonic_decreasing
    assert set(", ".join(view.rows["labels"]).replace(", ", "")) <= set("abc")


@pytest.mark.parametrize("sigmoid", [False, True])
def test_areas_are_measured_as_keras_and_scikit_learn_do(sigmoid: bool) -> None:
    images = RNG.uniform(size=(6, 5, 4, 3))
    classes = 2 if sigmoid else 3
    labels = RNG.integers(0, classes, (6, 5, 4))
    scores = np.eye(classes)[labels] + RNG.normal(scale=0.7, size=(6, 5, 4, classes))
    answers = scores[..., 1:] if sigmoid else scores
    given = labels[..., None] if sigmoid else labels
    view = view_of("segmentation", Output(given, answers, inputs=images))
    chosen = (answers[..., 0] > 0.5).astype(int) if sigmoid else scores.argmax(axis=-1)
    iou = sk.jaccard_score(labels.reshape(-1), chosen.reshape(-1), average=None)
    np.testing.assert_allclose(view.tables["per_class"]["iou"], iou)
    known = keras.metrics.MeanIoU(classes)
    known.update_state(labels, chosen)
    assert view.numbers["mean_iou"] == pytest.approx(float(known.result()), rel=1e-6)
    assert view.numbers["accuracy"] == np.mean(labels == chosen)
    assert drawn(view) == {"iou", "confusion_matrix", "overlays"}
    first = view.rows["index"].iloc[0]
    each = sk.jaccard_score(labels[first].reshape(-1), chosen[first].reshape(-1), average=None)
    assert view.rows["mean_iou"].iloc[0] == pytest.approx(each.mean())


def test_areas_that_are_decided_each_for_itself_and_pixels_that_are_none() -> None:
    labels = RNG.integers(0, 2, (4, 5, 5, 3))
    answers = np.clip(labels + RNG.normal(scale=0.4, size=labels.shape), 0, 1)
    view = view_of("segmentation", Output(labels, answers))
    flat = (labels.reshape(-1, 3), (answers > 0.5).reshape(-1, 3))
    np.testing.assert_allclose(
        view.tables["per_class"]["iou"], sk.jaccard_score(*flat, average=None)
    )
    assert drawn(view) == {"iou", "overlays"}

    classes = RNG.integers(0, 3, (4, 5, 5))
    scores = np.eye(3)[classes] + RNG.normal(size=(4, 5, 5, 3))
    loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=255)
    marked = classes.copy()
    marked[:, 0] = 255
    (found,) = seen(Known(loss=loss), None, marked, None, scores).views.values()
    (part,) = seen(Known(loss=loss), None, classes[:, 1:], None, scores[:, 1:]).views.values()
    assert found.numbers == pytest.approx(part.numbers)


def test_tags_count_where_nothing_masks_them() -> None:
    labels, mask = RNG.integers(0, 3, (8, 6)), np.arange(6) < RNG.integers(2, 6, 8)[:, None]
    scores = np.eye(3)[labels] + RNG.normal(size=(8, 6, 3))
    hidden = np.where(mask, labels, -1)  # what is masked may be no class
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    known = Known(loss=loss, names=["noun", "verb", "mark"])
    found = seen(known, np.zeros((8, 6)), hidden, None, scores, [mask])
    assert found.said() == "tagging"
    view = found.views[""]
    chosen = scores.argmax(axis=-1)
    assert view.numbers["accuracy"] == pytest.approx(np.mean(labels[mask] == chosen[mask]))
    table = view.tables["per_class"]
    precision, recall, f1, support = sk.precision_recall_fscore_support(labels[mask], chosen[mask])
    np.testing.assert_allclose(table[["precision", "recall", "f1"]].T, [precision, recall, f1])
    np.testing.assert_allclose(table["samples"], support)
    first = view.rows.iloc[0]
    row = first["index"]
    names = np.array(["noun", "verb", "mark"])
    assert first["label"].split() == names[labels[row][mask[row]]].tolist()
    assert first["predicted"].split() == names[chosen[row][mask[row]]].tolist()
    assert first["wrong"] == (labels[row] != chosen[row])[mask[row]].sum()
    drawn(view)


def test_a_forecast_has_its_error_for_each_step_ahead() -> None:
    true = RNG.normal(size=(N, 5))
    found = true + RNG.normal(size=(N, 5)) * np.arange(1, 6) + 0.5
    before = RNG.normal(size=(N, 7, 1))
    view = view_of("forecast", Output(true, found, inputs=before))
    table = view.tables["per_step"]
    np.testing.assert_allclose(table["mae"], np.abs(true - found).mean(axis=0))
    np.testing.assert_allclose(table["bias"], (found - true).mean(axis=0))
    np.testing.assert_allclose(table["rmse"], np.sqrt(((true - found) ** 2).mean(axis=0)))
    assert view.numbers["mae"] == pytest.approx(sk.mean_absolute_error(true, found))
    assert drawn(view) == {"error_per_step", "series"}
    wide = view_of("forecast", Output(true.reshape(8, 5, 5), found.reshape(8, 5, 5)))
    assert wide.numbers["mae"] == pytest.approx(view.numbers["mae"])


@pytest.mark.parametrize("shape", [(N, 6), (N, 4, 4), (N, 4, 4, 3)])
def test_a_reconstruction_is_shown_beside_what_was_given(shape: tuple[int, ...]) -> None:
    given = RNG.uniform(size=shape)
    made = given + RNG.normal(scale=0.2, size=shape)
    found = seen(Known(loss="binary_crossentropy"), given, given, None, made)
    assert found.said() == "reconstruction"
    view = found.views[""]
    assert view.numbers["rmse"] == pytest.approx(np.sqrt(np.mean((given - made) ** 2)))
    off = np.abs(given - made).reshape(N, -1).mean(axis=1)
    assert view.rows["index"].iloc[0] == off.argmax()
    assert drawn(view) == {"pairs"}
    assert seen(Known(), given, None, None, made).views[""].numbers == view.numbers


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weights of shape \(3,\) for answers at \(4, 2\)"):
        spread(np.ones(3), (4, 2))
    np.testing.assert_array_equal(spread(np.arange(4.0)[:, None], (4,)), np.arange(4.0))
    with pytest.raises(ValueError, match="All samples are masked"):
        view_of("regression", Output(NUMBERS, GUESSES, np.zeros(N)))


LOSSES = keras.losses
CLASSES = RNG.integers(0, 3, N)


@pytest.mark.parametrize(
    ("loss", "labels", "answers", "kind"),
    [
        ("mse", NUMBERS, GUESSES, "regression"),
        (LOSSES.Huber(), NUMBERS[:, 0], GUESSES[:, :1], "regression"),
        ("bce", YES, SHARES[:, None], "binary"),
        ("hinge", 2 * YES - 1, LOGITS, "binary"),
        ("binary_crossentropy", np.ones((N, 3)), GUESSES, "multi-label"),
        ("binary_crossentropy", SHARES[:, None], SHARES[:, None], "regression"),  # no yes and no
        ("sparse_categorical_crossentropy", CLASSES, GUESSES, "classification"),
        (LOSSES.CategoricalFocalCrossentropy(), np.eye(3)[CLASSES], GUESSES, "classification"),
        ("sparse_categorical_crossentropy", np.ones((2, 5)), np.ones((2, 5, 3)), "tagging"),
        ("bce", np.ones((2, 5, 1)), np.ones((2, 5, 1)), "tagging"),
        ("bce", np.ones((2, 5, 4, 1)), np.ones((2, 5, 4, 1)), "segmentation"),
        ("sparse_categorical_crossentropy", np.ones((2, 5, 4)), np.ones((2, 5, 4, 3)),
         "segmentation"),
        (None, CLASSES, GUESSES, "classification"),
        (None, NUMBERS, GUESSES, "regression"),
        (None, CLASSES, LOGITS, "regression"),  # counts
    ],
)  # fmt: skip
def test_the_kind_is_what_loss_and_shapes_say(
    loss: Any, labels: Any, answers: Any, kind: str
) -> None:
    assert kind_of(labels, answers, loss=loss) == kind


def test_where_the_kind_is_open_it_is_asked_for() -> None:
    with pytest.raises(UserError, match=r'say task="classification", "binary"'):
        kind_of(YES, SHARES)
    assert kind_of(YES, SHARES, ending="sigmoid") == "binary"
    assert kind_of(YES, SHARES, hint="classes") == "binary"
    assert kind_of(YES, SHARES, hint="regression") == "regression"
    one_hot = np.eye(3)[CLASSES]
    with pytest.raises(UserError, match="nothing says whether"):
        kind_of(one_hot, GUESSES)
    assert kind_of(one_hot, one_hot) == "classification"
    assert kind_of(one_hot, GUESSES, ending="softmax") == "classification"
    assert kind_of(one_hot, GUESSES, ending="sigmoid") == "multi-label"
    with pytest.raises(UserError, match=r"labels of shape \(40, 2\).*answers of shape \(40, 3\)"):
        kind_of(NUMBERS[:, :2], GUESSES)


def test_outputs_are_told_and_shown_each() -> None:
    answers = {"price": GUESSES[:, :1], "kind": np.eye(3)[CLASSES], "extra": GUESSES}
    y = {"price": NUMBERS[:, 0], "kind": CLASSES}
    known = Known(loss={"price": "mse", "kind": "sparse_categorical_crossentropy"})
    found = seen(known, None, y, {"kind": WEIGHTS}, answers)
    assert found.said() == "price: regression, kind: classification"
    assert found.views["kind"].numbers["accuracy"] == 1
    assert found.views["kind"].tables["per_class"]["samples"].sum() == pytest.approx(WEIGHTS.sum())
    listed = Known(outputs=["price", "kind"], loss=["mse", "sparse_categorical_crossentropy"])
    pair = [answers["price"], answers["kind"]]
    same = seen(listed, None, [NUMBERS[:, 0], CLASSES], None, pair)
    assert same.views["price"].numbers == found.views["price"].numbers
    asked = seen(Known(task={"price": "regression", "kind": "regression"}), None, y, None, answers)
    assert asked.kinds["kind"] == "regression"
    assert asked.refused[0].startswith("output 'kind': Received labels of shape (40,)")
    with pytest.raises(ValueError, match="something for prize; the outputs are price"):
        seen(known, None, {"prize": CLASSES}, None, answers)
    with pytest.raises(ValueError, match="one ndarray for the outputs price"):
        seen(known, None, CLASSES, None, answers)


def test_the_figures_show_counts_and_mark_what_is_wrong() -> None:
    counts = np.array([[5, 1], [0, 7]])
    (axes,) = confusion_figure(counts, ["cat", "dog"]).axes
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (0, 0): "5",
        (1, 0): "1",
        (1, 1): "7",
    }
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    assert axes.get_title() == "92.3% of 13 correct"
    assert not confusion_figure(np.eye(30, dtype=int), range(30)).axes[0].texts

    images = np.repeat(np.arange(30.0), 16).reshape(30, 4, 4)
    figure = samples_figure(images, ["a"] * 30, np.arange(30) > 0)
    (axes,) = figure.axes
    assert [text.get_color() for text in axes.texts] == ["red"] + ["black"] * 24
    shades, sizes = np.unique(axes.images[0].get_array(), return_counts=True)
    np.testing.assert_allclose(shades, np.arange(25) / 24, rtol=1e-15)
    assert sizes[:-1].tolist() == [16] * 24  # white is also what lies between the images
    pixels_of = pixels(figure)
    assert pixels_of.dtype == np.uint8
    assert pixels_of.shape == (800, 650, 3)
