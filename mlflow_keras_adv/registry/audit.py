"""The history of a registered model: who moved its champion, when, from and to which version, why.

MLflow keeps no history of aliases. So each promotion, refusal and rollback adds a tag to the
registered model, `promotion.<time>-<random>`, and no tag is ever overwritten.
"""

import json
import uuid
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime

from mlflow import MlflowClient

from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.registry.evidence import one_line
from mlflow_keras_adv.registry.rights import EDIT_MODEL, READ_MODEL, asking, who

_PREFIX = "promotion."
_LONGEST = 5000  # of a line: anybody may set such a tag, of 100 000 characters
_MOVES = ("promoted", "rolled back")
_EVENTS = (*_MOVES, "refused", "lost")


@dataclass(frozen=True)
class Entry:
    """An entry of the history.

    Attributes:
        what: "promoted", "refused" (a gate failed), "lost" (somebody else moved the champion
            meanwhile) or "rolled back"; "unreadable" for a tag that is no entry.
        version: The version of the candidate, or the one that was rolled back to.
        before: The champion's version before; empty if there was none.
        reason: The reason that the author gave.
        gates: How many passed, and which failed.
        model: URI of the model.
        run_id: The run that holds the evidence.
        who: Login or user.
        when: UTC, ISO 8601.
    """

    what: str
    version: str
    before: str
    reason: str
    gates: str
    model: str
    run_id: str
    who: str
    when: str

    def __str__(self) -> str:
        moved = f"champion version {self.before or 'none'} -> {self.version}"
        if self.what not in _MOVES:
            moved = f"version {self.version}, champion version {self.before or 'none'}"
        text = f"{self.when}  {self.what:<11}  {moved}  by {self.who}"
        more = {"gates": self.gates, "why": self.reason, "run": self.run_id, "model": self.model}
        parts = [text, *(f"{key}: {value}" for key, value in more.items() if value)]
        return one_line("; ".join(parts), _LONGEST)


def append(
    name: str,
    what: str,
    *,
    version: str,
    before: str,
    reason: str = "",
    gates: str = "",
    model: str = "",
    run_id: str = "",
) -> Entry:
    """Adds an entry to the history of a registered model, with the fields of `Entry`.

    Raises:
        UserError: The registry refuses it.
    """
    now = datetime.now(UTC)
    when = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    entry = Entry(what, version, before, reason, gates, model, run_id, who(), when)
    key = f"{_PREFIX}{now:%Y%m%dT%H%M%S.%fZ}-{uuid.uuid4().hex[:8]}"
    with asking(f"The history of {name} cannot be written", EDIT_MODEL):
        MlflowClient().set_registered_model_tag(name, key, json.dumps(asdict(entry)))
    return entry


@keeps_random_state()
def history(name: str) -> list[Entry]:
    """Reads the history of a registered model.

    Args:
        name: Name of the registered model.

    Returns:
        The entries, the oldest first.

    Raises:
        UserError: There is no such model, or it cannot be read.
    """
    with asking(f"The registered model {name!r} cannot be read", READ_MODEL):
        tags = MlflowClient().get_registered_model(name).tags
    return [_read(text) for key, text in sorted(tags.items()) if key.startswith(_PREFIX)]


def _read(text: str) -> Entry:
    try:
        values = json.loads(text)
        entry = Entry(**{field.name: str(values[field.name]) for field in fields(Entry)})
    except (ValueError, TypeError, KeyError):
        entry = None
    if entry is None or entry.what not in _EVENTS:  # anybody may have set this tag
        return Entry("unreadable", "", "", text[:200], "", "", "", "", "")
    return entry
