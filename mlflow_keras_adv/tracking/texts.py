"""Text that strangers have chosen, as it is shown."""

import re

# Why a key is refused that another one of the run is, to a database that compares so.
TWIN = (
    "to the database of the store it is the same name as one that the run holds: they differ in "
    "the case or accents of letters only."
)


def safe(text: object, length: int = 80) -> str:
    """A text in one line, of at most `length` characters, without what reorders or hides others.

    Names, params and tags on a shared server are anybody's. The template escapes what is HTML; this
    takes out control characters and marks of direction, and the middle of what is too long.
    """
    plain = "".join(each if each.isprintable() else " " for each in str(text))
    plain = " ".join(plain.split())
    if len(plain) <= length:
        return plain
    head = (length - 1) * 2 // 3
    return f"{plain[:head]}…{plain[head + 1 - length :]}"


def storable(text: str) -> str:
    r"""A text that every store takes.

    No UTF-8 has a lone surrogate, which stands for a byte of a file's name that is none, and no
    PostgreSQL a NUL: they become escapes, as in `caf\udce9`.
    """
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def without_sql(reason: str) -> str:
    """What a store has said of something that it rejects, without the words of its database."""
    if re.search(r"IntegrityError.*Duplicate entry", reason):
        return TWIN
    return reason.partition("\n[SQL: ")[0]
