"""The broker of a mesh: Mosquitto or our own, configured and looked after."""

from imlmesh_broker.child import EVERYWHERE, Broker, BrokerPlace
from imlmesh_broker.choice import Embedded, choose_broker
from imlmesh_broker.mosquitto import Mosquitto

__all__ = ["EVERYWHERE", "Broker", "BrokerPlace", "Embedded", "Mosquitto", "choose_broker"]
