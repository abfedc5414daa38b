"""One table of a TOML file, read with all that is wrong with it.

The one rule: nothing ends the reading; every wrong value is reported with its place, and its
default stands in. Deliberately absent: what the values mean.
"""

from collections.abc import Callable, Mapping
from typing import Any

from imlmesh_protocol.errors import InputError, Place


class Table:
    """One table of a TOML file: takes values out by name, and collects what is wrong."""

    def __init__(
        self, table: Mapping[str, Any], code: str, file: str, errors: list[InputError], at: str = ""
    ) -> None:
        self._table = dict(table)
        self._code = code
        self._file = file
        self._errors = errors
        self._at = at

    def wrong(self, name: str, message: str) -> None:
        """Report one value; `name` is relative to this table."""
        place = Place(pointer=f"{self._at}/{name}", file=self._file)
        text = f"{place.pointer[1:].replace('/', '.')}: {message}"
        self._errors.append(InputError(self._code, text, place=place))

    def take(self, name: str, kind: type, default: Any, holds: str) -> Any:
        """The value of `name`, or `default` when it is missing or (reported) not a `kind`."""
        value = self._table.pop(name, default)
        if type(value) is not kind and value is not default:
            self.wrong(name, f"must be {holds}")
            return default
        return value

    def texts(
        self, name: str, fits: Callable[[str], bool], holds: str, default: Any = ()
    ) -> tuple[str, ...] | Any:
        """A list of texts that all fit, or `default`."""
        values = self.take(name, list, default, f"a list of {holds}")
        for number, value in enumerate(values or ()):
            if type(value) is not str or not fits(value):
                self.wrong(f"{name}/{number}", f"must be {holds}")
        return values if values is default else tuple(v for v in values if type(v) is str)

    def table(self, name: str) -> "Table":
        """The table `name`; empty when it is missing."""
        inner = self.take(name, dict, {}, "a table")
        return Table(inner, self._code, self._file, self._errors, f"{self._at}/{name}")

    def names(self) -> list[str]:
        return sorted(self._table)

    def end(self) -> None:
        """Whatever was not taken is not known."""
        for name in self.names():
            self.wrong(name, "is not known")
