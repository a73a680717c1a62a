"""What the fault tests share: one nursery, proxies in front of the session's server, the table."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from mlflow_keras_adv.tracking import sync as syncing
from tests.faults.nursery import Holding, Nursery, Producer, expected, held
from tests.faults.proxy import FaultyProxy
from tests.faults.table import Row, rows_of


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory, store: str) -> Iterator[Nursery]:
    made = Nursery(tmp_path_factory.mktemp("producers"))
    yield made
    made.close()


@pytest.fixture
def proxy(server: str) -> Iterator[Callable[[], FaultyProxy]]:
    """Makes proxies in front of the session's server, which are open."""
    with ExitStack() as opened:

        def make() -> FaultyProxy:
            made = FaultyProxy(server)
            made.open()
            opened.callback(made.close)
            return made

        yield make


@pytest.fixture
def sync(monkeypatch: pytest.MonkeyPatch) -> Callable[[Producer], syncing.Outcome]:
    """Delivers what a producer has left, as `mlflow-keras-adv sync` does."""

    def deliver(producer: Producer) -> syncing.Outcome:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", producer.plan.uri)
        monkeypatch.setenv("MLFLOW_KERAS_ADV_HOME", str(producer.home))
        return syncing.sync()

    return deliver


Judge = Callable[..., Holding]


@pytest.fixture
def judge(request: pytest.FixtureRequest) -> Judge:
    """Reads back a producer's run, holds it to what was produced, and adds a row to the table."""

    def compare(
        fault: str,
        producer: Producer,
        uri: str,
        *,
        status: str = "FINISHED",
        steps: int | None = None,
        lost: int = 0,
    ) -> Holding:
        """Holds that all that was handed in is in the store, once, and the run's end is told.

        Args:
            fault: For the table.
            producer: Which has ended.
            uri: Where to read.
            status: That its run is to have.
            steps: That it was to reach; None if it was ended before, and what its disk had not
                taken in time may be missing.
            lost: Points that were refused by name.
        """
        holding = held(uri, producer)
        handed_in = expected(producer.certain_step if steps is None else producer.last_step)
        produced = sum(len(each) for each in handed_in.values())
        delivered = sum(
            len(holding.points.get(key, {}).keys() & handed_in[key]) for key in handed_in
        )
        rows_of(request.config).append(
            Row(fault, produced, delivered, lost, holding.duplicates, producer.longest_wait)
        )
        assert holding.duplicates == 0
        assert holding.wrong == 0
        assert produced == delivered + lost, producer.said
        assert holding.status == status
        if steps is not None:
            assert producer.last_step == steps
        return holding

    return compare
