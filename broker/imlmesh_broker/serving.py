"""What a broker serves by: checked copies of revocation lists, CAs, rights and its own certificate, in
a folder of their own.

The one rule: a copy is replaced by something good or stays, so a lost or broken file opens nothing.
Deliberately absent: making a broker read them again.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from imlmesh_broker.config import acl_text
from imlmesh_broker.rights import ALL_IN, Access
from imlmesh_protocol import limits
from imlmesh_protocol.errors import TrustError
from imlmesh_runtime.files import read_file, write_private

logger = logging.getLogger(__name__)

#: each listener asks for certificates of one of the CAs
ROLES = ("node", "control")


@dataclass(frozen=True, slots=True)
class Source:
    """Where the orchestrator, whose id is `control`, writes who may come in: the folder of the CAs
    with their lists, and that of the broker with its key and certificate and access.json, which may
    be missing as long as nobody was ever shut out."""

    mesh: str
    control: str
    ca: Path
    folder: Path

    @property
    def access(self) -> Path:
        return self.folder / "access.json"


@dataclass(slots=True)
class Served:
    """The folder `to`, kept in line with `source`; `write` replaces a file of it whole."""

    source: Source
    to: Path
    write: Callable[[Path, bytes], None] = write_private
    access: Access = ALL_IN
    #: what could not be taken, and is served by an older copy
    faults: set[str] = field(default_factory=set)
    _seen: tuple[object, ...] = ()
    #: made once, for they are looked at twenty times a second for as long as a broker runs
    _watched: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        source = self.source
        lists = (source.ca / f"{role}-ca.{kind}" for role in ROLES for kind in ("crl", "pem"))
        own = (source.folder / name for name in ("broker.pem", "broker.key"))
        self._watched = (source.access, *own, *lists)

    def is_changed(self) -> bool:
        """Whether a source looks other than when it was last taken; a few calls of stat."""
        return self._look() != self._seen

    def take(self) -> bool:
        """Bring the copies in line; whether one changed.

        What cannot be used is told in the log, once and with its code. Its copy stays in force;
        TrustError `broker.lists`, `broker.access` or `trust.file` when that is not good either.
        """
        self._seen = self._look()
        # rights first: who revokes writes the list before them, so both are taken together
        changed = self._attempt("access", self._take_access, self._keep_access)
        changed |= self._attempt("certificate", self._take_pair, self._keep_pair)
        for role in ROLES:
            changed |= self._attempt(
                role,
                lambda role=role: self._take_lists(role),  # type: ignore[misc]
                lambda role=role: self._keep_lists(role),  # type: ignore[misc]
            )
        return changed

    def _attempt(self, what: str, take: Callable[[], bool], keep: Callable[[], None]) -> bool:
        try:
            changed = take()
        except TrustError as exc:
            try:
                keep()
            except TrustError:
                raise exc from None
            if what not in self.faults:
                self.faults.add(what)
                logger.error("%s; the last good one stays in force", exc, extra={"code": exc.code})
            return False
        self.faults.discard(what)
        return changed

    def _take_access(self) -> bool:
        source, copy = self.source, self.to / "access.json"
        if not source.access.exists() and (not copy.exists() or self._parsed(copy) == ALL_IN):
            return self._put_access(ALL_IN)
        return self._put_access(self._parsed(source.access))

    def _keep_access(self) -> None:
        self._put_access(self._parsed(self.to / "access.json"))

    def _parsed(self, path: Path) -> Access:
        try:
            data = read_file(path, limits.ACCESS_BYTES)
        except TrustError as exc:
            raise TrustError("broker.access", exc.message) from exc
        return Access.parse(data, self.source.control)

    def _put_access(self, access: Access) -> bool:
        self.access = access
        rules = acl_text(self.source.mesh, self.source.control, access)
        changed = self.put("mesh.acl", rules.encode())
        # last, for it tells a broker of ours what is in force
        return self.put("access.json", access.text()) or changed

    def _take_pair(self) -> bool:
        certificate, key = _pair_of(self.source.folder)
        changed = self.put("broker.key", key)
        return self.put("broker.pem", certificate) or changed

    def _keep_pair(self) -> None:
        _pair_of(self.to)

    def _take_lists(self, role: str) -> bool:
        cas, lists = _lists_of(self.source.ca, role)
        changed = self.put(f"{role}-ca.crl", lists)
        return self.put(f"{role}-ca.pem", cas) or changed

    def _keep_lists(self, role: str) -> None:
        _lists_of(self.to, role)

    def put(self, name: str, data: bytes) -> bool:
        """Let the file `name` hold `data`; False when it does already, and nothing was written."""
        path = self.to / name
        if path.exists() and path.read_bytes() == data:
            return False
        self.write(path, data)
        return True

    def _look(self) -> tuple[object, ...]:
        return tuple(map(_mark, self._watched))


def _lists_of(folder: Path, role: str) -> tuple[bytes, bytes]:
    """(certificates, lists) of the CAs of a role."""
    # the embedded broker reads what was checked, and never loads what checks it
    from imlmesh_broker.revocation import checked_lists

    try:
        cas = read_file(folder / f"{role}-ca.pem")
        lists = read_file(folder / f"{role}-ca.crl", limits.CRL_BYTES)
    except TrustError as exc:
        raise TrustError("broker.lists", exc.message) from exc
    return cas, checked_lists(cas, lists)


def _pair_of(folder: Path) -> tuple[bytes, bytes]:
    """The broker's certificate and its key; TrustError `trust.file` when they are no pair: they are
    two files, and may be seen between one and the other."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    certificate, key = read_file(folder / "broker.pem"), read_file(folder / "broker.key")
    try:
        shown = x509.load_pem_x509_certificate(certificate).public_key()
        held = load_pem_private_key(key, password=None).public_key()
    except (ValueError, TypeError) as exc:
        raise TrustError("trust.file", f"broker.pem or broker.key in {folder}: {exc}") from exc
    if shown != held:
        raise TrustError("trust.file", f"broker.key in {folder} is not that of broker.pem")
    return certificate, key


def _mark(path: Path) -> object:
    """Other after every change; files are replaced, never written over."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
