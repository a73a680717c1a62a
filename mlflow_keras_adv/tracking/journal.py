"""Journal: what a run has produced and its store has not accepted yet, on disk.

An append-only log, in segments: each record is its length, its CRC-32 and its bytes, and reaches
the file in one write. A process that is killed loses none of them, since the operating system holds
the file; only a power cut can take what it had not written out. A last record that is torn, or a
file that was damaged, is detected by the checksums, and what stands before is kept. A database
would bring transactions that nothing here needs, and could be damaged as a whole.

A journal belongs to one process, which holds a lock on it as long as it lives. Folders are private
to the user, and hold no credentials.
"""

import contextlib
import errno
import json
import logging
import os
import shutil
import socket
import struct
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import IO, NamedTuple, Self

from mlflow_keras_adv.compat.system import after_fork_in_child, lock
from mlflow_keras_adv.tracking.journal_notes import Acknowledged, FullDiskNotes

_logger = logging.getLogger(__name__)

SEGMENT_BYTES = 4_000_000
_HEAD = struct.Struct(">II")  # length and CRC-32 of what follows
_ABOUT, _LOCK = "about.json", "lock"


@dataclass(frozen=True)
class About:
    """Whose journal it is.

    Attributes:
        run_id: The run.
        tracking_uri: Its store, without a password.
        ends_run: Whether the process was to end the run: if it died without a word, the run is
            KILLED.
        host: Name of the machine.
        pid: Id of the process.
        aside: Whether it holds files that were put off, and no values.
    """

    run_id: str
    tracking_uri: str
    ends_run: bool
    host: str
    pid: int
    aside: bool = False


class Place(NamedTuple):
    """Where a record is."""

    segment: int
    offset: int
    length: int

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.offset + _HEAD.size + self.length


@dataclass(frozen=True)
class Cursor:
    """A part of a segment, which any process may read: whole records, one after another.

    Attributes:
        folder: That of the journal.
        segment: The segment.
        begin: Where the first record begins.
        end: Where the last record ends.
    """

    folder: Path
    segment: int
    begin: int
    end: int

    def records(self) -> Iterator[bytes]:
        """The records.

        Raises:
            OSError: If one is damaged, or they are gone.
        """
        with _path(self.folder, self.segment).open("rb") as file:
            file.seek(self.begin)
            while file.tell() < self.end:
                record = _read_record(file)
                if record is None:
                    raise OSError(f"a record before {file.tell()} of {file.name} is damaged")
                yield record


class Journal:
    """One folder of records. Made by `create` and `take_over`.

    Not safe for several threads, but for `sweep`: its owner holds a lock.

    Attributes:
        folder: Where it is.
        about: Whose it is.
        acknowledged: What is gone from it.
        notes: What can be noted in it even if its disk is full.
    """

    def __init__(self, folder: Path, about: About, lock: IO[bytes]) -> None:
        self.folder = folder
        self.about = about
        self.acknowledged = Acknowledged.read(folder)
        self.notes = FullDiskNotes(folder)
        self._lock = lock
        self._segment = max([self.acknowledged.segment, *_segments(folder)])
        self._log: FileIO | None = None
        self._left: Counter[int] = Counter()  # records of each segment that are not settled
        self._finished: dict[int, Acknowledged] = {}  # of segments that have none left
        self._begun = self.acknowledged  # as of the last `acknowledge_for_good`

    @classmethod
    def create(cls, home: Path, about: About) -> Self:
        """Makes an empty one.

        Args:
            home: Folder of all journals.
            about: Whose it is.

        Raises:
            OSError: If the folder cannot be written.
        """
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _opening:
            folder = Path(tempfile.mkdtemp(prefix=f"{about.run_id}-", dir=home))  # mode 0700
            try:
                lock = _locked(folder)
                (folder / _ABOUT).write_text(json.dumps(asdict(about)))
            except OSError:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            _held.add(folder)
        return cls(folder, about, lock)

    @classmethod
    def take_over(cls, folder: Path) -> Self | None:
        """One that a process has left behind; None if a process holds it, or there is none."""
        with _opening:
            if folder in _held or not (folder / _ABOUT).exists():
                return None
            try:
                lock = _locked(folder)
            except OSError:
                return None
            try:
                about = About(**json.loads((folder / _ABOUT).read_text()))
                journal = cls(folder, about, lock)
            except (OSError, ValueError, TypeError) as error:
                lock.close()
                _logger.warning("The journal %s cannot be read: %r", folder, error)
                return None
            _held.add(folder)
        return journal

    def append(self, record: bytes) -> Place:
        """Writes a record.

        Raises:
            OSError: If it cannot be written; the journal is as before.
        """
        if self._log is None or self._log.tell() >= SEGMENT_BYTES:
            self._next_segment()
        assert self._log is not None
        offset = self._log.tell()
        entry = _HEAD.pack(len(record), zlib.crc32(record)) + record
        try:
            if self._log.write(entry) != len(entry):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._log.seek(offset)
            self._log.truncate()
            raise
        self._left[self._segment] += 1
        return Place(self._segment, offset, len(record))

    def read(self, place: Place) -> bytes:
        """A record.

        Raises:
            OSError: If it is damaged, or gone.
        """
        (record,) = self.cursor(place, place).records()
        return record

    def cursor(self, first: Place, last: Place) -> Cursor:
        """What stands from one record to another of the same segment."""
        return Cursor(self.folder, first.segment, first.offset, last.end)

    def records(self) -> Iterator[Place]:
        """All records that an earlier process has left, the oldest first.

        In a damaged segment, those before the damage, with a warning.
        """
        for segment in _segments(self.folder):
            path, offset = self._path(segment), self.acknowledged.begin_of(segment)
            if offset is None:
                path.unlink()  # its owner died between the two steps of `_delete`
                continue
            with path.open("rb") as file:
                file.seek(offset)
                while (record := _read_record(file)) is not None:
                    self._left[segment] += 1
                    yield Place(segment, offset, len(record))
                    offset = file.tell()
            if damaged := path.stat().st_size - offset:
                _logger.warning("The last %d bytes of %s are damaged: dropped.", damaged, path)

    def acknowledge(self, place: Place, settled: Acknowledged) -> None:
        """Notes that the store has accepted or refused a record, the oldest that was left.

        Args:
            place: The record.
            settled: What came of all values up to and including it.
        """
        self._left[place.segment] -= 1
        if self._left[place.segment] == 0:
            self._finished[place.segment] = settled.of(place.segment)

    def acknowledge_for_good(self, place: Place, settled: Acknowledged) -> None:
        """Writes down that a record is settled, so that it is not delivered again after a kill.

        Without, that is known of whole segments only. Needed before what the record refers to is
        deleted. Like `sweep`, it may have to wait for the disk.

        Args:
            place: The record, the last that was settled.
            settled: What came of all values up to and including it.
        """
        settled.segment, settled.begun = self.acknowledged.segment, place.segment
        settled.offset = place.end
        self._begun = settled
        with contextlib.suppress(OSError):  # a full disk: then the store is asked
            settled.write(self.folder)

    def rest(self, settled: Acknowledged) -> None:
        """Empties it: everything in it is settled. What came of it stays on record.

        Args:
            settled: What came of all values.
        """
        if not _segments(self.folder):
            return
        now = settled.of(self._segment)
        try:
            now.write(self.folder)
            if self._log is not None:
                self._log.close()
                self._log = None
            for segment in _segments(self.folder):
                self._path(segment).unlink(missing_ok=True)
        except OSError:  # a full disk; to send it again does no harm
            return
        self.acknowledged = now
        self._left.clear()
        self._finished.clear()

    def is_a_part(self) -> bool:
        """Whether the process that ends the run counts what was in this one, or has done so."""
        if self.about.ends_run:
            return False
        journals = journals_of(self.about.run_id, self.folder.parent)
        return self.notes.counted() is not None or any(about.ends_run for _, about in journals)

    def sweep(self) -> None:
        """Deletes the segments of which nothing is left.

        This alone of what a journal does during a training may have to wait for the disk. So the
        owner's lock is not needed: the thread that settles calls it, and no other.
        """
        for segment in sorted(self._finished):
            in_use = segment == self._segment and self._log is not None
            if not in_use and self._left[segment] == 0:
                self._delete(segment)

    def close(self, *, delete: bool, empty: bool = False) -> None:
        """Releases it, so that another process may take it over.

        Args:
            delete: Whether nothing in it is needed any more.
            empty: Whether it only says what came of its values, to the process that ends the run.
        """
        if self._log is not None:
            self._log.close()
            self._log = None
        if delete:
            shutil.rmtree(self.folder, ignore_errors=True)
        with _opening:
            _held.discard(self.folder)
            (left_here.discard if delete or empty else left_here.add)(self.folder)
            self._lock.close()

    def _next_segment(self) -> None:
        log = FileIO(self._path(self._segment + 1), "x+")
        if self._log is not None:
            self._log.close()
        self._log, self._segment = log, self._segment + 1

    def _delete(self, segment: int) -> None:
        settled = self._finished.pop(segment)
        if self._begun.begun > segment:  # more than that is known
            self._begun.segment = segment
            settled = self._begun
        try:
            settled.write(self.folder)  # first: from now on the segment is not read again
            self._path(segment).unlink(missing_ok=True)
        except OSError:  # a full disk; to send the segment again does no harm
            return
        self.acknowledged = settled
        del self._left[segment]

    def _path(self, segment: int) -> Path:
        return _path(self.folder, segment)


# The journals of this process: a lock of POSIX holds back other processes only.
_held: set[Path] = set()
# Those that it has released and not emptied.
left_here: set[Path] = set()
_opening = Lock()


def is_held_here(folder: Path) -> bool:
    """Whether this process holds the journal in a folder."""
    return folder in _held


def holds_records(folder: Path) -> bool:
    """Whether the journal in a folder holds any that may not be settled; False if it is gone."""
    return bool(_segments(folder))


def journals_of(run_id: str, home: Path) -> Iterator[tuple[Path, About]]:
    """The journals of a run on this machine, whoever holds them."""
    for folder in sorted(home.glob(f"{run_id}-*")):
        with contextlib.suppress(OSError, ValueError, TypeError):  # it may be gone by now
            yield folder, About(**json.loads((folder / _ABOUT).read_text()))


def is_ended_by_another(run_id: str, home: Path) -> bool:
    """Whether another process of this machine is at work on a run, and will end it."""
    host = socket.gethostname()
    return any(
        about.ends_run and about.host == host and _is_held_by_another(folder)
        for folder, about in journals_of(run_id, home)
    )


def _is_held_by_another(folder: Path) -> bool:
    with _opening:
        if folder in _held:
            return False
        try:
            _locked(folder).close()
        except OSError:
            return True
    return False


def peek(folder: Path) -> tuple[Acknowledged, list[bytes]]:
    """What is in a journal that another process holds and goes on with.

    Returns:
        What is known to be settled, and the records of which that is not known.

    Raises:
        OSError: If it is gone meanwhile.
    """
    settled, records = Acknowledged.read(folder), []
    for segment in _segments(folder):
        if (begin := settled.begin_of(segment)) is None:
            continue
        with _path(folder, segment).open("rb") as file:
            file.seek(begin)
            while (record := _read_record(file)) is not None:
                records.append(record)
    return settled, records


def _in_a_child() -> None:
    """A forked child holds no lock of its parent's, and what its parent left is not its own."""
    global _opening
    _opening = Lock()
    _held.clear()
    left_here.clear()


after_fork_in_child(_in_a_child)


def _locked(folder: Path) -> IO[bytes]:
    """A file that is locked until it is closed, or the process ends.

    Raises:
        OSError: If another process holds it.
    """
    file = (folder / _LOCK).open("ab")
    try:
        lock(file)
    except OSError:
        file.close()
        raise
    return file


def _path(folder: Path, segment: int) -> Path:
    return folder / f"{segment:06}.log"


def _segments(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.glob("*.log"))


def _read_record(file: IO[bytes]) -> bytes | None:
    """The next record; None at the end, or where the file is damaged."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    length, checksum = _HEAD.unpack(head)
    record = file.read(length)
    return record if len(record) == length and zlib.crc32(record) == checksum else None
