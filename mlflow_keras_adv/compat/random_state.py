"""The user's random numbers, and the names that Keras gives to layers, are not used up by ours.

A call of ours may draw: MLflow takes the name of an unnamed run from the module `random`, Keras and
tf_keras the seeds of initializers and of Dropout, and a forest that ranks hyperparameters draws
from NumPy. What the user builds afterwards would have other weights than without us. So each of our
calls ends with the state that it found.

Nothing is imported or made here: of a library that is not loaded there is no state to keep.
"""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

_PutBack = Callable[[], object]


@contextmanager
def keeps_random_state() -> Iterator[None]:
    """Puts back, after the block, all random state of the program; also a decorator of functions.

    That of `random`, of NumPy's old functions, of TensorFlow's operations without a seed and its
    global generator, of Keras' global seed generator and of tf_keras'; and Keras' counters of
    names, so that the user's next layer is `dense_3` where it would have been. What is drawn in the
    block, as by a training, depends on that state and nothing else.

    For calls that end soon: what another thread has drawn meanwhile is drawn again.
    """
    found: list[_PutBack] = [
        partial(random.setstate, random.getstate()),
        partial(np.random.set_state, np.random.get_state()),
        _tensorflow(),
        _keras(),
        _tf_keras(),
    ]
    try:
        yield
    finally:
        for put_back in found:
            put_back()


# None of the following has a public way to read it that does not also make it, or draw from it.


def _tensorflow() -> _PutBack:
    """Seed and generator of eager operations, and the state of `tf.random.Generator`s' global."""
    context = _context()
    if context is None:
        return _nothing
    # Without a seed there is no generator. Ours draws from another one, which begins at the user's:
    # the kernel of an operation with the same seed once more would go on where ours has left it.
    seed, seeds = context._seed, vars(context).get("_rng")
    if seeds is not None:
        twin = random.Random()
        twin.setstate(seeds.getstate())
        context._rng = random.Random(twin.getrandbits(64))
    operations = sys.modules.get("tensorflow.python.ops.stateful_random_ops")
    generator: Any = getattr(operations, "global_generator", None)
    numbers = None if generator is None else _read(generator.state)

    def put_back() -> None:
        context._seed = seed
        if seeds is not None:
            context._rng = seeds
        if operations is not None:
            operations.global_generator = generator  # type: ignore[attr-defined]
            if numbers is not None:
                generator.state.assign(numbers)

    return put_back


def _keras() -> _PutBack:
    """Keras' global seed generator, which is made at first use, and its counters of names."""
    attributes = sys.modules.get("keras.src.backend.common.global_state")
    if attributes is None:
        return _nothing
    get, put = attributes.get_global_attribute, attributes.set_global_attribute
    generator, names = get("global_seed_generator"), get("object_name_uids")
    numbers = None if generator is None else _read(generator.state)
    counts = None if names is None else dict(names)

    def put_back() -> None:
        put("global_seed_generator", generator)
        if numbers is not None:
            generator.state.assign(numbers)
        if counts is None:
            put("object_name_uids", None)
        else:
            names.clear()
            names.update(counts)
            put("object_name_uids", names)

    return put_back


def _tf_keras() -> _PutBack:
    """The same of tf_keras, where `set_random_seed` makes a generator of Python's kind."""
    backend = sys.modules.get("tf_keras.src.backend")
    if backend is None:
        return _tf_keras_as_new
    generator: Any = getattr(backend._SEED_GENERATOR, "generator", None)
    state = None if generator is None else generator.getstate()
    counts = {graph: dict(names) for graph, names in backend.PER_GRAPH_OBJECT_NAME_UIDS.items()}

    def put_back() -> None:
        backend._SEED_GENERATOR.generator = generator
        if state is not None:
            generator.setstate(state)
        for graph, names in list(backend.PER_GRAPH_OBJECT_NAME_UIDS.items()):
            names.clear()
            names.update(counts.get(graph, {}))

    return put_back


def _tf_keras_as_new() -> None:
    """A call of ours may have been the first that needed tf_keras."""
    if (backend := sys.modules.get("tf_keras.src.backend")) is not None:
        backend.PER_GRAPH_OBJECT_NAME_UIDS.clear()
        backend._SEED_GENERATOR.generator = None


def _context() -> Any:
    """TensorFlow's context, if there is one; it is not asked while a function is being traced."""
    module = sys.modules.get("tensorflow.python.eager.context")
    context = getattr(module, "_context", None)
    return context if context is not None and context.executing_eagerly() else None


def _read(variable: Any) -> Any:
    """The numbers in a variable of TensorFlow or Keras; None where they cannot be read now."""
    if _context() is None:
        return None
    # Of a Keras variable what is inside: its own `__array__` has NumPy warn.
    return (variable if callable(variable.value) else variable.value).numpy()


def _nothing() -> None:
    pass
