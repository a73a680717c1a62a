from queue import SimpleQueue

import numpy as np
import pytest
from mlflow.entities import Metric

from mlflow_keras_adv.tracking.pending import (
    ROWS_AT_ONCE,
    End,
    Flush,
    Params,
    Pending,
    Points,
    Series,
)


@pytest.mark.parametrize("rows", [0, 1, ROWS_AT_ONCE, ROWS_AT_ONCE + 1])
def test_a_series_is_its_values_row_by_row(rows: int) -> None:
    column = np.ma.masked_array(np.arange(rows, dtype=np.float64), mask=np.arange(rows) % 2 == 1)
    series = Series(
        {"a(b)": np.ma.array(np.arange(rows)), "c": column}, np.arange(rows), np.arange(rows) + 5
    )

    values = [(m.key, m.value, m.timestamp, m.step) for m in series]
    expected = [
        (key, row, row + 5, row) for row in range(rows) for key in ("a_b_", "c")[: 2 - row % 2]
    ]
    assert values == expected
    assert len(series) == len(expected)


def test_it_counts_what_is_put_and_not_settled() -> None:
    pending = Pending()
    metrics = [Metric("m", 1.0, 0, 0)] * 3
    for item in (Points(metrics), Params({"a": 1}), Flush(SimpleQueue()), End("FINISHED")):
        pending.put(item)
    assert (pending.points, pending.records, pending.ends, pending.count()) == (3, 1, 1, 5)

    pending.settle(metrics[:2])
    assert (pending.points, pending.count()) == (1, 3)
    taken = [pending.take(timeout=0) for _ in range(4)]
    assert [type(item) for item in taken] == [Points, Params, Flush, End]
    assert pending.is_empty()
    assert pending.take(timeout=0) is None
