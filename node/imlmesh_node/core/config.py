"""What an agent is told once, at its start."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from imlmesh_node.core.state import HeldPermitRecord
from imlmesh_protocol.limits import LAN, NODE_HELD, NODE_SLOTS


@dataclass(frozen=True, slots=True)
class AgentConfig:
    heartbeat_ms: int
    slots: int = NODE_SLOTS
    held: int = NODE_HELD
    #: the highest (epoch, seq) that the journal knows, and whether it holds a quarantine
    floor: tuple[int, int] = (0, 0)
    #: the journal of before was lost, and no orchestrator has heard of it
    lost: bool = False
    quarantined: bool = False
    #: without an answered heartbeat for so long, it is cut off
    lost_ms: int = LAN.lost_ms
    #: what the journal holds of permits, and the latest mesh time that it knows
    permits: Mapping[str, HeldPermitRecord] = field(default_factory=dict)
    mesh_ms: int = 0
