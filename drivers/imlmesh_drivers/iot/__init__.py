"""The IML module `iot`: pins, buses, sensors, and messages at an MQTT broker of the user's own.

The one rule: the policy says for every bus whether it is native or mock, nothing is guessed, and what it
does not list is never touched. Libraries are imported when the first action needs them. Actions stand
by kind in files of their own; `twins` holds what `mock` means.
"""

from imlmesh_drivers.iot.analog import AnalogActions
from imlmesh_drivers.iot.edges import EdgeActions
from imlmesh_drivers.iot.i2c import I2cActions
from imlmesh_drivers.iot.mqtt import MqttActions
from imlmesh_drivers.iot.pwm import PwmActions
from imlmesh_drivers.iot.sensors import SensorActions
from imlmesh_drivers.iot.uart import UartActions

__all__ = ["Iot"]


class Iot(
    EdgeActions, PwmActions, AnalogActions, I2cActions, UartActions, SensorActions, MqttActions
):
    """Pins, buses, sensors and MQTT."""
