"""Where a training that goes on stands on the axis of its run."""

import pytest

from mlflow_keras_adv.tracking.axis import EarlierRecord, StepAxis, superseded_spans

KILLED_AT_15 = EarlierRecord(last_step=15, epoch_ends={1: 6, 2: 12})


@pytest.mark.parametrize(
    ("epochs", "batches", "step"),
    [
        (2, 12, 12),  # saved at the end of an epoch
        (2, 14, 14),  # saved in mid-epoch
        (1, 12, 12),  # saved on the last batch, before the end of the epoch was noted
        (2, 0, 12),  # weights without their optimizer
        (2, None, 12),  # an optimizer that does not tell
        (1, 15, 6),  # an optimizer that counts something else
        (3, 18, 18),  # saved before the epoch's end was on record
        (3, None, None),
        (0, 0, 0),  # nothing was saved
        (0, 4, 4),
        (0, 99, None),  # another model
        (0, None, None),
    ],
)
def test_the_place_of_a_checkpoint(epochs: int, batches: int | None, step: int | None) -> None:
    assert KILLED_AT_15.place_of(epochs, batches) == step


def test_of_a_count_that_stands_off_the_axis() -> None:
    later = EarlierRecord(last_step=115, epoch_ends={1: 106, 2: 112}, offset=100)
    assert later.place_of(2, 14) == 114
    assert later.place_of(0, 3) == 103
    unknown = EarlierRecord(last_step=15, epoch_ends={1: 6, 2: 12}, offset=None)
    assert unknown.place_of(2, 14) == 12
    assert unknown.place_of(0, 0) == 0


def test_a_training_after_a_complete_one_is_no_continuation() -> None:
    complete = EarlierRecord(last_step=12, epoch_ends={1: 6, 2: 12}, complete=True)
    assert complete.place_of(0, 0) is None


def test_only_the_first_training_goes_back() -> None:
    axis = StepAxis(KILLED_AT_15)
    superseded = axis.back_to_checkpoint(2, 13)
    assert axis.batches == 13
    assert superseded is not None
    ((first, last, before),) = superseded_spans({"superseded.2": superseded, "superseder": "-"})
    assert (first, last) == (14, 15)
    assert before > 1_600_000_000_000
    axis.steps_of(object(), 5)
    assert axis.back_to_checkpoint(1, 6) is None
    assert axis.batches == 18


def test_the_offset_is_told_when_it_changes() -> None:
    axis = StepAxis(EarlierRecord())
    assert axis.offset_tags(0, begins=True) == {}
    axis.steps_of(object(), 6)
    assert axis.offset_tags(6) == {}
    assert axis.offset_tags(3, begins=True) == {"step_offset": "3"}
    axis.steps_of(object(), 6)
    assert axis.offset_tags(9) == {}
    assert axis.offset_tags(15) == {"step_offset": "unknown"}, "two updates a batch"
    assert axis.offset_tags(21) == {}
