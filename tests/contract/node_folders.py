"""Folders of nodes for tests that have no orchestrator to ask: keys and papers as a mesh makes them."""

from pathlib import Path

from imlmesh_node.joining import NewKeys, Place, write_folder
from imlmesh_orchestrator.ca import Authority
from imlmesh_orchestrator.ca.certificates import Issued
from imlmesh_protocol import limits


def make_node(
    authority: Authority,
    name: str,
    folder: Path,
    *,
    brokers: tuple[str, ...] = (),
    timing: str = "wan",
    policy_text: str | None = None,
    hint: str = "",
    lifetime_s: int = limits.CERTIFICATE_S,
) -> tuple[NewKeys, Issued]:
    """Write it; nobody enrols the node."""
    keys = NewKeys.kept(folder)
    issued = authority.certify(keys.request, name, lifetime_s)
    papers = {"node.pem": issued.pem, **authority.papers()}
    place = Place(authority.mesh, name, authority.orchestrator, brokers, hint, timing)
    write_folder(folder, place, keys, papers, policy_text)
    return keys, issued
