"""A filesystem driver over two roots, for the contract tests of its actions."""

from pathlib import Path
from typing import Any

import pytest

from imlmesh_drivers.base import Site
from imlmesh_drivers.call import Call
from imlmesh_drivers.filesystem import Filesystem
from imlmesh_drivers.invoke import perform, perform_now
from imlmesh_protocol.errors import DriverError


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


class Rooted:
    """A filesystem driver over two roots, with a secret beside them."""

    def __init__(self, base: Path) -> None:
        self.files, self.shared, self.outside = base / "files", base / "shared", base / "outside"
        for place in (self.files, self.shared, self.outside):
            place.mkdir()
        (self.outside / "secret.txt").write_text("secret")
        self.site = Site(
            files=str(self.files), read_roots=(str(self.shared),), write_roots=(str(self.files),)
        )
        self.driver = Filesystem(self.site)

    def __call__(self, name: str, **params: Any) -> Any:
        return perform_now(self.driver, name, params, Call("d"))

    async def wait(self, name: str, **params: Any) -> Any:
        return await perform(self.driver, name, params, Call("d"))

    def refusal(self, name: str, **params: Any) -> str:
        return self.blame(name, **params)[0]

    def blame(self, name: str, **params: Any) -> tuple[str, str]:
        """The code of a refusal, and the param that its text blames."""
        with pytest.raises(DriverError) as caught:
            self(name, **params)
        return caught.value.code, caught.value.message.partition(":")[0]

    def everything(self) -> dict[str, str | None]:
        """What is beneath the write root, and drafts with it: place to content, None for folders."""
        return {
            str(path.relative_to(self.files)): path.read_text() if path.is_file() else None
            for path in sorted(self.files.rglob("*"))
        }
