"""The revocation lists of a role's CAs, in one file.

The one rule: whoever writes it holds the lock, for the orchestrator and a probe may both want to; and a
number that is on a list stays on it unless the orchestrator, who knows them all, leaves it out.
Deliberately absent: which certificates are revoked.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from imlmesh_orchestrator.ca.certificates import Issuer
from imlmesh_protocol import limits
from imlmesh_protocol.errors import TrustError
from imlmesh_runtime.files import locked, read_file, write_private

_OLD = timedelta(days=1)


class Lists:
    """The file `<role>-ca.crl` of `folder`, with one list of each CA that `issuers` finds there: asked
    under the lock, since another process may be adding one."""

    def __init__(self, folder: Path, role: str, issuers: Callable[[], Sequence[Issuer]]) -> None:
        self._path = folder / f"{role}-ca.crl"
        self._issuers = issuers

    def write(self, serials: Iterable[int]) -> None:
        """These numbers and no others."""
        with locked(self._path.parent):
            self._write(set(serials))

    def add(self, serials: Iterable[int]) -> None:
        """These too; TrustError `trust.file` when the file is broken."""
        with locked(self._path.parent):
            gone, _ = self._read(self._path)
            self._write(gone.union(serials))

    def renew(self, copy: Path) -> None:
        """Make lists that are older than a day anew, with the same numbers.

        A broken or missing file is made anew from `copy`, that the broker last served by; when that is
        not good either it stays as it is, for the broker to refuse.
        """
        with locked(self._path.parent), contextlib.suppress(TrustError):
            try:
                gone, made = self._read(self._path)
            except TrustError:
                (gone, _), made = self._read(copy), datetime.min.replace(tzinfo=UTC)
            if made < datetime.now(UTC) - _OLD:
                self._write(gone)

    def _read(self, path: Path) -> tuple[set[int], datetime]:
        """(all numbers, when the oldest list was made)."""
        lists = read_file(path, limits.CRL_BYTES)
        found = [issuer.revoked_by(lists) for issuer in self._issuers()]
        return set[int]().union(*(gone for gone, _ in found)), min(made for _, made in found)

    def _write(self, serials: set[int]) -> None:
        lists = (issuer.revocation_list(serials) for issuer in self._issuers())
        write_private(self._path, b"".join(lists))
