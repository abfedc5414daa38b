"""A node that loses its leases: the work that must stop is stopped, and pins go to their safe level.

Real node process, real driver process, twins of pin and serial port. The safe level is 1 and the pin
was set to 0, so that neither a pin left alone nor one that nobody drives reads like a safe one.
"""

import time
from dataclasses import replace
from pathlib import Path

import psutil

from imlmesh_protocol.limits import LAN, stop_ms
from imlmesh_protocol.wire.dispatches import Dispatch
from imlmesh_protocol.wire.topics import Kind
from scripted_control import (
    NodeProcess,
    dispatch,
    is_birth,
    opened_control,
    opened_home,
    opened_node,
)

POLICY = """
profile = "local_worker"
[modules]
allow = ["iot"]
[pins]
factory = "mock"
allow = [17]
safe = { 17 = 1 }
[serial]
mock = ["/dev/ttyS0"]
"""
PIN = 17


def iot(number: int, action: str, effect: str, **params: object) -> Dispatch:
    return replace(dispatch(number, action, effect, **params), module="iot")


def drivers(node: NodeProcess) -> set[int]:
    """Process ids of the drivers that the node has."""
    assert node.process is not None
    return {
        child.pid
        for child in psutil.Process(node.process.pid).children(recursive=True)
        if "imlmesh_drivers.child" in child.cmdline()
    }


async def test_pins_are_safe_when_the_lease_of_their_drivers_work_is_lost(tmp_path: Path) -> None:
    async with (
        opened_home(tmp_path) as (home, broker),
        opened_control(home, broker) as control,
        opened_node(home, broker, POLICY) as node,
    ):
        await control.wait(is_birth)
        for one, level in (
            (iot(1, "digital_write", "physical", pin=PIN, value=0), 0),
            (iot(2, "digital_read", "pure", pin=PIN), 0),
        ):
            control.delegate(one)
            assert (await control.result(one))["result"]["value"] == level
        before = drivers(node)
        assert len(before) == 1

        listens = replace(
            iot(3, "receive_uart", "pure", port="/dev/ttyS0", timeout=30.0), when_cut_off="stop"
        )
        control.delegate(listens)
        await control.wait(lambda m: m.kind is Kind.ACCEPT and listens.id in m.fields["started"])
        control.answers = False
        deaf_s = time.monotonic()
        lost = await control.result(listens)
        lasted_ms = 1_000 * (time.monotonic() - deaf_s)
        after = drivers(node)

        assert lost["error"]["code"] == "action.lease_lost"
        # it counts from the sending of the last answered beat, which is one interval old at most
        assert stop_ms(LAN.lost_ms) - LAN.heartbeat_ms - 500 < lasted_ms < LAN.lost_ms
        # when that is told there is a new driver, which is ready only with its pins safe
        assert len(after) == 1
        assert after.isdisjoint(before)
        control.answers = True
        reads = iot(4, "digital_read", "pure", pin=PIN)
        control.delegate(reads)
        assert (await control.result(reads))["result"]["value"] == 1
