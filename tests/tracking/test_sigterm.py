import multiprocessing
import os
import signal
import threading
from contextlib import contextmanager

import pytest

from mlflow_keras_adv.tracking.sigterm import Terminated, holds_back_terminated, raises_terminated


def send_sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def handled_by(handler: object):
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def test_it_raises_in_the_block_and_puts_the_handler_back() -> None:
    with pytest.raises(Terminated) as caught, raises_terminated():
        send_sigterm()
    assert caught.value.code == 143
    assert isinstance(caught.value, SystemExit)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_one_does_not_interrupt_the_clean_up() -> None:
    cleaned = False

    def stop_twice() -> None:
        nonlocal cleaned
        try:
            send_sigterm()
        finally:
            send_sigterm()
            cleaned = True

    with pytest.raises(Terminated), raises_terminated():
        stop_twice()
    assert cleaned


def test_one_that_arrives_while_a_run_ends_waits_until_it_has() -> None:
    passed = []

    def end_runs() -> None:
        with holds_back_terminated():
            with holds_back_terminated():
                send_sigterm()
            passed.append("inner")
        passed.append("outer")

    with pytest.raises(Terminated), raises_terminated(), raises_terminated():
        end_runs()
    assert passed == ["inner"]


def test_a_handler_of_the_user_is_left_alone() -> None:
    received = []
    with handled_by(lambda *_: received.append(1)):
        mine = signal.getsignal(signal.SIGTERM)
        with raises_terminated():
            assert signal.getsignal(signal.SIGTERM) is mine
            send_sigterm()
    assert received == [1]


def test_a_handler_that_the_user_sets_in_the_block_stays() -> None:
    with handled_by(signal.SIG_DFL):
        with raises_terminated():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_blocks_may_be_left_in_any_order() -> None:
    first, second = raises_terminated(), raises_terminated()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    with pytest.raises(Terminated):
        send_sigterm()
    second.__exit__(None, None, None)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_block_that_another_thread_leaves_does_no_harm() -> None:
    block = raises_terminated()
    block.__enter__()
    thread = threading.Thread(target=block.__exit__, args=(None, None, None))
    thread.start()
    thread.join()
    with pytest.raises(Terminated), raises_terminated():
        send_sigterm()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_one_that_is_held_back_for_good_is_not_raised() -> None:
    with raises_terminated():
        with holds_back_terminated(for_good=True):
            send_sigterm()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # the next one ends the process


def test_another_thread_sets_no_handler() -> None:
    handlers = []

    def block() -> None:
        with raises_terminated(), holds_back_terminated():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert handlers == [signal.SIG_DFL]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_that_waits_for_good_ends_at_once_as_it_would_without_us() -> None:
    """As the workers of a pool do, whose signal another of their threads may take."""

    def wait_for_good() -> None:
        lock = multiprocessing.get_context("fork").Lock()
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        lock.acquire()
        lock.acquire()

    with raises_terminated():
        child = multiprocessing.get_context("fork").Process(target=wait_for_good)
        thread = threading.Thread(target=child.start)  # as Keras does it: not in the main thread
        thread.start()
        thread.join()
        child.terminate()
        child.join(60)
        hung = child.is_alive()
        child.kill()
        assert not hung
        assert child.exitcode == -signal.SIGTERM
        with pytest.raises(Terminated):  # and the parent is as it was
            send_sigterm()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_that_opens_a_run_of_its_own_ends_it() -> None:
    def opens_its_own() -> None:
        try:
            with raises_terminated():
                send_sigterm()
        except Terminated:
            os._exit(9)

    with raises_terminated():
        child = multiprocessing.get_context("fork").Process(target=opens_its_own)
        child.start()
        child.join(60)
        assert child.exitcode == 9
