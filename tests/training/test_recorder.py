"""StepRecorder in every way a step can run."""

import gc
import weakref

import numpy as np
import pytest
import tensorflow as tf

from mlflow_keras_adv.training.recorder import StepRecorder, recorder_of


def three_steps(recorder: StepRecorder) -> None:
    for step in tf.range(3):
        recorder.advance(examples=step + 10)
        recorder.write("value", tf.cast(step, tf.float64) / 2)
        if step == 1:
            recorder.write("sometimes", step)


@pytest.mark.parametrize("how", ["eager", "graph", "xla"])
def test_each_step_has_its_row(how: str) -> None:
    recorder = StepRecorder(capacity=8)
    function = {
        "eager": three_steps,
        "graph": tf.function(three_steps),
        "xla": tf.function(three_steps, jit_compile=True),
    }[how]
    for _ in range(2):
        function(recorder)
        rows = recorder.read()
        assert rows.count == 3
        assert rows.columns["examples"].tolist() == [10, 11, 12]
        assert rows.columns["value"].tolist() == [0, 0.5, 1]
        assert rows.columns["sometimes"].tolist() == [None, 1, None]
    assert recorder.read().count == 0


def test_a_loop_in_python_begins_its_rows_on_the_host() -> None:
    recorder = StepRecorder(capacity=4)
    recorder.write("value", 9)  # outside of any step, into the row that comes last
    for begin in (0, 7):
        for step in range(begin, begin + 6):
            recorder.advance_on_host(examples=step + 10)
            if step % 3:
                recorder.write("value", step)
        rows = recorder.read()
        assert rows.count == 6
        last = range(begin + 2, begin + 6)
        assert rows.columns["examples"].tolist() == [None, None, *(step + 10 for step in last)]
        values = [step if step % 3 else None for step in last]
        assert rows.columns["value"].tolist() == [None, None, *values]
    recorder.give_back()
    recorder.advance(examples=1)
    assert recorder.read().columns["examples"].tolist() == [22, 1]


def test_nan_and_infinity_are_values() -> None:
    recorder = StepRecorder()
    for value in (np.nan, np.inf, -np.inf, 0.0):
        recorder.advance()
        recorder.write("value", value)
    column = recorder.read().columns["value"]
    assert column.count() == 4
    np.testing.assert_array_equal(column.data, np.float32([np.nan, np.inf, -np.inf, 0]))


def test_rows_beyond_the_capacity_are_counted_and_masked() -> None:
    recorder = StepRecorder(capacity=4)
    for step in range(10):
        recorder.advance()
        recorder.write("value", step)
    rows = recorder.read()
    assert rows.count == 10
    assert rows.columns["value"].tolist() == [None] * 6 + [6, 7, 8, 9]


def test_a_write_outside_of_any_step_disturbs_no_row() -> None:
    recorder = StepRecorder(capacity=4)
    recorder.write("value", 1)
    recorder.advance()
    rows = recorder.read()
    assert rows.count == 1
    assert rows.columns["value"].tolist() == [None]


NAMES = [f"loss_{number}" for number in range(100)]


def three_steps_of_many_names(recorder: StepRecorder) -> None:
    for step in tf.range(3):
        recorder.advance(examples=step + 10)
        recorder.write_all({name: step + i for i, name in enumerate(NAMES[:60])})
        for i, name in enumerate(NAMES[60:], start=60):
            recorder.write(name, step + i)
        if step == 1:
            recorder.write("sometimes", step)


@pytest.mark.parametrize("how", ["eager", "graph", "xla"])
def test_no_number_of_names_is_too_many(how: str) -> None:
    recorder = StepRecorder(capacity=8)
    function = {
        "eager": three_steps_of_many_names,
        "graph": tf.function(three_steps_of_many_names),
        "xla": tf.function(three_steps_of_many_names, jit_compile=True),
    }[how]
    for _ in range(5):  # the table is gone through more than once
        function(recorder)
        rows = recorder.read()
        assert rows.count == 3
        assert list(rows.columns) == ["examples", *NAMES, "sometimes"]
        assert rows.columns["examples"].tolist() == [10, 11, 12]
        for i, name in enumerate(NAMES):
            assert rows.columns[name].tolist() == [i, i + 1, i + 2]
        assert rows.columns["sometimes"].tolist() == [None, 1, None]


def test_a_step_that_was_traced_before_further_names_came_goes_on() -> None:
    recorder = StepRecorder(capacity=4, width=2)

    @tf.function
    def old(value: tf.Tensor) -> None:
        recorder.advance(examples=1)
        recorder.write("a", value)

    @tf.function(jit_compile=True)
    def new(value: tf.Tensor) -> None:
        recorder.advance(examples=2, b=value)
        recorder.write_all({"a": value, "c": value, "d": value, "e": value, "f": value})

    for _ in range(3):
        old(tf.constant(1.0))
        new(tf.constant(2.0))
        old(tf.constant(3.0))
        rows = recorder.read()
        assert rows.columns["examples"].tolist() == [1, 2, 1]
        assert rows.columns["a"].tolist() == [1, 2, 3]
        for name in "bcdef":
            assert rows.columns[name].tolist() == [None, 2, None]
    assert old.experimental_get_tracing_count() == 1


def test_names_that_only_the_host_knows_and_a_row_given_back_may_be_in_any_table() -> None:
    recorder = StepRecorder(capacity=4, width=1)
    recorder.advance_on_host(examples=1, a=2)
    recorder.write("b", 3)
    assert {k: v.tolist() for k, v in recorder.read().columns.items()} == {
        "b": [3],
        "examples": [1],
        "a": [2],
    }
    recorder.give_back()
    recorder.write("c", 4)
    recorder.write("d", 5)
    assert {k: v.tolist() for k, v in recorder.read().columns.items()} == {
        "b": [3],
        "examples": [1],
        "a": [2],
        "c": [4],
        "d": [5],
    }


def test_a_table_belongs_to_its_owner_and_dies_with_it() -> None:
    class Owner:
        pass

    owner = Owner()
    recorder = recorder_of(owner)
    assert recorder_of(owner) is recorder
    assert recorder_of(owner, capacity=5000).capacity == 5000
    dead = weakref.ref(recorder_of(owner))
    del owner, recorder
    gc.collect()
    assert dead() is None


def test_a_table_made_while_a_step_is_traced_outlives_the_trace() -> None:
    owner = tf.Module()

    @tf.function
    def step() -> None:
        recorder_of(owner).advance()
        recorder_of(owner).write("value", 7)

    step()
    assert recorder_of(owner).read().columns["value"].tolist() == [7]


@pytest.mark.parametrize("within", ["scope", "replica"])
def test_tables_are_made_outside_of_the_scope_of_a_strategy(within: str) -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    owner = tf.Module()

    def step() -> None:
        recorder = recorder_of(owner, width=2)
        recorder.advance(examples=1)
        recorder.write_all(dict.fromkeys("abcdef", 2))

    step_of_all = tf.function(lambda: strategy.run(step) if within == "replica" else step())
    with strategy.scope():
        step_of_all()
        step_of_all()
    columns = recorder_of(owner).read().columns
    assert {name: column.tolist() for name, column in columns.items()} == {
        "examples": [1, 1],
        **{name: [2, 2] for name in "abcdef"},
    }
