"""What an error of a store means: that it is away for now, or that it will never take a record."""

from enum import Enum

from mlflow.exceptions import MlflowException


class RejectedError(Exception):
    """The store has understood a call and will never accept it."""


class Verdict(Enum):
    """What became of a call that has raised.

    Attributes:
        AWAY: The store does not answer, or not us, for now: a connection, an overload, a login.
        FAILED: An internal error, of the store as a whole or of this one call: what else it answers
            tells which (see `retry.Retry`).
        REJECTED: The store will never accept the call.
        UNKNOWN: An error of no known kind, which may have come from anywhere.
    """

    AWAY = "away"
    FAILED = "failed"
    REJECTED = "rejected"
    UNKNOWN = "unknown"


class StoreError(Exception):
    """What a call to a store has raised in another process.

    Attributes:
        verdict: The verdict on it.
    """

    def __init__(self, message: str, verdict: Verdict) -> None:
        super().__init__(message)
        self.verdict = verdict


def verdict_of(error: Exception) -> Verdict:
    """The verdict on an error that a call to a store has raised."""
    if isinstance(error, StoreError):
        return error.verdict
    if isinstance(error, RejectedError):
        return Verdict.REJECTED
    if isinstance(error, MlflowException):
        # All connections of the database are in use: to MLflow that is a bad request.
        if "QueuePool limit" in error.message:
            return Verdict.AWAY
        # The server has asked its database again and again itself: a name is there by another case.
        if "Failed to set tags with given" in error.message:
            return Verdict.REJECTED
        return _of_status(error.get_http_status_code())
    if type(error).__module__.startswith("requests"):
        return _of_status(getattr(getattr(error, "response", None), "status_code", 503))
    if isinstance(error, ConnectionError | TimeoutError):
        return Verdict.AWAY
    if isinstance(error, FileNotFoundError):  # of an artifact that is gone here
        return Verdict.REJECTED
    return Verdict.UNKNOWN


def may_succeed_later(error: Exception) -> bool:
    """Whether the same call may succeed later: a connection, a server, a lock, a login."""
    return verdict_of(error) in (Verdict.AWAY, Verdict.FAILED)


def may_pass(status: int) -> bool:
    """Whether a request that was answered so may succeed later: overload, a restart, a login."""
    return _of_status(status) in (Verdict.AWAY, Verdict.FAILED)


def _of_status(status: int) -> Verdict:
    if status == 500:
        return Verdict.FAILED
    away = status > 500 or status in (401, 403, 408, 429)
    return Verdict.AWAY if away else Verdict.REJECTED
