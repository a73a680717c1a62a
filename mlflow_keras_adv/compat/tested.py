"""The releases that this package was tested with, and one warning beyond them."""

import functools
import logging
from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

_logger = logging.getLogger(__name__)

# The first release of each that nobody has tried; docs/versions.md has the ones that were.
UNTRIED = {"mlflow": (3, 18), "tensorflow": (2, 22), "keras": (3, 16)}


@functools.cache
def warn_of_untried() -> None:
    """Says once in a process which packages are newer than what was tried; refuses nothing."""
    newer = []
    for name, bound in UNTRIED.items():
        try:
            installed = version(name)
        except PackageNotFoundError:  # another build, or none
            continue
        if Version(installed).release[:2] >= bound:
            newer.append(f"{name} {installed} (tried: before {'.'.join(map(str, bound))})")
    if newer:
        _logger.warning(
            "mlflow_keras_adv has not been tried with %s. If something is wrong, an older release "
            "may be the remedy.",
            ", ".join(newer),
        )
