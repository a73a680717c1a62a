"""Whether the store of artifacts can be reached: said at once, where its SDK tries for minutes."""

import os
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from mlflow_keras_adv.tracking.store import PROBE_SECONDS

# Who has a server of S3 of their own name it in one of these: MLflow's variable, and boto3's.
_ENDPOINTS = ("MLFLOW_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def require_reachable(artifact_uri: str) -> None:
    """Connects once to the store, where its address is configured; else leaves it to the SDK.

    Args:
        artifact_uri: Where the artifacts are.

    Raises:
        OSError: Nobody listens there, or says so within seconds.
    """
    named = [os.environ[name] for name in _ENDPOINTS if os.environ.get(name)]
    if not named or urlsplit(artifact_uri).scheme != "s3":
        return
    endpoint = urlsplit(named[0])
    if endpoint.hostname is None:
        return
    if endpoint.scheme in getproxies() and not proxy_bypass(endpoint.hostname):
        return
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    socket.create_connection((endpoint.hostname, port), PROBE_SECONDS).close()
