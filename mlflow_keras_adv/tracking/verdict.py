"""What an error of a store means: that it is away for now, or that it will never take a record."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

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


class ArtifactStoreError(StoreError):
    """The store of the artifacts does not take a file for now, whatever that of the runs does.

    Attributes:
        cause: What it has raised.
    """

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause), verdict_of(cause))
        self.cause = cause


@contextmanager
def of_artifacts() -> Iterator[None]:
    """A block that calls the store of the artifacts.

    Raises:
        ArtifactStoreError: The same call may succeed later.
    """
    try:
        yield
    except Exception as error:
        if not may_succeed_later(error):
            raise
        raise ArtifactStoreError(error) from error


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
    # Without the package of an artifact store its files wait until somebody has installed it.
    if isinstance(error, ConnectionError | TimeoutError | ImportError):
        return Verdict.AWAY
    if isinstance(error, FileNotFoundError):  # of an artifact that is gone here
        return Verdict.REJECTED
    judge = _SDKS.get(type(error).__module__.partition(".")[0])
    return Verdict.UNKNOWN if judge is None else judge(error)


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


# What follows judges the errors of SDKs of artifact stores, by the names that they have there: none
# of them is imported. A login, a bucket or a right that is missing can be had later, without
# another word of the training; what is rejected is a request that would be the same then.


def _of_boto3(error: Exception) -> Verdict:
    """Of boto3 and s3transfer, which wrap what botocore has raised."""
    inner = error.__cause__ or error.__context__
    return verdict_of(inner) if isinstance(inner, Exception) else Verdict.AWAY


_S3_LATER = {
    *("NoSuchBucket", "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "RequestTimeout"),
    *("OperationAborted", "PermanentRedirect", "AuthorizationHeaderMalformed"),
}


def _of_botocore(error: Exception) -> Verdict:
    """Of botocore: an answer of S3, or a connection or a login that cannot be had."""
    answer: Any = getattr(error, "response", None)
    if isinstance(answer, dict):  # else an answer of HTTP that could not be read
        if answer.get("Error", {}).get("Code") in _S3_LATER:
            return Verdict.AWAY
        return _of_status(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 503))
    return Verdict.REJECTED if type(error).__name__ == "ParamValidationError" else Verdict.AWAY


def _of_answer(error: Exception) -> Verdict:
    """Of Google's and Azure's clients: an answer with its status, or none."""
    answer = getattr(error, "response", None)
    for status in (
        getattr(error, "code", None),
        getattr(error, "status_code", None),
        getattr(answer, "status_code", None),
    ):
        if isinstance(status, int):
            return Verdict.AWAY if status in (404, 409) else _of_status(int(status))
    return Verdict.AWAY


_SDKS = {
    "boto3": _of_boto3,
    "s3transfer": _of_boto3,
    "botocore": _of_botocore,
    "google": _of_answer,
    "azure": _of_answer,
    "urllib3": lambda _: Verdict.AWAY,
}
