"""What checking a plan found: errors and warnings, each with its place.

The one rule: a check never stops at its first error; it adds what it found and goes on. At most
`limits.PLAN_ERRORS` of each are kept. Deliberately absent: what is wrong; the checks know.
"""

from collections.abc import Collection
from difflib import get_close_matches

from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, MeshError
from imlmesh_protocol.iml.document import Document


class Findings:
    """Collects for one document."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._errors: list[MeshError] = []
        self._warnings: list[MeshError] = []

    def error(self, code: str, pointer: str, message: str, *, key: bool = False) -> None:
        """Add an error at the value of a JSON pointer, or at its key."""
        if not self.full:
            self._errors.append(self._finding(code, pointer, message, key))

    def warning(self, code: str, pointer: str, message: str, *, key: bool = False) -> None:
        """Add something that the plan's author should know and that stops nothing."""
        if len(self._warnings) < limits.PLAN_ERRORS:
            self._warnings.append(self._finding(code, pointer, message, key))

    @property
    def full(self) -> bool:
        """Whether further errors would be dropped, so that looking for them is a waste."""
        return len(self._errors) >= limits.PLAN_ERRORS

    def did_you_mean(self, name: str, known: Collection[str]) -> str:
        """`; did you mean "x"?` when a known name is near, else nothing."""
        near = [] if self.full else get_close_matches(name[: limits.SUGGESTION_CHARS], known, n=1)
        return f'; did you mean "{near[0]}"?' if near else ""

    def line_of(self, pointer: str) -> str:
        """Where something else stands, for use within a message."""
        place = self._document.place(pointer)
        return f"line {place.line}" if place.line else pointer

    @property
    def errors(self) -> list[MeshError]:
        """In the order of the document."""
        return sorted(self._errors, key=_position)

    @property
    def warnings(self) -> list[MeshError]:
        """In the order of the document."""
        return sorted(self._warnings, key=_position)

    def _finding(self, code: str, pointer: str, message: str, key: bool) -> InputError:
        if len(message) > limits.FINDING_CHARS:
            message = message[: limits.FINDING_CHARS] + "…"
        return InputError(code, message, place=self._document.place(pointer, key=key))


def _position(error: MeshError) -> tuple[int, int]:
    place = error.place
    return (place.line or 0, place.column or 0) if place else (0, 0)
