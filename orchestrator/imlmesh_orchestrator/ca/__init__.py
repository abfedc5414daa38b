"""The certificate authority of a mesh: its keys, the certificates it issues, the nodes it knows."""

from imlmesh_orchestrator.ca.authority import Authority

__all__ = ["Authority"]
