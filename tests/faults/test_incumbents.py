"""The same faults under MLflow's own logging, for the page: measured, not judged.

By MLflow's default settings a server that is away is asked for about eight minutes.
"""

import threading
from collections.abc import Callable

import pytest

from tests.faults.nursery import Nursery, held
from tests.faults.proxy import FaultyProxy, Rule
from tests.faults.table import Row, rows_of

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

STEPS = 100
LOGGERS = {
    "synchronous": "MLflow's synchronous logging",
    "asynchronous": "MLflow's asynchronous logging",
    "callback": "MLflow's Keras callback",
}
FAULTS = ("500 twice", "answer lost twice", "away for 30 s", "away for good")


@pytest.mark.parametrize("logger", LOGGERS)
@pytest.mark.parametrize("fault", FAULTS)
def test_mlflow_alone(
    fault: str,
    logger: str,
    request: pytest.FixtureRequest,
    nursery: Nursery,
    server: str,
    proxy: Callable[[], FaultyProxy],
) -> None:
    between = proxy()
    producer = nursery.start(between.address, STEPS, pause=0.1, logger=logger)
    producer.wait_for_step(10)
    back = threading.Timer(30, between.open)
    if fault == "500 twice":
        between.inject(Rule("500", "log", times=2))
    elif fault == "answer lost twice":
        between.inject(Rule("answer lost", "log", times=2))
    else:
        between.close()
        if fault == "away for 30 s":
            back.start()
    code = producer.wait(3000)
    back.cancel()
    holding = held(server, producer)
    row = Row(
        f"{LOGGERS[logger]}: {fault} ({'ended well' if code == 0 else 'raised'} at step "
        f"{producer.last_step} of {STEPS}, run {holding.status})",
        producer.last_step,
        len(holding.points.get("loss", {})),
        0,
        holding.duplicates,
        producer.longest_wait,
    )
    rows_of(request.config).append(row)
    assert len(holding.points.get("loss", {})) <= STEPS
