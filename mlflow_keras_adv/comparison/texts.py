"""Numbers and texts as the page shows them."""

import math

from mlflow_keras_adv.tracking.texts import safe as safe

_INFINITE = 1e300
_UNITS = ("B", "kB", "MB", "GB", "TB")


def number(value: float, key: str = "") -> str:
    """Formats a number with four digits, bytes with their unit, counts in full.

    Args:
        value: The number.
        key: Name of the metric, whose end tells the unit.
    """
    if math.isnan(value):
        return "NaN"
    if abs(value) > _INFINITE:
        return "∞" if value > 0 else "-∞"
    if key.endswith("_bytes"):
        return _bytes(value)
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


def with_spread(mean: float, std: float, key: str = "") -> tuple[str, str]:
    """A mean and its standard deviation, to the first digit of the latter; to the second of a 1."""
    plain = number(mean, key), number(std, key)
    if std == 0:
        return plain[0], "0"
    if not all(map(math.isfinite, (mean, std))) or key.endswith("_bytes"):
        return plain
    power = math.floor(math.log10(std))
    digits = (std < 2 * 10**power) - power
    if not 0 <= digits <= 6 or abs(mean) > 1e6:
        return plain
    return f"{mean:,.{digits}f}", f"{std:,.{digits}f}"


def short_number(value: float, key: str = "") -> str:
    """A number for the tick of an axis."""
    if key.endswith("_bytes"):
        return _bytes(value)
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        head, _, power = f"{value:.2g}".partition("e")
        return f"{head}e{int(power)}" if power else head
    return f"{value:,.6g}" if abs(value) < 1000 else f"{value:,.0f}"


def _bytes(value: float) -> str:
    power = 0
    while abs(value) >= 999.5 and power < len(_UNITS) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {_UNITS[power]}"
