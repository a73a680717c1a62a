"""What MLflow accepts: keys, flat parameters, and when two spellings of a parameter are equal."""

import hashlib
import json
import math
import os
import posixpath
import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from threading import Lock

MAX_KEY_LENGTH = 250

# What the names of a run stand in, by the page: a tag holds 8000 characters.
KINDS = ("metrics", "params", "tags")
_PAGE_CHARACTERS = 4000

# Tag of what we create in a store: what came to be although its answer was lost is found by it.
UID_TAG = "mlflow_keras_adv.uid"

# A colon is fine in a key, but a file store on Windows could not make a file of that name.
_REFUSED_CHARACTERS = re.compile(r"[^/\w.\- ]" if os.name == "nt" else r"[^/\w.\- :]")


@lru_cache(maxsize=4096)
def metric_key(name: str) -> str:
    """A key that MLflow accepts for a metric, a param or a tag.

    MLflow takes letters, digits, `_ - . : /` and spaces, a normal relative path, at most 250
    characters; one bad key makes it refuse a whole batch.

    Args:
        name: Any name.

    Returns:
        `name` itself if it is fine. Otherwise refused characters become `_`, the path is made
        normal, and a name that is too long is cut and ends in a digest of the whole.
    """
    key = posixpath.normpath(_REFUSED_CHARACTERS.sub("_", name)).lstrip("/")
    key = re.sub(r"^(\.\./)*\.\.", "_", key)
    if key in ("", "."):
        key = "_"
    return _cut(key, name)


def folded(key: str) -> str:
    """What is the same for keys that some databases take for one: no case, no accents."""
    letters = unicodedata.normalize("NFKD", key.casefold())
    return "".join(each for each in letters if not unicodedata.combining(each))


@dataclass(frozen=True)
class Keyed:
    """The keys of some names.

    Attributes:
        keys: The key of each name.
        collided: Name, its key and the name that has the plain one; of those that are new.
        pages: Tags to set: the names of keys that are not themselves the name, as JSON.
    """

    keys: Mapping[str, str]
    collided: list[tuple[str, str, str]]
    pages: dict[str, str]


class KeyTable:
    """Which name has which key, among the metrics, the params or the tags of one run.

    Two names that MLflow's rules make one, as `hit@5` and `hit#5`, get two keys: the first to come
    has the plain one, `hit_5`, the next `hit_5.2`. Safe for several threads.

    Args:
        kind: One of `KINDS`.
        keys: Those that the run holds from before.
        tags: The tags of the run: in those that are called `names.<kind>`, `names.<kind>.2`, … it
            says which names stand behind them.
    """

    def __init__(
        self, kind: str, keys: Iterable[str] = (), tags: Mapping[str, str] | None = None
    ) -> None:
        self._tag = f"names.{kind}"
        self._owners = {key: key for key in keys if not _is_digest(key)}
        self._pages: list[dict[str, str]] = []
        while (text := (tags or {}).get(self._page_tag(len(self._pages)))) is not None:
            self._pages.append(_read(text))
            self._owners |= self._pages[-1]
        self._keys = {name: key for key, name in self._owners.items()}
        self._lock = Lock()

    def of(self, names: Iterable[str]) -> Keyed:
        """The keys of these names, now and whenever they come again."""
        keys = {name: self._keys.get(name, "") for name in names}
        collided: list[tuple[str, str, str]] = []
        changed: set[int] = set()
        # Those first that are fine as they are: a name is changed only if it has to be.
        new = [name for name, key in keys.items() if not key]
        new.sort(key=lambda name: metric_key(name) != name)
        with self._lock:
            for name in new:
                plain = metric_key(name)
                keys[name] = key = self._claim(name, plain)
                if key != plain:
                    collided.append((name, key, self._owners[plain]))
                if key != name and key in self._owners:
                    changed.add(self._note(key, name))
            pages = {
                self._page_tag(page): json.dumps(self._pages[page], ensure_ascii=False)
                for page in sorted(changed)
            }
        return Keyed(keys, collided, pages)

    def _claim(self, name: str, plain: str) -> str:
        key, number = plain, 1
        while self._owners.get(key, name) != name:
            number += 1
            key = f"{plain[: MAX_KEY_LENGTH - 10]}.{number}"
        if not _is_cut(name, plain):  # which is of this name only, and may be long
            self._owners[key] = name
        self._keys[name] = key
        return key

    def _note(self, key: str, name: str) -> int:
        """Writes a name down, on the last page or a new one."""
        last = self._pages[-1] if self._pages else None
        taken = 0 if last is None else sum(len(k) + len(n) + 6 for k, n in last.items())
        if last is None or taken + len(key) + len(name) > _PAGE_CHARACTERS:
            self._pages.append({})
        self._pages[-1][key] = name
        return len(self._pages) - 1

    def _page_tag(self, page: int) -> str:
        return self._tag if page == 0 else f"{self._tag}.{page + 1}"


def _read(page: str) -> dict[str, str]:
    try:
        return dict(json.loads(page))
    except (ValueError, TypeError):  # cut off by a name that fills a page alone, or not ours
        return {}


def _cut(key: str, name: str) -> str:
    return key if len(key) <= MAX_KEY_LENGTH else f"{key[: MAX_KEY_LENGTH - 13]}-{_digest(name)}"


def _is_cut(name: str, key: str) -> bool:
    return len(key) == MAX_KEY_LENGTH and key != name and key.endswith(_digest(name))


def _is_digest(key: str) -> bool:
    return len(key) == MAX_KEY_LENGTH and re.fullmatch("[0-9a-f]{12}", key[-12:]) is not None


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:12]


def flatten(values: Mapping[str, object]) -> dict[str, object]:
    """Flat parameters of a nested configuration.

    Args:
        values: A configuration: mappings in mappings, sequences, plain values, NumPy arrays.

    Returns:
        Dotted keys (`optimizer.learning_rate`) with plain values (bool, int, float, str or None).
        Sequences and empty mappings become JSON text, anything else its `str`.
    """
    flat: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{name}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[str(name)] = _plain(value)
    return flat


def same_param(stored: str, value: object) -> bool:
    """Whether a param that a run holds says the same as `value`, as a number or as text.

    `mlflow run` logs params as they stood on the command line, in shell quotes: `'1e-3'` is 0.001,
    `''` is the empty text and `true` is True.

    Args:
        stored: Text of the param in the store.
        value: Plain value that is about to be logged.
    """
    text = str(value)
    if stored == text:
        return True
    meant, received = _meaning(_unquoted(stored)), _meaning(text)
    if isinstance(meant, float) and isinstance(received, float) and math.isnan(meant):
        return math.isnan(received)
    return meant == received


def _plain(value: object) -> object:
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        value = value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, default=_json_value)
    return str(value)


def _json_value(value: object) -> object:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _unquoted(text: str) -> str:
    try:
        words = shlex.split(text)
    except ValueError:
        return text
    return words[0] if len(words) == 1 else text


def _meaning(text: str) -> object:
    """The value that a text spells: a bool, a number, a JSON list or object, else the text."""
    if text.casefold() in ("true", "false"):
        return text.casefold() == "true"
    for read in (int, float):  # int first: a seed of 64 bits does not fit a float
        try:
            return read(text)
        except ValueError:
            continue
    if text.startswith(("[", "{")):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


# The id of a run or a model.
_MLFLOW_ID = re.compile(r"\b(?:m-)?[0-9a-f]{32}\b")


@dataclass(frozen=True)
class Translation:
    """What becomes of ids and places in texts that go from one store to another.

    Attributes:
        ids: Id there by id here.
        places: Root of artifacts there by root here.
    """

    ids: Mapping[str, str]
    places: dict[str, str] = field(default_factory=dict)

    def of(self, text: str) -> str:
        """The text, for the other store."""
        for here, there in self.places.items():
            text = text.replace(here, there)
        return _MLFLOW_ID.sub(lambda match: self.ids.get(match[0], match[0]), text)
