"""Makes a command line of the signature of a script's `main`.

A parameter is declared once, in `main`: its annotation says which values are valid, the docstring
says what it means, or the annotation does (`Field(description=…)`), where many scripts share it.
`MLproject` is generated from these signatures.
"""

import argparse
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.extras import require


@dataclass(frozen=True)
class Parameter:
    """One parameter of a `main`.

    Attributes:
        name: As in the signature, for example `batch_size`.
        annotation: The type by which pydantic validates a value, for example `PositiveInt`.
        default: `inspect.Parameter.empty` if the command line must give a value.
        description: From the Args section of the docstring, else from the annotation; may be empty.
    """

    name: str
    annotation: Any
    default: object
    description: str

    @property
    def required(self) -> bool:
        """Whether the command line must give a value."""
        return self.default is inspect.Parameter.empty

    @property
    def option(self) -> str:
        """Its spelling on the command line, for example `--batch-size`."""
        return f"--{self.name.replace('_', '-')}"


def parameters(main: Callable[..., object]) -> list[Parameter]:
    """Reads the parameters of `main`.

    Args:
        main: A function all of whose parameters are annotated.

    Returns:
        The parameters, in the order of the signature.

    Raises:
        TypeError: A parameter has no annotation or cannot be passed by name.
    """
    annotations = get_type_hints(main, include_extras=True)
    descriptions = _descriptions(inspect.getdoc(main) or "")
    found = []
    for name, declared in inspect.signature(main).parameters.items():
        if declared.kind not in (declared.POSITIONAL_OR_KEYWORD, declared.KEYWORD_ONLY):
            raise TypeError(
                f"{main.__qualname__}: {declared} is {declared.kind.description}; "
                "declare parameters that can be passed by name"
            )
        if name not in annotations:
            raise TypeError(
                f"{main.__qualname__}: parameter {name} has no annotation; "
                "annotate it with what is valid, for example PositiveInt"
            )
        annotation = annotations[name]
        description = descriptions.get(name) or _described(annotation)
        found.append(Parameter(name, annotation, declared.default, description))
    return found


def run(
    main: Callable[..., object], argv: Sequence[str] | None = None, *, extra: str | None = None
) -> None:
    """Calls `main` with the values on the command line.

    Each parameter is an option: `--batch-size 32`, also spelled `--batch_size 32`, because
    `mlflow run -P` appends parameters that MLproject does not declare under their own names.

    Args:
        main: The function to call; every parameter annotated, with a Google-style docstring.
        argv: The arguments without the program's name; those of the process by default.
        extra: The extra of this package without which `main` is not worth beginning.

    Raises:
        SystemExit: Code 2 after a bad argument, with a sentence on stderr for each; code 1 if the
            extra is not installed or after a `UserError` in `main`, with its message on stderr;
            code 130 after Ctrl-C. Other exceptions of `main` pass through.
    """
    values = _parse(main, sys.argv[1:] if argv is None else argv)
    try:
        if extra is not None:
            require(extra)
        given = _given.set(_differing(main, values))
        try:
            main(**values)
        finally:
            _given.reset(given)
    except UserError as error:
        _say(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(130)


def command(module: str, values: Mapping[str, object]) -> list[str]:
    """The command that runs a script with these values of its parameters, in another process.

    Args:
        module: The script, for example `projects.tune`.
        values: Values by the names of the parameters of its `main`.

    Returns:
        The program and its arguments.
    """
    options = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    return [sys.executable, "-m", module, *options]


def run_name(technique: str) -> str:
    """Names the run of an entry point: `distill temperature=5`.

    Args:
        technique: The name of the technique.

    Returns:
        The name, and the first parameters that the command line has set to other values than the
        defaults. The seed is left out: runs that differ only in it are repetitions.
    """
    return " ".join([technique, *_given.get()[:_MOST_IN_A_NAME]])


# What the command line of the `main` that runs has changed, as it is shown.
_given: ContextVar[tuple[str, ...]] = ContextVar("given", default=())
_MOST_IN_A_NAME = 2
_LONGEST_VALUE = 24


def _differing(main: Callable[..., object], values: Mapping[str, object]) -> tuple[str, ...]:
    found = []
    for each in parameters(main):
        value = values.get(each.name, each.default)
        if value != each.default and each.name != "seed":
            text = f"{value:g}" if isinstance(value, float) else str(value)
            if len(text) > _LONGEST_VALUE:  # a path, an address: its end tells it apart
                text = f"…{text[1 - _LONGEST_VALUE :]}"
            found.append(f"{each.name}={text}")
    return tuple(found)


def _parse(main: Callable[..., object], argv: Sequence[str]) -> dict[str, object]:
    """The valid arguments that were given; what was not given is left to `main`'s defaults."""
    declared = parameters(main)
    summary = (inspect.getdoc(main) or "").partition("\n\n")[0]
    parser = argparse.ArgumentParser(
        prog=_program(main),
        description=summary,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for parameter in declared:
        default = "required" if parameter.required else f"default: {parameter.default}"
        description = f"{parameter.description} ({default})".strip()
        parser.add_argument(
            parameter.option,
            dest=parameter.name,
            required=parameter.required,
            help=description.replace("%", "%%"),
        )
    given, unknown = parser.parse_known_args(_spell(argv, declared))
    if unknown:
        names = ", ".join(parameter.name for parameter in declared) or "none"
        parser.error(f"unrecognized arguments: {' '.join(unknown)}; the parameters are: {names}")

    values: dict[str, object] = {}
    complaints = []
    for parameter in declared:
        if parameter.name not in given:
            continue
        text = getattr(given, parameter.name)
        try:
            values[parameter.name] = _convert(parameter, text)
        except ValidationError as error:
            complaints.append(_complaint(parameter, text, error))
    if complaints:
        for complaint in complaints:
            _say(f"error: {complaint}")
        sys.exit(2)
    return values


def _spell(argv: Sequence[str], declared: Sequence[Parameter]) -> list[str]:
    """The arguments as argparse understands them.

    `--batch_size` becomes `--batch-size`, and `--lr -1e-3` becomes `--lr=-1e-3`, because argparse
    takes some values that begin with a minus for options.
    """
    options = {f"--{parameter.name}": parameter.option for parameter in declared}
    options |= {parameter.option: parameter.option for parameter in declared}
    spelled: list[str] = []
    for argument in argv:
        follows_option = bool(spelled) and spelled[-1] in options
        if follows_option and re.match(r"-[^-]", argument) and argument != "-h":
            spelled[-1] += f"={argument}"
        else:
            option, equals, value = argument.partition("=")
            spelled.append(options.get(option, option) + equals + value)
    return spelled


def _convert(parameter: Parameter, text: str) -> object:
    adapter: TypeAdapter[object] = TypeAdapter(
        parameter.annotation, config=ConfigDict(allow_inf_nan=False)
    )
    return adapter.validate_strings(text)


def _complaint(parameter: Parameter, text: str, error: ValidationError) -> str:
    """One sentence: the value received, the values expected, and what to do."""
    expected = " or ".join(
        # of "Input should be a valid integer, unable to parse string as an integer" the middle
        re.sub(r"^(Input|String) |, unable to .*", "", detail["msg"])
        for detail in error.errors(include_url=False)
    )
    advice = "" if parameter.required else f", for example the default {parameter.default}"
    return f"{parameter.name}: got {text!r}, which {expected}; give another value{advice}"


def _described(annotation: Any) -> str:
    """The description in `Annotated[…, Field(description=…)]`."""
    return str(TypeAdapter(annotation).json_schema().get("description", ""))


def _descriptions(docstring: str) -> dict[str, str]:
    """The description of each parameter in the Args section of a Google-style docstring."""
    _, _, after = f"\n{docstring}\n".partition("\nArgs:\n")
    section = re.split(r"\n(?=\S)", after)[0]
    descriptions: dict[str, str] = {}
    for entry in re.split(r"\n(?=\w)", textwrap.dedent(section)):
        name, _, description = entry.partition(":")
        descriptions[name.split(" ")[0]] = " ".join(description.split())
    return descriptions


def _program(main: Callable[..., object]) -> str | None:
    """`python -m projects.distill` if that is how it was started; argparse's choice otherwise."""
    spec = getattr(sys.modules.get(main.__module__), "__spec__", None)
    return None if spec is None else f"python -m {spec.name}"


def _say(message: str) -> None:
    print(" ".join(message.splitlines()), file=sys.stderr)
