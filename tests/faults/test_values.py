"""What a trainer hands in, or its machine does, that no store takes."""

from collections.abc import Callable

from mlflow_keras_adv.tracking.sync import Outcome
from tests.faults.conftest import Judge
from tests.faults.nursery import Nursery, Producer, expected, held
from tests.faults.proxy import FaultyProxy, Rule

Sync = Callable[[Producer], Outcome]


def test_values_keys_and_params_that_mlflow_does_not_take(
    nursery: Nursery, server: str, judge: Judge, sync: Sync
) -> None:
    """NaN is kept, an infinity refused; forbidden keys, a long param, 10,000 params arrive."""
    producer = nursery.start(server, 50, odd=True)
    assert producer.wait(300) == 0, producer.said
    sync(producer)
    holding = judge(
        "NaN, Inf, forbidden and long keys, a param of 6001 characters, 10,000 params",
        producer,
        server,
        steps=50,
    )
    assert producer.receipt["refused_names"] == {"inf": 1, "-inf": 1, "text": 1}
    assert producer.receipt["refused"] == 3
    assert producer.receipt["produced"] == 50 + 50 + 6
    assert len(holding.points["nan"]) == 1
    assert holding.points["a _forbidden_ key_ 100 _"] == {1: 1.0}
    assert holding.params["long"] == "x" * 6000
    assert holding.params["_layers_.units"] == "64"
    many = {key: value for key, value in holding.params.items() if key.startswith("many")}
    assert many == {f"many/{number}": str(number) for number in range(10_000)}


def test_a_clock_that_steps_back(nursery: Nursery, server: str, judge: Judge, sync: Sync) -> None:
    producer = nursery.start(server, 60, clock_back_at=30)
    assert producer.wait() == 0, producer.said
    judge("a clock that steps back by an hour", producer, server, steps=60)


def test_a_disk_that_is_full(
    nursery: Nursery, server: str, judge: Judge, sync: Sync, proxy: Callable[[], FaultyProxy]
) -> None:
    """What the journal cannot take waits in memory; a store that comes back gets all of it."""
    between = proxy()
    producer = nursery.start(between.address, 300, file_bytes=20_000)
    producer.wait_for_step(1)
    between.inject(Rule("503"))
    producer.wait_for_step(250)
    between.inject()
    assert producer.wait() == 0, producer.said
    judge("the journal's disk is full, the server away and back", producer, server, steps=300)
    assert producer.said.count("The journal cannot be written") == 1


def test_a_disk_that_is_full_and_a_server_that_stays_away(
    nursery: Nursery, server: str, sync: Sync, judge: Judge, proxy: Callable[[], FaultyProxy]
) -> None:
    """What cannot be kept is refused by name: the sum is right."""
    between = proxy()
    producer = nursery.start(between.address, 300, file_bytes=20_000)
    producer.wait_for_step(1)
    between.inject(Rule("503"))
    assert producer.wait() == 0, producer.said
    receipt = producer.receipt
    assert receipt["produced"] == sum(len(each) for each in expected(300).values())
    assert receipt["produced"] == receipt["delivered"] + receipt["pending"] + receipt["refused"]
    names = receipt["refused_names"]
    assert receipt["refused"] == names["loss"] + names["norm"] > 0

    between.inject()
    sync(producer)
    judge(
        "the journal's disk is full, the server away for good",
        producer,
        server,
        steps=300,
        lost=receipt["refused"],
    )
    tags = held(server, producer).tags
    assert int(tags["points.refused"]) == receipt["refused"]
