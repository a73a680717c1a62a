"""A block in which MLflow's own calls to a store go through a journal, at its plain address."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.utils.uri import get_uri_scheme, is_http_uri

from mlflow_keras_adv.compat.mlflow import forget_artifact_repository, looks_up_stores
from mlflow_keras_adv.replacing import Replacement

_open: Counter[str] = Counter()  # by plain tracking URI, the blocks that are open
_changing = Lock()
_replacement: Replacement | None = None


@contextmanager
def durable_block(uri: str, run_id: str) -> Iterator[None]:
    """Has MLflow's clients of a store use a `DurableStore` in its place, on all threads.

    Args:
        uri: The plain tracking URI of the store. Folders and Databricks are left alone.
        run_id: A run that the block is about.
    """
    if not is_http_uri(uri) and get_uri_scheme(uri) not in DATABASE_ENGINES:
        yield
        return
    _change(uri, 1)
    forget_artifact_repository(run_id)
    try:
        yield
    finally:
        _change(uri, -1)
        forget_artifact_repository(run_id)


def is_open(uri: str) -> bool:
    """Whether a block of a store is open."""
    return _open[uri] > 0


def _change(uri: str, change: int) -> None:
    global _replacement
    with _changing:
        _open[uri] += change
        if _open[uri] == 0:
            del _open[uri]
        if _open and _replacement is None:
            _replacement = looks_up_stores(_store_of)
            _replacement.begin()
        elif not _open and _replacement is not None and _replacement.end():
            _replacement = None


def _store_of(uri: str, otherwise: Callable[[], Any]) -> Any:
    """The store of an address: the durable one in a block, else what MLflow has."""
    if not is_open(uri):
        return otherwise()
    from mlflow_keras_adv.durable.store import open_store

    return open_store(uri)
