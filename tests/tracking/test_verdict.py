"""What the errors of stores and of their SDKs mean."""

import socket
from http import HTTPStatus

import pytest
from mlflow.exceptions import MlflowException

from mlflow_keras_adv.tracking.artifact_stores import require_reachable
from mlflow_keras_adv.tracking.verdict import (
    ArtifactStoreError,
    Verdict,
    of_artifacts,
    verdict_of,
)
from tests.mlflow_server import free_port

AWAY, FAILED, REJECTED = Verdict.AWAY, Verdict.FAILED, Verdict.REJECTED


def of_sdk(module: str, name: str = "Error", base: type = Exception, **fields: object) -> Exception:
    """An error as a package that is not installed here has it."""
    return type(name, (base,), {"__module__": module, **fields})("it failed")


def answer(status: int | None) -> object:
    return type("Answer", (), {"status_code": status})()


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("SlowDown", 503, AWAY),
        ("InternalError", 500, FAILED),
        ("AccessDenied", 403, AWAY),
        ("InvalidAccessKeyId", 403, AWAY),
        ("ExpiredToken", 400, AWAY),
        ("NoSuchBucket", 404, AWAY),
        ("KeyTooLongError", 400, REJECTED),
        ("EntityTooLarge", 400, REJECTED),
    ],
)
def test_an_answer_of_s3(code: str, status: int, expected: Verdict) -> None:
    exceptions = pytest.importorskip("botocore.exceptions")
    said = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = exceptions.ClientError(said, "PutObject")
    assert verdict_of(error) is expected
    failed = pytest.importorskip("boto3.exceptions").S3UploadFailedError("Failed to upload")
    failed.__context__ = error
    assert verdict_of(failed) is expected


def test_s3_without_an_answer() -> None:
    exceptions = pytest.importorskip("botocore.exceptions")
    for error in (
        exceptions.EndpointConnectionError(endpoint_url="http://127.0.0.1:9"),
        exceptions.ConnectTimeoutError(endpoint_url="http://127.0.0.1:9"),
        exceptions.NoCredentialsError(),
    ):
        assert verdict_of(error) is AWAY
    assert verdict_of(exceptions.ParamValidationError(report="no bucket")) is REJECTED


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (of_sdk("google.api_core.exceptions", code=HTTPStatus.TOO_MANY_REQUESTS), AWAY),
        (of_sdk("google.api_core.exceptions", code=HTTPStatus.FORBIDDEN), AWAY),
        (of_sdk("google.api_core.exceptions", code=HTTPStatus.BAD_REQUEST), REJECTED),
        (of_sdk("google.auth.exceptions"), AWAY),
        (of_sdk("google.resumable_media.common", response=answer(503)), AWAY),
        (of_sdk("azure.core.exceptions", status_code=503), AWAY),
        (of_sdk("azure.core.exceptions", status_code=404), AWAY),
        (of_sdk("azure.core.exceptions", status_code=400), REJECTED),
        (of_sdk("azure.core.exceptions", status_code=None), AWAY),
        (of_sdk("urllib3.exceptions"), AWAY),
        (ModuleNotFoundError("No module named 'boto3'"), AWAY),
        (FileNotFoundError("gone"), REJECTED),
        (PermissionError("read-only"), Verdict.UNKNOWN),
        (of_sdk("somewhere.else"), Verdict.UNKNOWN),
    ],
)
def test_others(error: Exception, expected: Verdict) -> None:
    assert verdict_of(error) is expected


def test_only_what_may_succeed_later_is_put_off() -> None:
    with pytest.raises(ArtifactStoreError, match="refused") as caught, of_artifacts():
        raise ConnectionRefusedError("refused")
    assert verdict_of(caught.value) is AWAY
    with pytest.raises(MlflowException), of_artifacts():
        raise MlflowException.invalid_parameter_value("a bad path")


def test_a_server_of_s3_that_is_configured_is_tried_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ConnectionRefusedError):
        require_reachable("s3://bucket/1/artifacts")
    require_reachable("mlflow-artifacts:/1/artifacts")
    require_reachable("/srv/artifacts")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", address)
        require_reachable("s3://bucket/1/artifacts")
    monkeypatch.delenv("MLFLOW_S3_ENDPOINT_URL")
    require_reachable("s3://bucket/1/artifacts")
