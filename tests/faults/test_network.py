"""Faults between a trainer and its server: every point arrives, once, and no step waits."""

import random
from collections.abc import Callable

import pytest

from mlflow_keras_adv.tracking.run import track
from mlflow_keras_adv.tracking.sync import Outcome
from tests.faults.conftest import Judge
from tests.faults.nursery import Nursery, Producer
from tests.faults.proxy import FaultyProxy, Kind, Rule

STEPS = 100
# A step of a producer takes microseconds; this is the grace for a machine that is busy.
NO_WAIT = 1.0
# `outbox.GRACE_SECONDS`, once for the run and once for what catches up, and the machine's own.
GRACE = 30.0

LOGGING = "runs/log-batch"
FAULTS: dict[Kind, Rule] = {
    "429": Rule("429", LOGGING, times=2),
    "500": Rule("500", LOGGING, times=2),
    "503": Rule("503", LOGGING, times=2),
    "cut": Rule("cut", LOGGING, times=2),
    "answer lost": Rule("answer lost", LOGGING, times=2),
    "hang": Rule("hang", LOGGING, times=1, seconds=3),
    "slow": Rule("slow", seconds=0.3),
}
TITLES: dict[Kind, str] = {
    "429": "429 Too Many Requests",
    "500": "500 Internal Server Error",
    "503": "503 Service Unavailable",
    "cut": "connection cut before the server has the batch",
    "answer lost": "connection cut after the server has accepted the batch",
    "hang": "the server does not answer in time",
    "slow": "each request takes 0.3 s longer",
}


@pytest.fixture(scope="module")
def producers(nursery: Nursery, server: str) -> dict[Kind, tuple[Producer, FaultyProxy]]:
    """One for each fault, all at a time: they wait more than they work."""
    at_work = {}
    for kind, rule in FAULTS.items():
        proxy = FaultyProxy(server)
        proxy.open()
        timeout = (("MLFLOW_HTTP_REQUEST_TIMEOUT", "2"),)
        producer = nursery.start(
            proxy.address, STEPS, pause=0.02, artifact_every=50, environment=timeout
        )
        producer.wait_for_step(1)
        proxy.inject(rule)
        at_work[kind] = producer, proxy
    return at_work


@pytest.mark.parametrize("kind", FAULTS)
def test_what_a_network_does(
    kind: Kind,
    producers: dict[Kind, tuple[Producer, FaultyProxy]],
    server: str,
    judge: Judge,
    sync: Callable[[Producer], Outcome],
) -> None:
    producer, proxy = producers[kind]
    assert producer.wait() == 0, producer.said
    proxy.inject()
    sync(producer)
    holding = judge(TITLES[kind], producer, server, steps=STEPS)
    assert proxy.did[kind] >= 1
    assert holding.files == {"50.txt", "100.txt"}
    assert holding.tags["producer"] == producer.plan.name
    assert holding.params["optimizer.name"] == "adam"
    assert producer.longest_wait < NO_WAIT
    assert producer.leaving < GRACE
    proxy.close()


def test_retries_beside_the_training_draw_none_of_its_random_numbers(
    proxy: Callable[[], FaultyProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    between = proxy()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", between.address)
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", raising=False)
    with track("retried", log_system_metrics=False) as run:
        run.flush()
        random.seed(1)
        between.inject(Rule("503", "log-batch", times=3))  # MLflow asks again before we do
        run.log_metrics({"loss": 1.0}, step=1)
        assert run.flush(60)
        assert between.did["503"] == 3
        drawn = random.random()
    assert drawn == random.Random(1).random()
