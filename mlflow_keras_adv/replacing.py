"""Replacing: what an object, a class or a module of somebody else has, for a time.

The one rule: at the end what was found is put back, unless somebody has replaced ours since; theirs
stays then.
"""

from typing import Any, Self

_ABSENT: Any = object()


class Replacement:
    """Puts a value in the place of an attribute, from `begin` to `end`, or for a block.

    Args:
        owner: An instance, of which neither its class nor any other object of that is changed; a
            class, for all its instances; or a module.
        name: The attribute.
        value: What is to stand there.

    Attributes:
        found: What stood there, on the owner itself; known from `begin` on.
    """

    def __init__(self, owner: Any, name: str, value: Any) -> None:
        self.found = _ABSENT
        self._owner = owner
        self._name = name
        self._value = value
        self._placed = _ABSENT

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def stands(self) -> bool:
        """Whether it is in its place, and nobody has replaced it."""
        placed = self._placed
        return placed is not _ABSENT and vars(self._owner).get(self._name, _ABSENT) is placed

    def begin(self) -> None:
        """Takes the place; does nothing where it stands there already."""
        if self.stands:
            return
        self.found = vars(self._owner).get(self._name, _ABSENT)
        setattr(self._owner, self._name, self._value)
        # Not always the value itself: TensorFlow wraps lists and dicts.
        self._placed = vars(self._owner).get(self._name, _ABSENT)

    def end(self) -> bool:
        """Puts back what was found, if nobody has replaced ours since.

        Returns:
            Whether it did.
        """
        if not self.stands:
            return False
        self._placed = _ABSENT
        if self.found is _ABSENT:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self.found)
        return True
