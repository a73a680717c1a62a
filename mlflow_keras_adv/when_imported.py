"""when_imported: calls a function as soon as the program imports a package, and not before."""

import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_logger = logging.getLogger(__name__)


def when_imported(name: str, callback: Callable[[], None]) -> None:
    """Calls a function once a module has been imported; immediately if it already has been.

    Args:
        name: Full name of the module.
        callback: The function. Its errors are logged, so that they do not break the import.
    """
    module = sys.modules.get(name)
    if module is not None and not getattr(module.__spec__, "_initializing", False):
        _call(callback)
        return
    if not any(each is _finder for each in sys.meta_path):
        sys.meta_path.insert(0, _finder)
    _finder.waiting.setdefault(name, []).append(callback)


class _Finder(MetaPathFinder):
    """A finder that delegates to the others, and wraps the loader that they find."""

    def __init__(self) -> None:
        self.waiting: dict[str, list[Callable[[], None]]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        callbacks = self.waiting.pop(fullname, None)
        if callbacks is None:
            return None
        try:
            spec = importlib.util.find_spec(fullname)  # of the others: ours has nothing waiting
        finally:
            self.waiting[fullname] = callbacks  # who asks may want to know, and import nothing
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, fullname)
        return spec


class _Loader(Loader):
    def __init__(self, loader: Any, name: str) -> None:
        self._loader = loader
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        spec.loader = self._loader  # as it would be without us
        created: ModuleType | None = self._loader.create_module(spec)
        spec.loader = self
        return created

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        for callback in _finder.waiting.pop(self._name, []):
            _call(callback)


def _call(callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception:
        _logger.exception("What was to be done after an import failed.")


_finder = _Finder()
