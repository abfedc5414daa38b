"""The tables of policy.toml that open buses: [i2c.N], [serial], [onewire], [mqtt].

The one rule: what is not written is not open, and native or mock is written for every bus.
"""

from imlmesh_drivers.buses import FACTORIES, BusRules, Factory, I2cRules
from imlmesh_node.table import Table
from imlmesh_runtime.link.base import is_address

_BUSES = range(11)  # IML's numbers of I2C buses
_ADDRESSES = range(128)


def read_buses(reader: Table) -> BusRules:
    """The four tables, taken out of the policy's own; what is wrong is reported to `reader`."""
    onewire = reader.table("onewire")
    mqtt = reader.table("mqtt")
    rules = BusRules(
        i2c=_i2c(reader.table("i2c")),
        serial=_serial(reader.table("serial")),
        onewire=_factory(onewire, "factory") if onewire.names() else None,
        brokers=mqtt.texts("allow", is_address, "address:port"),
    )
    onewire.end()
    mqtt.end()
    return rules


def _factory(table: Table, name: str) -> Factory:
    word = table.take(name, str, "", "native or mock")
    for factory in FACTORIES:
        if word == factory:
            return factory
    table.wrong(name, "must be native or mock")
    return "mock"


def _i2c(reader: Table) -> dict[int, I2cRules]:
    rules = {}
    for name in reader.names():
        table = reader.table(name)
        if name not in map(str, _BUSES):
            reader.wrong(name, "must be the number of a bus, 0 to 10")
        factory = _factory(table, "factory")
        allow = table.take("allow", list, [], "a list of addresses")
        for place, address in enumerate(allow):
            if type(address) is not int or address not in _ADDRESSES:
                table.wrong(f"allow/{place}", "must be an address from 0 to 127 (0x7f)")
        table.end()
        if name in map(str, _BUSES):
            rules[int(name)] = I2cRules(factory, tuple(allow))
    return rules


def _serial(reader: Table) -> dict[str, Factory]:
    """Ports by the factory that serves them: [serial] native = ["/dev/ttyS0"]."""
    ports: dict[str, Factory] = {}
    for factory in FACTORIES:
        found = reader.texts(factory, lambda path: path.startswith("/dev/"), "a path below /dev")
        for place, port in enumerate(found):
            if port in ports:
                reader.wrong(f"{factory}/{place}", "stands twice: a port is native or mock")
            ports[port] = factory
    reader.end()
    return ports
