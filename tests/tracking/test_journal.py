"""The log on disk: what a killed process leaves, and what is damaged."""

import json
import signal
import stat
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from mlflow_keras_adv.tracking import journal as journal_module
from mlflow_keras_adv.tracking.journal import About, Journal
from mlflow_keras_adv.tracking.journal_notes import Acknowledged
from tests.warm import PYTHON

ABOUT = About("run", "sqlite:///x.db", True, "host", 1)


def left_by(folder: Path) -> Journal:
    found = Journal.take_over(folder)
    assert found is not None
    return found


def contents(journal: Journal) -> list[bytes]:
    return [journal.read(place) for place in journal.records()]


def contents_of(folder: Path) -> list[bytes]:
    journal = left_by(folder)
    found = contents(journal)
    journal.close(delete=False)
    return found


def test_records_are_read_back_in_order_by_who_takes_it_over(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, ABOUT)
    places = [journal.append(record) for record in (b"one", b"", b"three" * 1000)]
    assert [journal.read(place) for place in places] == [b"one", b"", b"three" * 1000]
    journal.close(delete=False)

    again = left_by(journal.folder)
    assert again.about == ABOUT
    assert contents(again) == [b"one", b"", b"three" * 1000]
    again.append(b"four")
    again.close(delete=False)
    last = left_by(journal.folder)
    assert contents(last)[-1] == b"four"
    last.close(delete=True)
    assert not journal.folder.exists()


def test_it_is_private(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "home" / "journals", ABOUT)
    journal.append(b"x")
    assert stat.S_IMODE(journal.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(journal.folder.parent.stat().st_mode) == 0o700
    journal.close(delete=True)


@pytest.mark.parametrize("damage", ["cut", "flipped", "garbage"])
def test_a_damaged_tail_is_dropped_and_said(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal.create(tmp_path, ABOUT)
    journal.append(b"first")
    journal.append(b"second")
    journal.close(delete=False)
    (log,) = journal.folder.glob("*.log")
    data = log.read_bytes()
    log.write_bytes(
        {"cut": data[:-1], "flipped": data[:-1] + b"X", "garbage": data + b"\xff" * 20}[damage]
    )

    again = left_by(journal.folder)
    assert contents(again) == [b"first", b"second"][: 2 if damage == "garbage" else 1]
    assert "damaged: dropped" in caplog.text
    again.append(b"third")  # goes to a segment of its own
    again.close(delete=False)
    assert contents_of(journal.folder)[-1] == b"third"


def test_nobody_takes_over_what_a_process_holds(tmp_path: Path) -> None:
    mine = Journal.create(tmp_path, ABOUT)
    assert Journal.take_over(mine.folder) is None
    program = f"""
from pathlib import Path
from mlflow_keras_adv.tracking.journal import Journal
print(Journal.take_over(Path({str(mine.folder)!r})))
"""
    command = [PYTHON, "-c", program]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "None"
    mine.close(delete=True)
    assert Journal.take_over(mine.folder) is None


@pytest.mark.quick
def test_a_killed_process_has_lost_no_record_and_its_lock(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from mlflow_keras_adv.tracking.journal import About, Journal
journal = Journal.create(Path({str(tmp_path)!r}), About("run", "", True, "host", 1))
for number in range(1000):
    journal.append(str(number).encode())
os.kill(os.getpid(), signal.SIGKILL)
"""
    process = subprocess.run([PYTHON, "-c", program], check=False)
    assert process.returncode == -signal.SIGKILL
    (folder,) = tmp_path.iterdir()
    assert contents_of(folder) == [str(number).encode() for number in range(1000)]


def test_segments_of_which_nothing_is_left_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 100)
    journal = Journal.create(tmp_path, ABOUT)
    places = [journal.append(b"x" * 40) for _ in range(30)]
    assert len(list(journal.folder.glob("*.log"))) == 10
    for number, place in enumerate(places[:-1], 1):
        journal.acknowledge(place, Acknowledged(points=number, refused=Counter({"inf": number})))
        journal.sweep()
    assert len(list(journal.folder.glob("*.log"))) == 1
    journal.close(delete=False)

    # The counts are those at the end of the last segment that is gone, so that nothing counts twice
    # when the rest is read again.
    again = left_by(journal.folder)
    assert again.acknowledged.points == 27
    assert again.acknowledged.refused == {"inf": 27}
    assert len(contents(again)) == 3
    again.close(delete=True)


def test_a_segment_that_was_settled_when_its_owner_died_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal.create(tmp_path, ABOUT)
    journal.append(b"settled")
    journal.close(delete=False)
    settled = {"segment": 1, "points": 1, "refused_points": 0, "refused": {}}
    (journal.folder / "settled.json").write_text(json.dumps(settled))

    again = left_by(journal.folder)
    assert contents(again) == []
    assert list(again.folder.glob("*.log")) == []
    again.close(delete=True)


def test_a_record_that_does_not_fit_the_disk_leaves_the_others_whole(tmp_path: Path) -> None:
    program = f"""
import resource
from pathlib import Path
from mlflow_keras_adv.tracking.journal import About, Journal
journal = Journal.create(Path({str(tmp_path / "limited")!r}), About("run", "", True, "host", 1))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
journal.append(b"a" * 500)
try:
    journal.append(b"b" * 2000)
except OSError as error:
    print("OSError")
journal.append(b"c" * 100)
journal.close(delete=False)
"""
    command = [PYTHON, "-c", program]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "OSError"
    (folder,) = (tmp_path / "limited").iterdir()
    assert contents_of(folder) == [b"a" * 500, b"c" * 100]


def test_one_that_cannot_be_read_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal.create(tmp_path, ABOUT)
    journal.close(delete=False)
    (journal.folder / "about.json").write_text("{")
    assert Journal.take_over(journal.folder) is None
    assert "cannot be read" in caplog.text
    assert list(journal.folder.iterdir())


def test_a_run_that_ended_when_nothing_could_be_written_is_known_to_have_ended(
    tmp_path: Path,
) -> None:
    journal = Journal.create(tmp_path, ABOUT)
    assert journal.notes.ended() is None
    journal.notes.mark_ended("FINISHED")
    journal.notes.mark_lost({"batch/loss": 3, "a-b": 4})
    journal.close(delete=False)
    again = left_by(journal.folder)
    assert again.notes.ended() == "FINISHED"
    assert again.notes.take_lost() == {"batch/loss": 3, "a-b": 4}
    assert again.notes.take_lost() == {}
    again.close(delete=True)
