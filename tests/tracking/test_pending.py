"""The queue on disk."""

from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from mlflow.entities import Metric

from mlflow_keras_adv.tracking import pending as pending_module
from mlflow_keras_adv.tracking.journal import About, Journal
from mlflow_keras_adv.tracking.pending import Flush, Pending, Receipt
from mlflow_keras_adv.tracking.records import End, Params, Points, Record, Refusal

ABOUT = About("run", "sqlite:///x.db", True, "host", 1)


@pytest.fixture
def journal(tmp_path: Path) -> Callable[[], Journal]:
    return lambda: Journal.create(tmp_path, ABOUT)


def points(*values: float) -> Points:
    return Points([Metric(f"m{value:g}", value, 5, 1) for value in values])


def taken(pending: Pending) -> list[Any]:
    found = []
    while (each := pending.take(timeout=0)) is not None:
        found.append(each)
    return found


def full_disk() -> Journal:
    raise OSError(28, "No space left on device")


def test_it_counts_what_is_put_and_not_settled(journal: Callable[[], Journal]) -> None:
    pending = Pending(journal)
    for item in (points(1, 2, 3), Params({"a": 1}), Flush(SimpleQueue()), End("FINISHED", 9)):
        pending.put(item)
    assert (pending.points, pending.records, pending.count()) == (3, 2, 5)
    assert pending.ended

    found = taken(pending)
    kinds = [type(each) if isinstance(each, Flush) else each.kind for each in found]
    assert kinds == [Points, Params, Flush, End]
    assert pending.is_empty()
    pending.acknowledge(found[0])
    assert (pending.points, pending.count()) == (0, 2)
    pending.release()


def test_the_receipt_adds_up(journal: Callable[[], Journal]) -> None:
    pending = Pending(journal)
    pending.put(points(1, 2, 3))
    pending.put(Refusal("inf", "an infinity", 2))
    pending.put(points(4))
    three, refused, _ = taken(pending)
    pending.refuse("m2", 1)
    pending.acknowledge(three)
    pending.refuse("inf", 2)
    pending.acknowledge(refused)

    assert pending.receipt() == Receipt(6, 2, 1, 3, {"m2": 1, "inf": 2})  # type: ignore[arg-type]
    assert str(pending.receipt()) == (
        "6 points produced, 2 delivered, 1 pending, 3 refused; refused: m2 (1), inf (2)"
    )
    pending.release()


def test_what_a_process_has_left_comes_first_and_is_counted(
    journal: Callable[[], Journal], tmp_path: Path
) -> None:
    pending = Pending(journal)
    items: list[Record] = [points(1, 2), Params({"a": 1}), points(3)]
    for item in items:
        pending.put(item)
    pending.acknowledge(taken(pending)[0])
    pending.release()

    (folder,) = tmp_path.iterdir()
    left = Journal.take_over(folder)
    again = Pending(journal, left)
    again.put(points(4))
    found = [again.record_of(entry) for entry in taken(again)]
    # What was settled is sent once more: the store drops what it holds.
    assert [list(map(str, item.metrics)) for item in found if isinstance(item, Points)] == [
        list(map(str, points(*values).metrics)) for values in ((1, 2), (3,), (4,))
    ]
    assert again.receipt().produced == 4
    again.release()


def test_an_emptied_journal_is_deleted_and_the_next_item_makes_another(
    journal: Callable[[], Journal], tmp_path: Path
) -> None:
    pending = Pending(journal)
    pending.put(points(1))
    pending.acknowledge(taken(pending)[0])
    pending.release()
    assert list(tmp_path.iterdir()) == []

    pending.put(points(2))
    assert len(list(tmp_path.iterdir())) == 1
    pending.release()
    assert pending.receipt() == Receipt(2, 1, 1, 0)


def test_without_a_journal_everything_goes_on_in_memory_and_is_lost_by_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pending_module, "POINTS_IN_MEMORY", 3)
    pending = Pending(full_disk)
    assert pending.put(points(1, 2)) is None
    error = pending.put(points(3, 4))
    assert error is not None
    assert "No space left" in str(error)
    assert pending.put(points(5)) is None
    assert pending.receipt() == Receipt(5, 0, 3, 2, {"m3": 1, "m4": 1})  # type: ignore[arg-type]

    pending.acknowledge(taken(pending)[0])
    pending.release()
    assert pending.receipt() == Receipt(5, 2, 0, 3, {"m3": 1, "m4": 1, "m5": 1})  # type: ignore[arg-type]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "MLFLOW_KERAS_ADV_HOME" in warning
