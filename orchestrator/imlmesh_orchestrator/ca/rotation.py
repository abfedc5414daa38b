"""Keys and CAs roll over with an overlap: the new one beside the old, then the old one goes.

The one rule: each deed leaves a folder from which the same command goes on, so whatever ends in
between, it is given again. `rotate` makes the new one known and nothing relies on it yet but
certificates of nodes; `finish` begins to rely on it and lets the old one go. The root key signs both
(docs/adr/0021-who-is-told-before-who-obeys.md). Deliberately absent: telling nodes.
"""

import ssl
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from imlmesh_orchestrator.ca.asking_broker import AskedBroker
from imlmesh_orchestrator.ca.authority import CONTROL, NEXT_CA, NODE, VOICES, Authority
from imlmesh_orchestrator.ca.certificates import Issuer, new_root
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, TrustError
from imlmesh_protocol.wire.documents import Trust
from imlmesh_runtime.files import locked, read_file, read_private, sync_folder, write_private
from imlmesh_runtime.pairs import certificates_of
from imlmesh_runtime.trust import (
    HeldTrust,
    Signer,
    load_signer,
    new_signing_key,
    public_pem,
)

CAS = {f"{role}-ca": role for role in (NODE, CONTROL)}
#: what can roll over
WHATS = (*VOICES, *CAS)
_LIST_END = b"-----END X509 CRL-----\n"


def root_signer(authority: Authority, root: Path | None) -> Signer:
    """The root key of the mesh in `root`, by default where it was made.

    TrustError `trust.root_away` when it is not there, `trust.file` for the key of another mesh.
    """
    path = root or authority.folder / "root.key"
    if not path.exists():
        raise TrustError("trust.root_away", f"{path} is not there")
    signer = load_signer(path)
    if signer.key_id != HeldTrust(authority.folder, authority.mesh).root.key_id:
        raise TrustError("trust.file", f"{path} is not the root key of mesh {authority.mesh}")
    return signer


def rotate(authority: Authority, what: str, root: Signer, broker: AskedBroker) -> Trust:
    """Make a new key or CA known beside the old one; the trust that says so.

    When one is under way already, it is that one. InputError `usage`, `trust.rotating`, also when
    the broker does not take the new CA yet: then no node has been told.
    """
    if what not in WHATS:
        raise InputError("usage", f"{what[:40]!r} is not one of {', '.join(WHATS)}")
    if what in CAS:
        return _rotate_ca(authority, what, root, broker)
    return _rotate_voice(authority, what, root)


def finish(
    authority: Authority, what: str, root: Signer, folder: Path, broker: AskedBroker
) -> Trust:
    """Rely on the new one alone; the trust that says so. `folder` is the one of the broker.

    InputError `usage`, `trust.rotating` when there is nothing to finish, or the broker does not
    show its new certificate yet: then the old CA still counts.
    """
    if what not in WHATS:
        raise InputError("usage", f"{what[:40]!r} is not one of {', '.join(WHATS)}")
    if what in CAS:
        return _finish_ca(authority, what, root, folder, broker)
    return _finish_voice(authority, what, root)


def under_way(authority: Authority) -> list[str]:
    """What rolls over now."""
    return [what for what in WHATS if _next(authority, what).exists()]


def _next(authority: Authority, what: str) -> Path:
    return authority.folder / (f"{what}{NEXT_CA}" if what in CAS else f"{what}.next.key")


def _rotate_voice(authority: Authority, what: str, root: Signer) -> Trust:
    coming, trust = _next(authority, what), authority.trust
    if not coming.exists():
        _check_room(what, getattr(trust, what), limits.TRUST_KEYS)
        write_private(coming, new_signing_key()[0])
    new = load_signer(coming).raw_public
    known: tuple[bytes, ...] = getattr(trust, what)
    return trust if new in known else _sign(authority, trust, root, **{what: (new, *known)})


def _finish_voice(authority: Authority, what: str, root: Signer) -> Trust:
    coming, current, trust = (
        _next(authority, what),
        authority.folder / f"{what}.key",
        authority.trust,
    )
    if coming.exists():
        new = load_signer(coming)
        if new.raw_public not in getattr(trust, what):
            raise _nothing_to_finish(what)
        coming.replace(current)
        sync_folder(authority.folder)
    signer = load_signer(current)
    public = authority.folder / f"{what}.pub"
    write_private(public, public_pem(signer.raw_public))
    known: tuple[bytes, ...] = getattr(trust, what)
    # seals of a ledger key that is signed with no more must still be believed
    kept = known if what == "ledger" else (signer.raw_public,)
    if what == "roster" and kept != known:
        _sign_roster_anew(authority, signer)
    return trust if kept == known else _sign(authority, trust, root, **{what: kept})


def _sign_roster_anew(authority: Authority, signer: Signer) -> None:
    """So that it outlives the key that signed it, and its version never falls."""
    held = HeldTrust(authority.folder, authority.mesh)
    if held.roster is not None:
        roster = replace(held.roster, version=held.roster.version + 1)
        held.take(roster.sealed(signer.sign, signer.key_id))


def _rotate_ca(authority: Authority, what: str, root: Signer, broker: AskedBroker) -> Trust:
    role, coming, trust = CAS[what], _next(authority, what), authority.trust
    known: tuple[bytes, ...] = getattr(trust, f"{role}_cas")
    pem = authority.folder / f"{what}.pem"
    if not coming.exists():
        _check_room(what, known, limits.TRUST_CERTIFICATES)
        key, certificate = new_root(authority.mesh, role)
        write_private(coming, certificate + key)
    issuer = _coming_issuer(coming)
    if issuer.der not in certificates_of(read_file(pem)):
        # the list before the CA: a broker refuses all clients of a CA without one
        listed = authority.folder / f"{what}.crl"
        with locked(authority.folder):
            old = read_file(listed, limits.CRL_BYTES)
            write_private(listed, issuer.revocation_list(()) + old)
            # both under the lock: who writes lists anew meanwhile would write none of the new CA
            write_private(pem, _pem(issuer) + read_file(pem))
    if issuer.der in known:
        return trust
    if not broker.takes(issuer, authority.mesh, role):
        raise _broker_is_behind("take certificates of the new CA")
    return _sign(authority, trust, root, **{f"{role}_cas": (issuer.der, *known)})


def _finish_ca(
    authority: Authority, what: str, root: Signer, folder: Path, broker: AskedBroker
) -> Trust:
    role, coming, trust = CAS[what], _next(authority, what), authority.trust
    known: tuple[bytes, ...] = getattr(trust, f"{role}_cas")
    if not coming.exists():
        if len(known) > 1:
            raise _nothing_to_finish(what)
        return trust
    issuer = _coming_issuer(coming)
    if issuer.der not in known:
        raise _nothing_to_finish(what)
    if role == CONTROL:
        authority.refresh(folder, issuer)
        if not broker.shows(issuer.der):
            raise _broker_is_behind("show its new certificate")
    if known != (issuer.der,):
        trust = _sign(authority, trust, root, **{f"{role}_cas": (issuer.der,)})
    if role == CONTROL:
        # whoever opened the authority meanwhile asked the CA that vouched until now
        authority.refresh(folder)
    write_private(authority.folder / f"{what}.key", _key_of(coming))
    write_private(authority.folder / f"{what}.pem", _pem(issuer))
    listed = authority.folder / f"{what}.crl"
    with locked(authority.folder):
        newest, _, _ = read_file(listed, limits.CRL_BYTES).partition(_LIST_END)
        write_private(listed, newest + _LIST_END)
    coming.unlink()
    sync_folder(authority.folder)
    return trust


def _coming_issuer(coming: Path) -> Issuer:
    return Issuer(_key_of(coming), read_private(coming))


def _pem(issuer: Issuer) -> bytes:
    return ssl.DER_cert_to_PEM_cert(issuer.der).encode()


def _key_of(pair: Path) -> bytes:
    head = b"-----BEGIN PRIVATE KEY-----"
    return head + read_private(pair).partition(head)[2]


def _check_room(what: str, known: Sequence[bytes], most: int) -> None:
    if len(known) >= most:
        raise InputError("trust.rotating", f"trust has {most} keys for {what} already")


def _nothing_to_finish(what: str) -> InputError:
    hint = f"imlmesh trust rotate {what}"
    return InputError("trust.rotating", f"no new {what} is known to nodes yet", hint=hint)


def _broker_is_behind(what: str) -> InputError:
    hint = "let it read its files, by starting it again if need be; then give this command again"
    return InputError("trust.rotating", f"the broker does not {what} yet", hint=hint)


def _sign(authority: Authority, trust: Trust, root: Signer, **fields: tuple[bytes, ...]) -> Trust:
    """Write the next version, which only changes `fields`."""
    signed = replace(trust, version=trust.version + 1, **fields)  # type: ignore[arg-type]
    HeldTrust(authority.folder, authority.mesh).take(signed.sealed(root.sign, root.key_id))
    return signed
