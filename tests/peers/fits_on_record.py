"""A pytest plugin: what every `fit` in a run of tests leaves, written to a file.

`pytest -p tests.peers.fits_on_record --observed WAY --outcomes FILE` runs any tests of Keras
models. `WAY` is how each `fit` in them is observed; nothing of the tests is known or changed. What
is written is the same for each `WAY` if observing changes nothing:

- of each test how it ended, and the warnings that came in it;
- of each `fit` in it, in order: what it raised, its history, the variables of the model and its
  optimizers, the attributes of both, and whether the train function is the one that was found.

After a `fit` that raised, Keras tells no callback, so that an `MlflowLogger` puts the model back
when the `track` around it ends: such a model is looked at once more at the end of the test, and in
this way of observing only then.
"""

import functools
import hashlib
import json
import re
import sys
import types
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import mlflow_keras_adv as mka
from tests.differential import leaves
from tests.peers.absent import standing_in

WAYS = ("plain", "autolog", "MlflowLogger")
# Addresses, and the folders that a test makes for itself.
_ACCIDENTAL = re.compile(r"0x[0-9a-f]+|/[\w./-]*tmp[\w./-]*|\b\d+\.\d+s\b")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--observed", choices=WAYS, required=True, help="how each fit is observed")
    parser.addoption("--outcomes", type=Path, required=True, help="file to write outcomes to")


def pytest_configure(config: pytest.Config) -> None:
    # Keras' own, of a file that its wheel does not hold.
    config.addinivalue_line("markers", "requires_trainable_backend: all but NumPy")
    config.addinivalue_line("markers", "multi_device: wants several devices")
    root = types.ModuleType("conftest")
    root.skip_if_backend = _skip_if_backend  # type: ignore[attr-defined]
    sys.modules.setdefault("conftest", root)
    config.pluginmanager.register(_Recording(config), "fits on record")


def _skip_if_backend(backend: str, reason: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(keras.backend.backend() == backend, reason=reason)


class _Recording:
    """Stands before `fit`, in front of whatever observes it."""

    def __init__(self, config: pytest.Config) -> None:
        self._way = config.getoption("--observed")
        self._path = config.getoption("--outcomes")
        self._tests: dict[str, dict[str, Any]] = {}
        self._fits: list[dict[str, Any]] = []
        self._broken_off: list[tuple[dict[str, Any], Any]] = []
        self._seed = 0
        self._make_seeds_steady()
        if self._way == "autolog":
            mka.autolog()
        # Keras' tests of its trainer train layers that are trainers and no models: what stands
        # before the `fit` of models is asked to observe theirs too. The class has no public name.
        trainer = next(each for each in keras.Model.__mro__ if each.__name__ == "TensorFlowTrainer")
        trainer.fit = self._recorded(keras.Model.fit)
        if "fit" in vars(keras.Model):
            keras.Model.fit = trainer.fit

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Iterator[None]:
        of_file = isinstance(collector, pytest.Module)
        with standing_in(collector.path) if of_file else nullcontext():
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        self._fits = self._of(item.nodeid)["fits"]
        self._seed = zlib.crc32(item.nodeid.encode())
        try:
            with self._around():
                keras.utils.set_random_seed(self._seed)
                return (yield)
        finally:
            for record, model in self._broken_off:
                record |= _digests(model, "in the end")
            self._broken_off.clear()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = crash.message.splitlines()[0] if crash is not None else ""
            self._of(report.nodeid).update(outcome=report.outcome, reason=_steady(reason))

    def pytest_warning_recorded(self, warning_message: Any, nodeid: str) -> None:
        if nodeid:
            text = f"{warning_message.category.__name__}: {warning_message.message}"
            warned = self._of(nodeid)["warnings"]
            warned[:] = sorted({*warned, _steady(text)})

    def pytest_sessionfinish(self) -> None:
        self._path.write_text(json.dumps(self._tests, indent=1))

    def _of(self, nodeid: str) -> dict[str, Any]:
        return self._tests.setdefault(
            nodeid, {"outcome": "none", "reason": "", "warnings": [], "fits": []}
        )

    def _around(self) -> AbstractContextManager[Any]:
        """A run for half of the autologged tests; in the others each `fit` opens its own."""
        if self._way == "plain" or (self._way == "autolog" and self._seed % 2):
            return nullcontext()
        return mka.track("a test")

    def _make_seeds_steady(self) -> None:
        """Who asks NumPy for fresh seeds, as Keras' test data do, is given those of the test."""
        seed, default_rng = np.random.seed, np.random.default_rng
        np.random.seed = lambda given=None: seed(self._seed if given is None else given)
        np.random.default_rng = lambda given=None: default_rng(
            self._seed if given is None else given
        )

    def _recorded(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def fit(model: Any, *args: Any, **kwargs: Any) -> Any:
            if self._way == "MlflowLogger" and not args[5:]:  # nobody gives these by position
                given = kwargs.get("callbacks")
                if not isinstance(given, keras.callbacks.CallbackList):
                    kwargs["callbacks"] = [*keras.tree.flatten(given or []), mka.MlflowLogger()]
            record: dict[str, Any] = {"model": type(model).__qualname__}
            self._fits.append(record)
            found = vars(model).get("train_function")
            raised = True
            try:
                result = original(model, *args, **kwargs)
                raised = False
                record |= _digests(result, "")
                return result
            except BaseException as error:
                record["raised"] = _steady(f"{type(error).__name__}: {error}".splitlines()[0])
                self._broken_off.append((record, model))
                raise
            finally:
                if not (raised and self._way == "MlflowLogger"):
                    after = _digests(model, "model")
                    function = after.pop("model/attributes/train_function", "")
                    is_found = vars(model).get("train_function") is found
                    record |= after | {"model/function": "as found" if is_found else function}

        return fit


def _digests(value: Any, path: str) -> dict[str, str]:
    try:
        found = leaves(value, path)
    except Exception as error:  # a model of a test may refuse to be asked
        return {path: _steady(f"{type(error).__name__}: {error}")}
    return {name: _digest(each) for name, each in found.items()}


def _digest(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return _steady(str(value))
    if value.dtype == object:
        return _steady(repr(value))
    bits = hashlib.sha256(value.tobytes()).hexdigest()[:16]
    total = f", sum {float(np.sum(value)):.9g}" if value.dtype.kind in "fiu" else ""
    return f"{value.dtype}{list(value.shape)} {bits}{total}"


def _steady(text: str) -> str:
    return _ACCIDENTAL.sub("…", text)
