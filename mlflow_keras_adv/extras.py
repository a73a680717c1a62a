"""Packages that only an extra installs: where one lacks, a sentence says which extra brings it.

What imports such a package does it in `with extra("compression"):`, so that it is said by whatever
asks first; who needs several of them for long work asks with `require` before it begins.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from mlflow_keras_adv.errors import UserError

# The modules that the extras of pyproject.toml bring.
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
    """Something needs a package that is not installed, and that an extra brings.

    Args:
        name: Name of the extra.
        packages: What lacks.
    """

    def __init__(self, name: str, *packages: str) -> None:
        are, them = ("is", "it") if len(packages) == 1 else ("are", "them")
        super().__init__(
            f'{", ".join(packages)} {are} not installed; the extra "{name}" brings {them}: '
            f'pip install "mlflow-keras-adv[{name}]"'
            + (", or any build of it, such as tensorflow-cpu" if name == "tensorflow" else "")
        )


class IncompleteMlflowError(UserError, ImportError):
    """MLflow is not installed, or only the part of it that keeps no store."""

    def __init__(self) -> None:
        super().__init__(
            "mlflow is not installed, or only mlflow-skinny, which has no store and no server; "
            'expected all of it: pip install "mlflow>=3.6,<4"'
        )


def require_mlflow() -> None:
    """Asks for the whole of MLflow: mlflow-skinny has its modules, and not what they need.

    Raises:
        IncompleteMlflowError: There is none, or only a part.
    """
    if any(find_spec(module) is None for module in ("mlflow", "sqlalchemy", "flask", "pandas")):
        raise IncompleteMlflowError


def missing(name: str) -> list[str]:
    """The modules of an extra that are not installed; none of them is imported.

    Args:
        name: Name of the extra, as in pyproject.toml.
    """
    return [module for module in EXTRAS[name] if find_spec(module) is None]


def require(name: str) -> None:
    """Asks for all of an extra, before anything is begun that needs it.

    Args:
        name: Name of the extra.

    Raises:
        MissingExtraError: Some of it is not installed.
    """
    if lacking := missing(name):
        raise MissingExtraError(name, *lacking)


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around the imports of an extra's modules.

    Args:
        name: Name of the extra.

    Raises:
        MissingExtraError: One of its modules is not installed. What else goes wrong while they are
            imported passes through: to install the extra would not mend it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        # importlib.metadata raises it too, with the name of the distribution.
        package = (error.name or "").partition(".")[0]
        if package.replace("-", "_") not in EXTRAS[name]:
            raise
        raise MissingExtraError(name, package) from None
