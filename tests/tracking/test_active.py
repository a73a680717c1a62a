"""What is current, where several asyncio tasks take turns in one thread."""

import asyncio
import contextvars
import threading
from collections.abc import Iterator

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_keras_adv.tracking import current_run, track
from mlflow_keras_adv.tracking.active import Stack
from mlflow_keras_adv.tracking.run import Run


def the_run() -> Run:
    """The current run, which is also the active one."""
    found, active = current_run(), mlflow.active_run()
    assert found is not None
    assert active is not None
    assert active.info.run_id == found.run_id
    return found


def test_tasks_that_take_turns_have_each_its_own_run(client: MlflowClient, experiment: str) -> None:
    async def work(number: int) -> str:
        with track(f"task-{number}", log_system_metrics=False) as run:
            for step in range(3):
                await asyncio.sleep(0.01 * (number + 1))
                assert the_run() is run
                the_run().log_metrics({"final/m": number, "m": number}, step=step)
                mlflow.log_metric("fluent", number, step=step)
            return run.run_id

    async def work_on_all() -> list[str]:
        return await asyncio.gather(*(work(number) for number in range(3)))

    run_ids = asyncio.run(work_on_all())
    assert current_run() is None
    assert mlflow.active_run() is None
    assert len(set(run_ids)) == 3
    for number, run_id in enumerate(run_ids):
        run = client.get_run(run_id)
        assert run.info.status == "FINISHED"
        assert run.data.metrics == {"final/m": number, "m": number, "fluent": number}
        assert len(client.get_metric_history(run_id, "m")) == 3


def test_a_task_that_is_begun_in_a_run_is_in_it(client: MlflowClient, experiment: str) -> None:
    async def child(parent: Run, number: int) -> str:
        assert the_run() is parent
        with track(str(number), nested=True) as run:
            await asyncio.sleep(0.01)
            assert the_run() is run
            with mlflow.start_run(nested=True) as theirs:
                await asyncio.sleep(0.01)
                assert the_run().run_id == theirs.info.run_id
            assert the_run() is run
        assert the_run() is parent
        return run.run_id

    async def outside(begun: asyncio.Event) -> None:
        await begun.wait()
        assert current_run() is None
        assert mlflow.active_run() is None
        with mlflow.start_run() as alone:  # MLflow would say that another is active
            await asyncio.sleep(0.01)
            assert the_run().run_id == alone.info.run_id

    async def work() -> tuple[str, list[str]]:
        begun = asyncio.Event()
        stranger = asyncio.create_task(outside(begun))
        with track(log_system_metrics=False) as parent:
            begun.set()
            children = await asyncio.gather(*(child(parent, number) for number in range(3)))
            await stranger
            assert await asyncio.to_thread(current_run) is parent  # it takes the context along
            seen: list[Run | None] = []
            thread = threading.Thread(target=lambda: seen.append(current_run()))
            thread.start()
            thread.join()
            assert seen == [None]
        return parent.run_id, children

    parent_id, children = asyncio.run(work())
    tags = [client.get_run(run_id).data.tags for run_id in children]
    assert [each["mlflow.parentRunId"] for each in tags] == [parent_id] * 3


def test_what_a_task_that_is_done_has_opened_is_seen(experiment: str) -> None:
    """As in a notebook, where each cell may be a task of its own."""

    blocks = [track(log_system_metrics=False)]

    async def cell() -> Run:
        return blocks[0].__enter__()

    async def work() -> None:
        opened = await asyncio.create_task(cell())
        assert the_run() is opened
        blocks[0].__exit__(None, None, None)
        assert current_run() is None

    asyncio.run(work())
    assert mlflow.active_run() is None


def test_a_task_that_is_cancelled_leaves_its_run_killed(
    client: MlflowClient, experiment: str
) -> None:
    opened: list[Run] = []

    async def work() -> None:
        with track(log_system_metrics=False) as run:
            opened.append(run)
            await asyncio.sleep(300)

    async def cancel() -> None:
        task = asyncio.create_task(work())
        while not opened:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert client.get_run(opened[0].run_id).info.status == "KILLED"


def test_a_block_may_be_left_in_another_context_or_thread(
    client: MlflowClient, experiment: str
) -> None:
    block = track(log_system_metrics=False)
    run = contextvars.copy_context().run(block.__enter__)
    assert the_run() is run
    contextvars.copy_context().run(block.__exit__, None, None, None)
    assert current_run() is None

    block = track(log_system_metrics=False)
    other = block.__enter__()
    thread = threading.Thread(target=block.__exit__, args=(None, None, None))
    thread.start()
    thread.join()
    assert current_run() is None
    for each in (run, other):
        assert client.get_run(each.run_id).info.status == "FINISHED"


def test_a_generator_that_is_closed_ends_its_run_finished(
    client: MlflowClient, experiment: str
) -> None:
    def epochs() -> Iterator[Run]:
        with track(log_system_metrics=False) as run:
            yield run
            yield run

    opened = [run for run, _ in zip(epochs(), range(1), strict=False)]
    assert current_run() is None
    assert client.get_run(opened[0].run_id).info.status == "FINISHED"


def test_the_stack_is_a_list_to_mlflow() -> None:
    runs = [object() for _ in range(4)]
    stack = Stack(runs[:1])  # type: ignore[arg-type]
    assert stack
    for run in runs[1:]:
        stack.append(run)  # type: ignore[arg-type]
    assert list(stack) == runs
    assert stack[-1] is runs[-1]
    assert stack[:2] == runs[:2]
    stack.insert(1, "x")  # type: ignore[arg-type]
    assert [stack.pop(1), stack.pop(), stack.pop(0)] == ["x", runs[3], runs[0]]
    stack[0] = "y"
    assert stack.everything() == ["y", runs[2]]
    del stack[:]
    assert not stack
