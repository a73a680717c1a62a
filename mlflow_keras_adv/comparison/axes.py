"""Axes of a chart: they map values to positions on the page, and have ticks."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from matplotlib.ticker import LogLocator, MaxNLocator

from mlflow_keras_adv.comparison.texts import short_number

# The store keeps an infinity as 1.8e308, which cannot be drawn.
_FAR = 1e300
# As for the figures of a search: what spans this much and is above 0 is drawn by its logarithm.
_LOG_RATIO = 50


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        low: Least value, or its logarithm.
        high: Greatest value, or its logarithm; above `low`.
        log: Whether the axis is logarithmic.
        start: Position of `low`, in units of the drawing.
        end: Position of `high`.
        unit: The end of the metric's name that tells its unit: `_bytes`.
    """

    low: float
    high: float
    log: bool
    start: float
    end: float
    unit: str = ""

    def place(self, value: float) -> float:
        """The position of a value."""
        height = math.log10(value) if self.log else value
        share = (height - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Positions and labels of about five ticks."""
        if self.log:
            low, high = 10**self.low, 10**self.high
            found = LogLocator(numticks=6).tick_values(low, high)
            values = [v for v in found if 0.999 * low <= v <= 1.001 * high]
            if len(values) < 2:
                values = [low, math.sqrt(low * high), high]
        else:
            found = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
            slack = 1e-9 * (self.high - self.low)
            values = [v for v in found if self.low - slack <= v <= self.high + slack]
        return [(self.place(value), short_number(value, self.unit)) for value in values]


def is_place(value: float) -> bool:
    """Whether a value can be drawn at all."""
    return math.isfinite(value) and abs(value) < _FAR


def axis(
    values: Iterable[float],
    start: float,
    end: float,
    *,
    log: bool | None = None,
    margin: float = 0.05,
    unit: str = "",
) -> Axis | None:
    """Makes an axis for all of the values that can be drawn.

    Args:
        values: The values.
        start: Position of the least, in units of the drawing.
        end: Position of the greatest.
        log: Whether the axis is logarithmic. Default: if that shows more.
        margin: Room beside the values, as a share of their range.
        unit: See `Axis`.

    Returns:
        The axis; None if there is nothing to draw.
    """
    drawn = [value for value in values if is_place(value)]
    if not drawn:
        return None
    low, high = min(drawn), max(drawn)
    if log is None:
        log = low > 0 and high / low >= _LOG_RATIO
    log = log and low > 0
    if log:
        low, high = math.log10(low), math.log10(high)
    room = margin * (high - low) or margin * abs(high) or 1.0
    if high == low:
        return Axis(low - room, high + room, log, start, end, unit)
    inside = margin and (high - low > 1e-12 * max(abs(low), abs(high)))
    return Axis(low - room * bool(inside), high + room * bool(inside), log, start, end, unit)
