"""Readings: the values that training steps have written since the last reading, by metric key."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Column = np.ma.MaskedArray[Any, Any]


@dataclass(frozen=True)
class Readings:
    """The values since the last reading. All arrays have one entry per training batch.

    Attributes:
        batches: Number of training batches consumed.
        examples: Number of training examples in each; 0 where the data does not tell.
        columns: Per metric key a masked float array; masked where a batch has no such number.
        events: Per metric key of a counter a bool array, true where it counts one more.
        layers: Per path of a layer the norm of its gradient; empty unless layers are observed.
        times: Unix time in seconds, interpolated between the moments at which the host looked.
        until: When the host saw the last of them end, in seconds of the monotonic clock.
        updated: Names of the optimizers that made an update, or skipped one.
    """

    batches: int
    examples: np.ndarray[Any, Any]
    columns: Mapping[str, Column]
    events: Mapping[str, np.ndarray[Any, Any]]
    layers: Mapping[str, Column]
    times: np.ndarray[Any, Any]
    until: float
    updated: frozenset[str]


def metric_columns(own: Mapping[str, Column], path: str) -> dict[str, Column]:
    """The curves in the table of one optimizer.

    Args:
        own: Its columns, by the names that `OptimizerProbe` gives them.
        path: What stands before the last part of each key: empty, or the optimizer's name and `/`.
    """
    named = {
        f"gradient/{path}norm": own.get("norm"),
        f"gradient/{path}norm_clipped": own.get("norm_clipped"),
        f"optimizer/{path}learning_rate": own.get("learning_rate"),
        f"optimizer/{path}loss_scale": own.get("loss_scale"),
    }
    # An infinite norm is counted as a nonfinite gradient; in a chart it would hide all others.
    return {
        key: np.ma.masked_where(np.isinf(column.data), column)
        for key, column in named.items()
        if column is not None
    }


def counted_events(own: Mapping[str, Column], path: str) -> dict[str, np.ndarray[Any, Any]]:
    """The batches at which a counter of one optimizer goes up; arguments as `metric_columns`."""
    events = {}
    nonfinite = np.zeros(0, bool)
    if "norm" in own:
        norm = own["norm"]
        nonfinite = ~np.ma.getmaskarray(norm) & ~np.isfinite(norm.data)
    if "loss_scale" in own:
        applied = own.get("applied")
        skipped = ~np.ma.getmaskarray(own["loss_scale"])
        if applied is not None:
            skipped &= np.ma.getmaskarray(applied)
        events[f"optimizer/{path}skipped_updates"] = skipped
        nonfinite = skipped | nonfinite if nonfinite.size else skipped
    if nonfinite.size:
        events[f"gradient/{path}nonfinite"] = nonfinite
    return events


def united_norms(one: Mapping[str, Column], other: Mapping[str, Column]) -> dict[str, Column]:
    """The norms of layers that two optimizers update; of one that they share, that of both."""
    united = {**one, **other}
    for path in one.keys() & other.keys():
        both = np.ma.masked_all(len(united[path]), np.float32)
        for mine, theirs in ((one[path], other[path]), (other[path], one[path])):
            alone = ~np.ma.getmaskarray(mine) & np.ma.getmaskarray(theirs)
            both[alone] = mine[alone]
        together = ~np.ma.getmaskarray(one[path]) & ~np.ma.getmaskarray(other[path])
        both[together] = np.hypot(one[path].data[together], other[path].data[together])
        united[path] = both
    return united
