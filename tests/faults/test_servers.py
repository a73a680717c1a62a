"""A server that is not there, is killed, or forbids: the trainer goes on, and all of it arrives."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlflow_keras_adv.tracking.sync import Outcome
from tests.conftest import Guarded
from tests.faults.conftest import Judge
from tests.faults.nursery import Nursery, Producer, held
from tests.faults.proxy import FaultyProxy, Rule
from tests.faults.test_network import GRACE, NO_WAIT
from tests.mlflow_server import MlflowServer

Sync = Callable[[Producer], Outcome]

AWAY_SECONDS = 30


def test_a_server_that_is_absent_at_the_start_and_arrives_later(
    nursery: Nursery, server: str, judge: Judge, proxy: Callable[[], FaultyProxy]
) -> None:
    """The run is recorded offline, and delivered as `track` is left."""
    between = proxy()
    between.close()
    producer = nursery.start(between.address, 100, artifact_every=50)
    producer.wait_for_step(50)
    between.open()
    assert producer.wait() == 0, producer.said
    holding = judge("absent at the start, there at the end", producer, server, steps=100)
    assert holding.files == {"50.txt", "100.txt"}
    assert holding.run_id != producer.run_id


def test_a_server_that_is_absent_until_the_trainer_has_ended(
    nursery: Nursery, server: str, judge: Judge, sync: Sync, proxy: Callable[[], FaultyProxy]
) -> None:
    between = proxy()
    between.close()
    producer = nursery.start(between.address, 100, artifact_every=50)
    assert producer.wait() == 0, producer.said
    assert producer.longest_wait < NO_WAIT
    between.open()
    sync(producer)
    sync(producer)  # once more does nothing
    holding = judge("absent, then `sync`", producer, server, steps=100)
    assert holding.files == {"50.txt", "100.txt"}


@pytest.mark.slow
def test_a_server_that_is_killed(
    nursery: Nursery, tmp_path: Path, judge: Judge, sync: Sync
) -> None:
    """`kill -9` in mid-epoch: back after 30 s, and, for another trainer, never back in its time."""
    server = MlflowServer(tmp_path)
    server.start()
    stop = tmp_path / "stop"
    try:
        lives_on = nursery.start(server.address, 100, stop=str(stop), pause=0.05)
        ends = nursery.start(server.address, 300, pause=0.01)
        for producer in (lives_on, ends):
            producer.wait_for_step(50)
        server.kill()
        killed = time.monotonic()
        assert ends.wait() == 0, ends.said
        assert ends.leaving < GRACE
        assert ends.receipt["pending"] > 0
        assert "sync" in ends.said
        time.sleep(max(0.0, AWAY_SECONDS - (time.monotonic() - killed)))
        server.start()
        before = held(server.address, lives_on).delivered
        deadline = time.monotonic() + 60
        while held(server.address, lives_on).delivered == before:  # it catches up by itself
            assert time.monotonic() < deadline, lives_on.said
            time.sleep(0.5)
        stop.touch()
        assert lives_on.wait() == 0, lives_on.said
        judge("`kill -9` of the server, back after 30 s", lives_on, server.address)
        sync(ends)
        judge("`kill -9` of the server, never back, `sync`", ends, server.address, steps=300)
        for producer in (lives_on, ends):
            assert producer.longest_wait < NO_WAIT
    finally:
        server.stop()


def test_an_answer_that_is_lost_as_the_run_is_created(
    nursery: Nursery, server: str, judge: Judge, sync: Sync, proxy: Callable[[], FaultyProxy]
) -> None:
    """The run exists and its id was never told: no twin may be made."""
    between = proxy()
    between.inject(Rule("answer lost", "runs/create", times=1))
    producer = nursery.start(between.address, 20)
    assert producer.wait() == 0, producer.said
    assert between.did["answer lost"] == 1
    sync(producer)
    judge("the answer to the creation of the run is lost", producer, server, steps=20)


def test_a_right_that_is_withdrawn_and_given_back(
    nursery: Nursery, guarded_server: Guarded, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """403 may pass, when somebody has corrected the rights: what was produced waits for it."""
    guarded_server.permit_writing(True)
    name, password = guarded_server.reader
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    login = (("MLFLOW_TRACKING_USERNAME", name), ("MLFLOW_TRACKING_PASSWORD", password))
    producer = nursery.start(guarded_server.address, 200, pause=0.02, environment=login)
    producer.wait_for_step(20)
    guarded_server.permit_writing(False)
    producer.wait_for_step(150)
    guarded_server.permit_writing(True)
    assert producer.wait() == 0, producer.said
    guarded_server.permit_writing(False)
    judge(
        "403: the right to write is withdrawn and given back",
        producer,
        guarded_server.address,
        steps=200,
    )
    assert producer.longest_wait < NO_WAIT
