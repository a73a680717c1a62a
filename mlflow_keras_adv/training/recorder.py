"""StepRecorder: a row of numbers per training step, written inside the step, read in bulk.

A training step that is compiled cannot call Python, and reading a device value after each step
makes the step wait. So the numbers of a step go into a table of TensorFlow variables by ordinary
graph operations, and the host reads many rows at once: at the end of an epoch, every few seconds,
or when the table is nearly full.

A traced graph cannot be un-wrapped: it goes on writing into the variables it was traced with. Hence
a table belongs to the object whose steps it records, usually an optimizer, and is found again by
every later `fit` or loop (`recorder_of`). For the same reason it does not grow: names that it has
no column for go to further tables, which graphs that were traced before know nothing of.
"""

import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from mlflow_keras_adv.training.aside import aside, in_branch_for_xla
from mlflow_keras_adv.training.cluster import in_first_replica

CAPACITY = 1024
WIDTH = 32

# A cell that no one wrote. Not NaN, which a loss or a norm can be; none is the lowest of float32.
ABSENT = np.finfo(np.float32).min


@dataclass(frozen=True)
class Rows:
    """The rows of a table.

    Attributes:
        count: Number of rows, one per training batch, in the order of the batches.
        columns: Per name a masked float32 array of shape `[count]`; masked where that batch wrote
            nothing.
    """

    count: int
    columns: Mapping[str, "np.ma.MaskedArray[Any, Any]"]

    def without_last(self) -> "Rows":
        """All but the last row."""
        columns = {name: column[:-1] for name, column in self.columns.items()}
        return Rows(self.count - 1, columns)


class StepRecorder:
    """A table of float32 cells, with a row per training batch and a column per value.

    `advance` and `write` are graph operations: they may be called eagerly, inside a `tf.function`,
    in a branch of `tf.cond` and under XLA. `advance_on_host` and `read` are for the host.

    Args:
        capacity: Rows that fit between two reads; beyond it the oldest are overwritten.
        width: Columns of the first table. Each further one, made when the others are full, doubles
            their number.
    """

    def __init__(self, capacity: int = CAPACITY, width: int = WIDTH) -> None:
        self.capacity = capacity
        self._width = width
        self._names: dict[str, tuple[int, int]] = {}  # number of the table, and its column
        self._tables: list[_Table] = []
        self._taken = 0
        self._on_host: list[Mapping[str, float]] = []  # what the last rows hold besides
        self._last: tuple[int, list[np.ndarray[Any, Any]]] | None = None
        self._begun, self._one = _made_apart(
            lambda: (
                tf.Variable(0, dtype=tf.int64, trainable=False, name="steps_begun"),
                tf.constant(1, tf.int64),
            )
        )
        self._add_table()

    def advance(self, **values: Any) -> None:
        """Begins the row of the next batch, empty but for `values` (scalars, cast to float32)."""
        if not in_first_replica():
            return
        by_table = self._by_table(values)
        rows = []
        for number, table in enumerate(self._tables):
            row = tf.constant(table.empty_row)
            if number in by_table:
                columns, numbers = by_table[number]
                row = tf.tensor_scatter_nd_update(row, [[column] for column in columns], numbers)
            rows.append(row)
        begun = self._begun.assign_add(1, read_value=True)
        for table, row in zip(self._tables, rows, strict=True):
            table.cells.scatter_nd_update([[(begun - 1) % self.capacity]], [row])

    def advance_on_host(self, **values: float) -> None:
        """Like `advance`, outside of any graph, where it costs one operation instead of ten.

        Args:
            **values: Numbers of the row that the host knows; they stay here until `read`.
        """
        # Rows that were read are empty, but the last one: a step outside of any loop may have
        # written into it since.
        if len(self._on_host) < self.capacity - 1:
            self._begun.assign_add(self._one, read_value=False)
        else:
            self.advance()
        self._on_host.append(values)

    def write(self, name: str, value: Any) -> None:
        """Writes one cell of the current row.

        Args:
            name: Column; named on first use.
            value: Scalar of any real dtype, cast to float32.
        """
        self.write_all({name: value})

    def write_all(self, values: Mapping[str, Any]) -> None:
        """Writes several cells of the current row, in one operation a table; see `write`."""
        if not in_first_replica():
            return
        row = (self._begun - 1) % self.capacity
        values = {name: aside(value) for name, value in values.items()}
        selects = in_branch_for_xla()
        for number, (columns, numbers) in self._by_table(values).items():
            table = self._tables[number]
            if selects:
                self._select(table, row, dict(zip(columns, numbers, strict=True)))
                continue
            cells = [[row, tf.constant(column, tf.int64)] for column in columns]
            table.cells.scatter_nd_update(cells, numbers)

    def read(self) -> Rows:
        """Takes all rows out of the table; rows that were overwritten are counted, but masked."""
        begun = int(self._begun.numpy())
        count, self._taken = begun - self._taken, begun
        kept = min(count, self.capacity)
        order = np.arange(begun - kept, begun) % self.capacity
        for values in self._on_host[-kept:]:
            for name in values:
                self._place(name)
        tables = [table.cells.numpy()[order] for table in self._tables]
        for row, values in enumerate(reversed(self._on_host[-kept:]), start=1):
            for name, value in values.items():
                number, column = self._place(name)
                tables[number][-row, column] = value
        if count:
            for table in self._tables:
                table.cells.assign(table.empty)
            self._last = (int(order[-1]), [cells[-1] for cells in tables])
        self._on_host.clear()
        whole = []
        for cells in tables:
            lost = np.full([count - kept, cells.shape[1]], ABSENT, np.float32)
            whole.append(np.ma.masked_equal(np.concatenate([lost, cells]), ABSENT))
        columns = {name: whole[number][:, at] for name, (number, at) in self._names.items()}
        return Rows(count, columns)

    def give_back(self) -> None:
        """Has the last row that was read be read once more: its step may not have ended."""
        if self._last is None:
            raise RuntimeError("No row has been read that could be given back.")
        row, rows = self._last
        for table, cells in zip(self._tables, rows, strict=False):  # a newer one is empty there
            table.cells.scatter_nd_update([[row]], [cells])
        self._taken -= 1

    def _select(self, table: "_Table", row: Any, numbers: Mapping[int, Any]) -> None:
        """Writes without a scatter: XLA computes a branch that has one in another way.

        It replaces a `tf.cond` (an accumulation, a loss scale) by a choice between the results of
        both branches where they hold no more than arithmetic, and then fuses it with its
        surroundings. Elsewhere a scatter costs less, and changes nothing.
        """
        width = np.arange(len(table.empty_row))
        line = tf.constant(table.empty_row)
        for column, number in numbers.items():
            line = tf.where(width == column, number, line)
        rows = tf.constant(np.arange(self.capacity), tf.int64)[:, tf.newaxis]
        chosen = tf.logical_and(rows == row, np.isin(width, list(numbers)))
        table.cells.assign(tf.where(chosen, line, table.cells))

    def _by_table(self, values: Mapping[str, Any]) -> dict[int, tuple[list[int], list[Any]]]:
        """Columns and float32 numbers of these values, by the number of their table."""
        found: dict[int, tuple[list[int], list[Any]]] = {}
        for name, value in values.items():
            number, column = self._place(name)
            columns, numbers = found.setdefault(number, ([], []))
            columns.append(column)
            numbers.append(tf.cast(value, tf.float32))
        return found

    def _place(self, name: str) -> tuple[int, int]:
        """Number of the table of a name, and its column there; given out on first use."""
        if name not in self._names:
            number, taken = len(self._tables) - 1, len(self._names)
            before = sum(len(table.empty_row) for table in self._tables[:-1])
            if taken == before + len(self._tables[-1].empty_row):
                number, before = number + 1, taken
                self._add_table()
            self._names[name] = number, taken - before
        return self._names[name]

    def _add_table(self) -> None:
        width = sum(len(table.empty_row) for table in self._tables) or self._width

        def make() -> tuple[Any, Any]:
            empty = tf.fill([self.capacity, width], ABSENT)
            return tf.Variable(empty, trainable=False, name="step_table"), empty

        cells, empty = _made_apart(make)
        self._tables.append(_Table(cells, empty, np.full([width], ABSENT, np.float32)))


@dataclass(frozen=True)
class _Table:
    """Some columns of a recorder: a variable, and what it holds when it is empty.

    A step that was traced before this table was made begins its rows in the older ones only. That
    is enough as long as the rows are read before they are overwritten: reading empties them all.
    """

    cells: Any
    empty: Any
    empty_row: "np.ndarray[Any, Any]"


@tf.autograph.experimental.do_not_convert
def _made_apart(make: Callable[[], Any]) -> Any:
    """What `make` makes, outside of the graph that is being traced and of any strategy's scope.

    A variable of a graph would die with it, and one that a strategy has made cannot be written in
    the way of this table. A thread of its own is in neither; it is given the device, which is the
    user's to choose.
    """
    with tf.init_scope():
        device = tf.zeros([]).device

    def on_device() -> Any:
        with tf.device(device):
            return make()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(on_device).result()


_recorders: "weakref.WeakKeyDictionary[Any, dict[str, StepRecorder]]" = weakref.WeakKeyDictionary()


def recorder_of(
    owner: Any, *, subject: str = "step", capacity: int = CAPACITY, width: int = WIDTH
) -> StepRecorder:
    """The table of `owner` (an optimizer or a model): made on first use, kept while it lives.

    Args:
        owner: Any weakly referable object.
        subject: What is recorded, if the owner has several tables.
        capacity: Least number of rows. A table that is too small is replaced, which graphs that
            were traced earlier do not see.
        width: Columns of the first table that is made.
    """
    tables = _recorders.setdefault(owner, {})
    if subject not in tables or tables[subject].capacity < capacity:
        tables[subject] = StepRecorder(capacity, width)
    return tables[subject]
