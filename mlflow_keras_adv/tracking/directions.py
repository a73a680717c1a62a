"""Which way a metric is better: recorded with the run, so that nobody guesses it from a name later.

A tag for each who records, `directions.fit` or `directions.final`: JSON of metric keys and "min" or
"max".
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Literal

from mlflow.entities import Run

TAG = "directions."
Mode = Literal["min", "max"]
AskedMode = Literal["auto", "min", "max"]

# Of runs that say nothing, what a name says by itself: costs, errors, and what is right.
_MIN = re.compile(
    r"loss|error|crossentropy|huber|divergence|distance|(^|[/_])(mse|mae|rmse|mape|msle|logcosh|nll"
    r"|perplexity|latency|size|flops(?!_per)|parameters|wer|cer|brier|smape|ece|fid|kl)([/_]|$)|_bytes$"
    r"|_ms(_|$)"
)
_MAX = re.compile(
    r"accuracy|agreement|score$|(^|[/_])(acc|auc|precision|recall|f1|iou|r2|bleu|dice)([/_]|$)"
)


def asked(mode: AskedMode) -> Mode | None:
    """The mode that a caller chose; None of "auto".

    Raises:
        ValueError: It is no mode.
    """
    if mode not in ("auto", "min", "max"):
        raise ValueError(f"Received mode={mode!r}; expected 'auto', 'min' or 'max'.")
    return None if mode == "auto" else mode


def note(directions: Mapping[str, str]) -> str:
    """The text of a tag."""
    return json.dumps(dict(sorted(directions.items())), separators=(",", ":"))


def recorded(runs: Iterable[Run]) -> dict[str, Mode]:
    """What runs have recorded; what they do not agree on is left out."""
    found: dict[str, set[Mode]] = {}
    for run in runs:
        for tag, text in run.data.tags.items():
            if not tag.startswith(TAG):
                continue
            try:
                known = json.loads(text)
            except ValueError:  # cut off, or somebody else's
                continue
            for key, mode in known.items() if isinstance(known, dict) else ():
                if mode in ("min", "max"):
                    found.setdefault(str(key), set()).add(mode)
    return {key: next(iter(modes)) for key, modes in found.items() if len(modes) == 1}


def direction(key: str, known: Mapping[str, Mode]) -> Mode | None:
    """Which way a metric is better, as recorded, else as its name says; None if neither says it."""
    if key in known:
        return known[key]
    if _MIN.search(key):
        return "min"
    return "max" if _MAX.search(key) else None
