"""Claims: what a technique promises, the number that was measured, and whether it holds."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import mlflow
import numpy as np

from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.errors import expect, not_a_run
from mlflow_keras_adv.tracking.run import Run, id_of, run_of

_FILE = "claims.json"


@dataclass(frozen=True)
class Claim:
    """A measured number and the limit that it is checked against.

    Attributes:
        name: Ends the name of the metric, `final/claim/<name>`: letters, digits and `_`.
        text: The number in words: "largest difference of a weight after 4 micro-batches and after
            one batch".
        value: The measured number. With NaN the claim does not hold.
        at_least: Lower limit.
        at_most: Upper limit.
    """

    name: str
    text: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", float(self.value))  # JSON knows none of NumPy's
        if self.at_least is None and self.at_most is None:
            raise ValueError(
                f"The claim {self.name!r} has no limit. Pass at_least=, at_most= or both."
            )

    @property
    def holds(self) -> bool:
        """Whether the number is within its limits."""
        lowest = -math.inf if self.at_least is None else self.at_least
        highest = math.inf if self.at_most is None else self.at_most
        return lowest <= self.value <= highest

    @property
    def tolerance(self) -> str:
        """The limits in words, for example "at least 0.9"."""
        limits = {"at least": self.at_least, "at most": self.at_most}
        return " and ".join(f"{word} {n:.4g}" for word, n in limits.items() if n is not None)

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "MISSED"
        return f"{self.text}: {self.value:.4g}, claimed {self.tolerance}: {verdict}"


def largest_difference(first: Any, second: Any) -> float:
    """Largest absolute difference of two numbers at the same position.

    Args:
        first: An array, or a list of arrays such as `model.get_weights()`.
        second: The same shapes.

    Returns:
        The difference; 0 for empty arrays.

    Raises:
        ValueError: The shapes or the lengths of the lists differ.
    """
    if not isinstance(first, list | tuple):
        first, second = [first], [second]
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(first, second, strict=True)]
    for a, b in pairs:
        if a.shape != b.shape:
            raise ValueError(f"Received arrays of shapes {a.shape} and {b.shape}; expected one.")
    # In float64: half precision would round the difference too.
    return max(float(np.abs(a.astype(float) - b.astype(float)).max()) for a, b in pairs)


@keeps_random_state()
def log_claims(*claims: Claim, run: Run | str | None = None) -> str:
    """Logs claims to the run of a technique: to the parent, if it is a comparison.

    Logs each number as the metric `final/claim/<name>` at step 0, all of them with their limits as
    `claims.json`, and the tag `claims`: "hold", or "missed: " and the names of those that do not. A
    missed claim is a result, not an error: the run ends FINISHED.

    Args:
        *claims: One or more, of different names.
        run: The run to write to, or its id. Default: the current run.

    Returns:
        A Markdown list with a line for each claim, for the console and the run's description.

    Raises:
        ValueError: If there is no claim, or two have one name.
        TypeError: The run is no run, or a claim no `Claim`.
        UserError: No run is open.
    """
    for claim in claims:
        not_a_run("a claim", claim, "log_claims(claim, …, run=run)")
        expect("a claim", claim, Claim, "a Claim(...)")
    run = run_of(run, "log_claims")
    names = [claim.name for claim in claims]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"Received claims named {names}. Expected one or more different names.")
    missed = [claim.name for claim in claims if not claim.holds]
    run.log_metrics({f"final/claim/{claim.name}": claim.value for claim in claims}, step=0)
    run.log_dict({"claims": [_row(claim) for claim in claims]}, _FILE)
    run.set_tags({"claims": f"missed: {', '.join(missed)}" if missed else "hold"})
    return "\n".join(f"- {claim}" for claim in claims)


@keeps_random_state()
def logged_claims(run: Run | str | None = None) -> list[Claim]:
    """Reads the claims that `log_claims` has logged to a run.

    Args:
        run: The run, or its id. Default: the current run.

    Returns:
        The claims, in the order in which they were logged.

    Raises:
        mlflow.exceptions.MlflowException: The run has none.
        TypeError: The run is no run.
        UserError: No run is open.
    """
    text = mlflow.artifacts.load_text(f"runs:/{id_of(run, 'logged_claims')}/{_FILE}")
    rows = json.loads(text)["claims"]
    return [Claim(**(row | {"value": float(row["value"])})) for row in rows]


def _row(claim: Claim) -> dict[str, Any]:
    # JSON has no NaN.
    return asdict(claim) | ({} if math.isfinite(claim.value) else {"value": str(claim.value)})
