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


def test_too_many_names_are_refused_by_name() -> None:
    recorder = StepRecorder(width=2)
    recorder.write("a", 1)
    recorder.write("b", 1)
    with pytest.raises(ValueError, match=r"named .c.*taken: a, b"):
        recorder.write("c", 1)


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
