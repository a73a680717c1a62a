"""StepRecorder: a row of numbers per training step, written inside the step, read in bulk.

A training step that is compiled cannot call Python, and reading a device value after each step
makes the step wait. So the numbers of a step go into a table of TensorFlow variables by ordinary
graph operations, and the host reads many rows at once: at the end of an epoch, every few seconds,
or when the table is nearly full.

A traced graph cannot be un-wrapped: it goes on writing into the variables it was traced with. Hence
a table belongs to the object whose steps it records, usually an optimizer, and is found again by
every later `fit` or loop (`recorder_of`).
"""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from mlflow_keras_adv.training.aside import aside, in_branch_for_xla

CAPACITY = 1024
WIDTH = 32

# A cell that no one wrote. Not NaN, which a loss or a norm can be; none is the lowest of float32.
ABSENT = np.finfo(np.float32).min


@dataclass(frozen=True)
class Rows:
    """What a table held.

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
    """A table of float32 cells, one row a training batch and one column a number.

    `advance` and `write` are graph operations: they may be called eagerly, inside a `tf.function`,
    in a branch of `tf.cond` and under XLA. `advance_on_host` and `read` are for the host.

    Args:
        capacity: Rows that fit between two reads; beyond it the oldest are overwritten.
        width: Columns that may be named during the table's life.
    """

    def __init__(self, capacity: int = CAPACITY, width: int = WIDTH) -> None:
        self.capacity = capacity
        self._names: dict[str, int] = {}
        self._empty_row = np.full([width], ABSENT, np.float32)
        self._taken = 0
        self._on_host: list[Mapping[str, float]] = []  # what the last rows hold besides
        self._last: tuple[int, np.ndarray[Any, Any]] | None = None
        # Eager even when the first step is being traced: a variable of a graph would die with it.
        with tf.init_scope():
            self._empty_table = tf.fill([capacity, width], ABSENT)
            self._table = tf.Variable(self._empty_table, trainable=False, name="step_table")
            self._begun = tf.Variable(0, dtype=tf.int64, trainable=False, name="steps_begun")
            self._one = tf.constant(1, tf.int64)

    def advance(self, **values: Any) -> None:
        """Begins the row of the next batch, empty but for `values` (scalars, cast to float32)."""
        if not _in_first_replica():
            return
        row = tf.constant(self._empty_row)
        if values:
            cells = [[self._column(name)] for name in values]
            row = tf.tensor_scatter_nd_update(
                row, cells, [tf.cast(value, tf.float32) for value in values.values()]
            )
        begun = self._begun.assign_add(1, read_value=True)
        self._table.scatter_nd_update([[(begun - 1) % self.capacity]], [row])

    def advance_on_host(self, **values: float) -> None:
        """As `advance`, outside of any graph: a loop in Python pays one operation, not ten.

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

        Raises:
            ValueError: If the table has no free column for a new name.
        """
        self.write_all({name: value})

    def write_all(self, values: Mapping[str, Any]) -> None:
        """Writes several cells of the current row in one operation; see `write`."""
        if not _in_first_replica():
            return
        row = (self._begun - 1) % self.capacity
        columns = [self._column(name) for name in values]
        numbers = [tf.cast(aside(value), tf.float32) for value in values.values()]
        if in_branch_for_xla():
            self._select(row, dict(zip(columns, numbers, strict=True)))
            return
        cells = [[row, tf.constant(column, tf.int64)] for column in columns]
        self._table.scatter_nd_update(cells, numbers)

    def read(self) -> Rows:
        """Takes all rows out of the table; rows that were overwritten are counted, but masked."""
        begun = int(self._begun.numpy())
        count, self._taken = begun - self._taken, begun
        kept = min(count, self.capacity)
        order = np.arange(begun - kept, begun) % self.capacity
        table = self._table.numpy()[order]
        for row, values in enumerate(reversed(self._on_host[-kept:]), start=1):
            for name, value in values.items():
                table[-row, self._column(name)] = value
        if count:
            self._table.assign(self._empty_table)
            self._last = (int(order[-1]), table[-1])
        self._on_host.clear()
        lost = np.full([count - kept, table.shape[1]], ABSENT, np.float32)
        cells = np.ma.masked_equal(np.concatenate([lost, table]), ABSENT)
        return Rows(count, {name: cells[:, column] for name, column in self._names.items()})

    def give_back(self) -> None:
        """Has the last row that was read be read once more: its step may not have ended."""
        if self._last is None:
            raise RuntimeError("No row has been read that could be given back.")
        row, cells = self._last
        self._table.scatter_nd_update([[row]], [cells])
        self._taken -= 1

    def _select(self, row: Any, numbers: Mapping[int, Any]) -> None:
        """Writes without a scatter: XLA computes a branch that has one in another way.

        It replaces a `tf.cond` (an accumulation, a loss scale) by a choice between the results of
        both branches where they hold no more than arithmetic, and then fuses it with its
        surroundings. Elsewhere a scatter costs less, and changes nothing.
        """
        width = np.arange(len(self._empty_row))
        line = tf.constant(self._empty_row)
        for column, number in numbers.items():
            line = tf.where(width == column, number, line)
        rows = tf.constant(np.arange(self.capacity), tf.int64)[:, tf.newaxis]
        chosen = tf.logical_and(rows == row, np.isin(width, list(numbers)))
        self._table.assign(tf.where(chosen, line, self._table))

    def _column(self, name: str) -> int:
        if name not in self._names and len(self._names) == len(self._empty_row):
            raise ValueError(
                f"Received a value named {name!r}, but all {len(self._names)} columns of this "
                f"recorder are taken: {', '.join(self._names)}. Record fewer names per step, or "
                "log the others once per epoch."
            )
        return self._names.setdefault(name, len(self._names))


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
        width: Columns of a table that is made.
    """
    tables = _recorders.setdefault(owner, {})
    if subject not in tables or tables[subject].capacity < capacity:
        tables[subject] = StepRecorder(capacity, width)
    return tables[subject]


def _in_first_replica() -> bool:
    """Whether to write: every replica traces the step, with numbers already reduced over them."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return True
    return bool(tf.get_static_value(context.replica_id_in_sync_group) == 0)
