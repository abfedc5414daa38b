"""Where a param of an action leads: opened beneath the right roots, errors blamed on the param.

The one rule: readers may look beneath all roots, writers beneath write roots alone.
"""

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from pathlib import PurePosixPath

from imlmesh_drivers.base import Site
from imlmesh_drivers.files import (
    absolute,
    blamed_on,
    folder,
    open_regular,
    parent,
    readable_roots,
    split_root,
)
from imlmesh_protocol.errors import DriverDenied, DriverNotFound


class Places:
    """Opens what the params of one action name, for as long as a `with` lasts."""

    def __init__(self, site: Site) -> None:
        self._site = site

    @contextlib.contextmanager
    def reading(self, field: str, path: str) -> Iterator[tuple[str, io.BufferedReader]]:
        """(absolute path, open file) of a regular file."""
        with contextlib.ExitStack() as held:
            with blamed_on(field):
                full = absolute(self._site, path)
                with parent(full, readable_roots(self._site)) as (opened, name):
                    file = os.fdopen(open_regular(opened, name), "rb")
                held.enter_context(file)
            yield full, file

    @contextlib.contextmanager
    def named(
        self, field: str, path: str, *, create: bool = False
    ) -> Iterator[tuple[str, int, str]]:
        """(absolute path, open folder, name in it) beneath a write root; it need not be there."""
        with contextlib.ExitStack() as held:
            with blamed_on(field):
                full = absolute(self._site, path)
                found = parent(full, self._site.write_roots, create=create)
                opened, name = held.enter_context(found)
            yield full, opened, name

    @contextlib.contextmanager
    def found(
        self, field: str, path: str, *, write: bool = False
    ) -> Iterator[tuple[str, int, str]]:
        """The same of what is there, beneath a write root or any; a root is "." in itself."""
        roots = self._site.write_roots if write else readable_roots(self._site)
        with contextlib.ExitStack() as held:
            with blamed_on(field):
                full = absolute(self._site, path)
                root, parts = split_root(full, roots)
                opened = held.enter_context(folder(root, parts[:-1]))
                name = parts[-1] if parts else "."
                try:
                    os.stat(name, dir_fd=opened, follow_symlinks=False)
                except FileNotFoundError as exc:
                    raise DriverNotFound("driver.not_found", f"{path} does not exist") from exc
            yield full, opened, name

    @contextlib.contextmanager
    def folder(self, field: str, path: str) -> Iterator[tuple[str, int]]:
        """(absolute path, open folder) of a folder beneath any root."""
        with contextlib.ExitStack() as held:
            with blamed_on(field):
                full = absolute(self._site, path)
                root, parts = split_root(full, readable_roots(self._site))
                opened = held.enter_context(folder(root, parts))
            yield full, opened

    @contextlib.contextmanager
    def watched(self, field: str, path: str) -> Iterator[tuple[str, int, str | None]]:
        """(absolute path, open folder, name): a folder itself, or the name in the one above.

        The name need not be there yet.
        """
        with contextlib.ExitStack() as held:
            with blamed_on(field):
                full = absolute(self._site, path)
                root, parts = split_root(full, readable_roots(self._site))
                opened = held.enter_context(folder(root, parts[:-1]))
                only = parts[-1] if parts else None
                if only is not None and _is_folder(opened, only):
                    opened, only = held.enter_context(folder(root, parts)), None
            yield full, opened, only

    def check_holds_no_root(self, field: str, full: str) -> None:
        """`policy.path` for a root and a folder above one: with it the root would go."""
        for root in readable_roots(self._site):
            if PurePosixPath(root).is_relative_to(full):
                raise DriverDenied("policy.path", f"{field}: with it the root {root} would go")


def _is_folder(opened: int, name: str) -> bool:
    try:
        found = os.stat(name, dir_fd=opened, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if stat.S_ISLNK(found.st_mode):
        raise DriverDenied("policy.path", f"{name!r} is a symbolic link")
    return stat.S_ISDIR(found.st_mode)
