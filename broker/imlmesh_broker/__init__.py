"""The broker of a mesh: Mosquitto, configured and looked after."""

from imlmesh_broker.mosquitto import Mosquitto

__all__ = ["Mosquitto"]
