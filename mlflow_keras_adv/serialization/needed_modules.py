"""Finds the files that a model's own modules need, by following their imports.

Imports are read from the source, in functions too, and so are calls of `import_module` with a
literal name. Installed distributions are left out: they are requirements.
"""

import ast
import glob
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.serialization.loading import main_module_name

_OWN_PACKAGE = __name__.partition(".")[0]
_INSTALLED = {"site-packages", "dist-packages"}

# Files by the path that they are to have below the folder that is put together.
Files = dict[str, Path]


def needed_files(
    modules: Iterable[str],
    code_paths: Sequence[Path] = (),
    package_data: Sequence[str] = (),
    *,
    base: Path | None = None,
) -> Files:
    """Finds the files of modules and of every local module that these import.

    This package is taken along as a whole if it is imported, since it is on no package index.

    Args:
        modules: Dotted names of importable modules.
        code_paths: Files to take along as they are, and folders of which all modules are taken. A
            module that is among them is taken from there.
        package_data: Patterns of further files, such as "net/vocab/*.txt", relative to the folder
            that a package or module is in. `**` matches any number of folders; names that begin
            with a dot must be given explicitly.
        base: The folder to look in, instead of this process' import path: the code of a loaded
            model.

    Returns:
        The files by their path in the folder that holds the packages.

    Raises:
        UserError: A pattern finds no file.
    """
    found: Files = {}
    waiting = list(modules)
    given = {path.name.partition(".")[0]: path for path in code_paths}
    for path in code_paths:
        files = modules_in(path) if path.is_dir() else [path]
        found |= {file.relative_to(path.parent).as_posix(): file for file in files}
    for file in found.values():
        waiting += _imports_of(file, _dotted(found, file))
    seen: set[str] = set()
    places = {path.parent for path in code_paths}
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        top = module.partition(".")[0]
        source = given.get(top) or source_of(top, base)
        if source is None or not is_local(top, source):
            continue
        places.add(source.parent)
        if top == _OWN_PACKAGE:
            # With its stubs, in which its public names stand.
            files = [*modules_in(source), *sorted(source.rglob("*.pyi"))]
            found |= {file.relative_to(source.parent).as_posix(): file for file in files}
            continue
        for dotted, file in _with_parents(module, source):
            name = file.relative_to(source.parent).as_posix()
            if name not in found:
                found[name] = file
                waiting += _imports_of(file, dotted)
    for pattern in package_data:
        found |= _data(pattern, places)
    return dict(sorted(found.items()))


def source_of(top: str, base: Path | None = None) -> Path | None:
    """The folder of the top-level package `top`, or the file of the top-level module."""
    if base is not None:
        for path in (base / top, *_candidates(base / top)):
            if path.exists():
                return path
        if top != _OWN_PACKAGE:
            return None
    if top == main_module_name():  # sys.path may lack the script's folder
        return Path(str(sys.modules["__main__"].__file__)).resolve()
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module made by hand has none
        return None
    if spec is None or (spec.origin is None and top not in sys.modules):
        return None  # not there, or a folder without __init__.py that happens to have this name
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    if spec.origin is not None and spec.origin.endswith((".py", *EXTENSION_SUFFIXES)):
        return Path(spec.origin).resolve()
    return None  # built in


def is_local(top: str, source: Path) -> bool:
    """Whether a top-level module must be logged, because no requirement installs it."""
    if top == _OWN_PACKAGE:
        return True
    return top not in sys.stdlib_module_names and not _INSTALLED.intersection(source.parts)


def modules_in(folder: Path) -> list[Path]:
    """The Python modules of a folder, also compiled ones, except in hidden folders."""
    endings = (".py", *EXTENSION_SUFFIXES)
    return sorted(
        file
        for file in folder.rglob("*")
        if file.name.endswith(endings) and file.is_file()
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


def dotted_name(path: str) -> str:
    """The name under which a file at `path`, below the folder of all packages, is imported."""
    parts = path.split("/")
    parts[-1] = parts[-1].partition(".")[0]
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _dotted(files: Mapping[str, Path], file: Path) -> str:
    return dotted_name(next(name for name, each in files.items() if each == file))


def _with_parents(module: str, source: Path) -> Iterator[tuple[str, Path]]:
    """The files that an import of `module` runs: those of its packages and its own."""
    (top, *parts) = module.split(".")
    if source.is_file():
        yield top, source
        return
    folder, dotted = source, top
    for part in ("", *parts):
        if part:
            folder, dotted = folder / part, f"{dotted}.{part}"
        if not folder.is_dir():
            for file in _candidates(folder):
                if file.is_file():
                    yield dotted, file
                    break
            return  # a module; or no module but a name in one
        for file in _candidates(folder / "__init__"):
            if file.is_file():
                yield dotted, file
                break


def _candidates(path: Path) -> list[Path]:
    return [path.with_name(path.name + ending) for ending in (".py", *EXTENSION_SUFFIXES)]


def _imports_of(file: Path, dotted: str) -> Iterator[str]:
    """Dotted names that a file of the module `dotted` may import; some are no modules."""
    if file.suffix != ".py":
        return
    inside = dotted if file.stem == "__init__" else dotted.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                above = inside.split(".")[: len(inside.split(".")) - node.level + 1]
                module = ".".join([*above, module]) if module else ".".join(above)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called, name = node.func, node.args[0]
            short = getattr(called, "attr", getattr(called, "id", ""))
            if short in ("import_module", "__import__") and isinstance(name, ast.Constant):
                text = str(name.value)
                yield f"{inside}{text}" if text.startswith(".") else text


def _data(pattern: str, places: Iterable[Path]) -> Files:
    found: Files = {}
    for place in places:
        for name in glob.glob(pattern, root_dir=place, recursive=True):  # noqa: PTH207 - no dotfiles
            file = place / name
            if file.is_file() and "__pycache__" not in file.parts:
                found[Path(name).as_posix()] = file
    if not found:
        looked = ", ".join(sorted(map(str, places))) or "nowhere: the model needs no local module"
        raise UserError(
            f"package_data: no file is found by {pattern!r}, relative to the folder that the "
            f"model's packages are in ({looked}); expected something like 'net/vocab/*.txt'"
        )
    return found
