"""Packages of the extras: where one is missing, the error names the extra that installs it.

Code that needs such a package imports it inside `with extra("compression"):`. Before long work that
needs several of them, `require` checks the whole extra.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from mlflow_keras_adv.errors import UserError

# The modules that the extras of pyproject.toml install.
EXTRAS = {
    "tensorflow": ("tensorflow",),
    "compression": (
        "tensorflow_model_optimization",
        "tf_keras",
        "ai_edge_litert",
        "litert_quantizer",
    ),
    "rl": ("gymnasium",),
    "benchmark": ("wandb",),
}


class MissingExtraError(UserError, ImportError):
    """A package is needed that is not installed, and that an extra installs.

    Args:
        name: Name of the extra.
        packages: The missing packages.
    """

    def __init__(self, name: str, *packages: str) -> None:
        are, them = ("is", "it") if len(packages) == 1 else ("are", "them")
        super().__init__(
            f'{", ".join(packages)} {are} not installed; the extra "{name}" brings {them}: '
            f'pip install "mlflow-keras-adv[{name}]"'
            + (", or any build of it, such as tensorflow-cpu" if name == "tensorflow" else "")
        )


class IncompleteMlflowError(UserError, ImportError):
    """MLflow is not installed, or only mlflow-skinny, which has no store."""

    def __init__(self) -> None:
        super().__init__(
            "mlflow is not installed, or only mlflow-skinny, which has no store and no server; "
            'expected all of it: pip install "mlflow>=3.6,<4"'
        )


def require_mlflow() -> None:
    """Checks that all of MLflow is installed: mlflow-skinny lacks what its modules need.

    Raises:
        IncompleteMlflowError: It is not installed, or only in part.
    """
    if any(find_spec(module) is None for module in ("mlflow", "sqlalchemy", "flask", "pandas")):
        raise IncompleteMlflowError


def missing(name: str) -> list[str]:
    """Finds the modules of an extra that are not installed, without importing any.

    Args:
        name: Name of the extra, as in pyproject.toml.
    """
    return [module for module in EXTRAS[name] if find_spec(module) is None]


def require(name: str) -> None:
    """Checks that an extra is installed as a whole, before work begins that needs it.

    Args:
        name: Name of the extra.

    Raises:
        MissingExtraError: Some of it is not installed.
    """
    if lacking := missing(name):
        raise MissingExtraError(name, *lacking)


@contextmanager
def extra(name: str) -> Iterator[None]:
    """A context for imports of an extra's modules: a missing one names the extra.

    Args:
        name: Name of the extra.

    Raises:
        MissingExtraError: One of its modules is not installed. Other errors of the import pass
            through, because installing the extra would not fix them.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        # importlib.metadata raises it too, with the name of the distribution.
        package = (error.name or "").partition(".")[0]
        if package.replace("-", "_") not in EXTRAS[name]:
            raise
        raise MissingExtraError(name, package) from None
