from importlib import invalidate_caches
from pathlib import Path

import pytest

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.serialization.needed_modules import needed_files


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_imports_of_every_form_are_followed_and_nothing_else(project: Path) -> None:
    files = {
        "nm_net/__init__.py": "",
        "nm_net/model.py": "import json, numpy\nfrom . import parts\nfrom .sub.deep import f\n",
        "nm_net/parts.py": "def f():\n    from nm_blocks.x import y\n",
        "nm_net/sub/__init__.py": "from .. import near as n\n",
        "nm_net/sub/deep.py": "from nm_star import *\nfrom ..named import Thing\n",
        "nm_net/near.py": "",
        "nm_net/named.py": "class Thing: ...\n",
        "nm_net/train.py": "import nm_unrelated\n",
        "nm_blocks/__init__.py": "import nm_single, nm_missing",
        "nm_blocks/x.py": "y = 1",
        "nm_blocks/z.py": "",
        "nm_single.py": "from importlib import import_module\nimport_module('nm_late.here')\n",
        "nm_late/here.py": "import nm_net.model as again",
        "nm_star.py": "",
        "nm_unrelated.py": "",
    }
    for name, text in files.items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    invalidate_caches()
    import nm_late  # noqa: F401 - a folder without __init__.py counts where it was imported

    unneeded = {"nm_net/train.py", "nm_blocks/z.py", "nm_unrelated.py"}
    assert needed_files(["nm_net.model"]) == {
        name: project / name for name in sorted(files) if name not in unneeded
    }
    assert needed_files(["keras", "json", "nm_missing"]) == {}


def test_this_package_travels_whole_where_it_is_imported(project: Path) -> None:
    (project / "nm_own.py").write_text("import mlflow_keras_adv as mka\n")
    invalidate_caches()
    import mlflow_keras_adv

    own = Path(mlflow_keras_adv.__file__).parent
    files = [*own.rglob("*.py"), *own.rglob("*.pyi")]  # public names stand in stubs
    modules = {path.relative_to(own.parent).as_posix(): path for path in files}
    assert needed_files(["nm_own"]) == {**modules, "nm_own.py": project / "nm_own.py"}


def test_a_folder_that_is_given_is_taken_for_its_modules(project: Path) -> None:
    folder = project / "elsewhere" / "nm_given"
    for name in ("__init__.py", "a.py", "sub/b.py", ".env", ".git/c.py", "vocab/d.txt", "e.npz"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    single = project / "elsewhere" / "nm_words.json"
    single.write_text("{}")
    modules = {f"nm_given/{name}" for name in ("__init__.py", "a.py", "sub/b.py")}
    assert set(needed_files([], [folder, single])) == modules | {"nm_words.json"}
    for pattern in ("nm_given/vocab/*.txt", "**/*.txt", "nm_given/*/d.*"):
        found = set(needed_files(["nm_given.a"], [folder], [pattern]))
        assert found == modules | {"nm_given/vocab/d.txt"}
    assert set(needed_files([], [folder], ["nm_given/*"])) == modules | {"nm_given/e.npz"}
    with pytest.raises(UserError, match=r"no file is found by 'vocab/\*'.*elsewhere"):
        needed_files([], [folder], ["vocab/*"])
