"""The exception whose message is meant for the user, and helpers for messages."""

import re


class UserError(Exception):
    """Something the user can put right: a bad value, a missing file, a store out of reach.

    The message says what was received, what was expected and what to do. Entry points print it
    alone, without a traceback.
    """


def expect(name: str, value: object, kinds: type | tuple[type, ...], expected: str) -> None:
    """Checks the type of an argument.

    Args:
        name: Name of the argument.
        value: What was received.
        kinds: The types that are accepted.
        expected: The same in words, and what to do: `the id of a run: run.run_id`.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(value, kinds):
        raise TypeError(f"Received {received(value)} as {name}; expected {expected}.")


def not_a_run(name: str, value: object, example: str) -> None:
    """Checks that the first argument is the object to log, and not the run that it is logged to.

    Args:
        name: Name of the argument.
        value: What was received.
        example: A correct call.

    Raises:
        TypeError: It is a run.
    """
    if hasattr(value, "run_id"):
        raise TypeError(
            f"Received {received(value)} as {name}. What is logged comes first, and the run, if it "
            f"is not the current one, by name: {example}."
        )


def received(value: object) -> str:
    """A value in a message: in one line, and short."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:59]}…"


def in_short(error: BaseException) -> str:
    """The message of an exception in one line, without Keras' lists of arguments."""
    text = str(error)
    bold = re.search(r"\x1b\[1m(.*?)\x1b\[0m", text, re.DOTALL)
    text = re.sub(
        r"\x1b\[\d*m", "", bold[1] if bold else text.partition("\n\nArguments received")[0]
    )
    return f"{type(error).__name__}: {' '.join(text.split())}"
