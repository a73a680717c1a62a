"""A trainer that ends without a word, at any moment: what it had handed in arrives all the same."""

import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mlflow_keras_adv.tracking.sync import Outcome
from tests.faults.conftest import Judge
from tests.faults.nursery import ROOT, Nursery, Producer
from tests.faults.proxy import FaultyProxy, Rule
from tests.warm import PYTHON

Sync = Callable[[Producer], Outcome]

ROUNDS = 50
# How each ends, its exit code, and the status of its run. Who can say a word says the truth.
ENDS = {
    "`kill -9`": (signal.SIGKILL, -signal.SIGKILL),
    "SIGTERM": (signal.SIGTERM, 143),
    "Ctrl-C": (signal.SIGINT, -signal.SIGINT),
    "`os._exit`": (None, 3),
}


@pytest.mark.parametrize("end", ENDS)
def test_it_is_ended_at_random_moments(
    end: str, nursery: Nursery, server: str, judge: Judge, sync: Sync
) -> None:
    """50 rounds in all; for half of them the server is away, so that much is pending."""
    number, code = ENDS[end]
    chance = random.Random(end)
    proxy = FaultyProxy(server)
    proxy.open()
    rounds = len(range(list(ENDS).index(end), ROUNDS, len(ENDS)))
    for away in (False, True):
        producers = []
        for _ in range(rounds // 2 + (away and rounds % 2)):
            moment = chance.randint(1, 60)
            exit_at = 0 if number else moment
            producers.append((moment, nursery.start(proxy.address, 2000, exit_at=exit_at)))
        for _, producer in producers:
            producer.wait_for_step(1)
        if away:
            proxy.inject(Rule("503"))
        for moment, producer in producers:
            if number is not None:
                producer.wait_for_step(moment)
                producer.kill(number)
        for _, producer in producers:
            assert producer.wait() == code, producer.said
        proxy.inject()
        for _, producer in producers:
            sync(producer)
            judge(end, producer, server, status="KILLED")
            assert not list((producer.home / "journals").iterdir())
    proxy.close()


def test_a_journal_whose_end_is_damaged(
    nursery: Nursery, server: str, judge: Judge, sync: Sync, proxy: Callable[[], FaultyProxy]
) -> None:
    between = proxy()
    producer = nursery.start(between.address, 10_000)
    producer.wait_for_step(1)
    between.inject(Rule("503"))
    producer.wait_for_step(40)
    producer.kill(signal.SIGKILL)
    assert producer.wait() == -signal.SIGKILL
    (journal,) = (producer.home / "journals").iterdir()
    last = max(journal.glob("*.log"))
    with last.open("ab") as log:
        log.write(os.urandom(100))  # the beginning of a record that was never finished
    between.inject()

    sync(producer)
    judge("damaged end of the journal", producer, server, status="KILLED")


def test_two_trainers_and_a_sync_at_a_time(
    nursery: Nursery, server: str, judge: Judge, tmp_path: Path
) -> None:
    """A sync takes nothing away from those that live, and delivers what a dead one has left."""
    home = tmp_path / "home"
    dead = nursery.start(server, 10_000, home=home)
    dead.wait_for_step(30)
    dead.kill(signal.SIGKILL)
    dead.wait()
    living = [nursery.start(server, 300, home=home, pause=0.01) for _ in range(2)]
    for producer in living:
        producer.wait_for_step(10)
    environment = {**os.environ, "MLFLOW_TRACKING_URI": server, "MLFLOW_KERAS_ADV_HOME": str(home)}
    program = "from mlflow_keras_adv.tracking.sync import sync; print(len(sync().delivered))"
    syncs = [
        subprocess.Popen([PYTHON, "-c", program], env=environment, cwd=ROOT, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    delivered = [int(each.communicate(timeout=120)[0].split()[-1]) for each in syncs]
    for producer in living:
        assert producer.wait() == 0, producer.said
        judge("two trainers and two `sync` at a time", producer, server, steps=300)
    judge("two trainers and two `sync` at a time", dead, server, status="KILLED")
    assert sum(delivered) == 1
