"""The process of a node: `python -m imlmesh_node FOLDER`, or `imlmesh node run FOLDER`.

The one rule: everything that it is comes from its folder. Deliberately absent: when to end;
`runtime/process` knows that.
"""

import argparse
import asyncio
import shlex
import ssl
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from imlmesh_node.config import load_config, load_policy
from imlmesh_node.finding import Finder, Tell, log_error
from imlmesh_node.opening import open_journal
from imlmesh_node.papers import Papers
from imlmesh_node.running import RunningNode, Setup
from imlmesh_node.simulated import simulated
from imlmesh_protocol.wire.topics import node_subscriptions
from imlmesh_runtime.discovery import Service, short_root
from imlmesh_runtime.link.address import address_of
from imlmesh_runtime.link.base import Address
from imlmesh_runtime.link.endings import without_clock
from imlmesh_runtime.link.mqtt import MqttLink
from imlmesh_runtime.logs import set_up_logs
from imlmesh_runtime.notify import is_service
from imlmesh_runtime.process import (
    asked_to_end,
    end_in_time,
    on_hangup,
    only_one,
    until_told,
)
from imlmesh_runtime.trust import NodeKeys

_WARM_UP_S = 1.0  # after the start, which is over by then unless the broker is away


async def run_node(
    folder: Path,
    broker: Address | None = None,
    tell: Tell = log_error,
    *,
    simulate: bool = False,
) -> int:
    """Run the node of `folder` until told to end; 0, or 1 when it could not go on.

    `broker` is tried before those of the folder; `tell` gets why the mesh is not found. With
    `simulate` its pins and buses are twins in a greenhouse, whatever the policy says of them.

    Raises InputError, TrustError or StoreError when the folder cannot be used.
    """
    asked = asked_to_end()
    with only_one(folder / "node.lock", "node.running"):
        setup = load_setup(folder)
        if simulate:
            setup = replace(setup, policy=simulated(setup.policy))
        config = setup.config
        wall_ms = time.time_ns() // 1_000_000
        journal, loaded = await open_journal(folder / "journal.db", wall_ms)
        subscriptions = node_subscriptions(config.mesh, config.id)
        finder = _finder(setup, broker, tell)
        papers = Papers(finder, folder, setup.keys.held, config.join)

        def context() -> ssl.SSLContext:
            # its own clock may be years off: dates are looked at when the orchestrator told the time
            return without_clock(setup.keys.context())

        link = MqttLink(papers, config.id, context, subscriptions)
        node = RunningNode(setup, journal, loaded, link)
        on_hangup(node.reloading.ask, asked)
        node.start()
        papers.start(link, node.clocks.mesh)
        asyncio.get_running_loop().call_later(_WARM_UP_S, node.warm_up)
        failed = await until_told(node.engine.failed, node.engine.turned, asked)
        with end_in_time(node.hurry):
            await node.stop(config.timing.finish_ms)
            await papers.close()
        return 1 if failed else 0


def load_setup(folder: Path) -> Setup:
    """Everything that the folder says; makes the folder for files when it is missing."""
    strict = is_service()  # which does not go on with a warning that nobody reads
    config = load_config(folder)
    policy = load_policy(folder, strict=strict)
    keys = NodeKeys.load(folder, config.mesh, strict=strict)
    Path(policy.site.files).mkdir(mode=0o700, parents=True, exist_ok=True)
    return Setup(folder, config, policy, keys)


def _finder(setup: Setup, broker: Address | None, tell: Tell) -> Finder:
    config, folder = setup.config, setup.folder
    me = Service(config.mesh, short_root(folder / "keys" / "root.pub"), config.id)
    given = config.brokers if broker is None else (broker, *config.brokers)
    return Finder(given, me, address_line(folder, config.broker_hint), tell)


def address_line(folder: Path, hint: str) -> str:
    """What gives the node of `folder` an address, where mDNS does not reach; `hint` is one, or empty."""
    address = hint or "ADDRESS:PORT"
    if is_service():
        # systemd says how it is started
        return f'write brokers = ["{address}"] into {folder / "mesh.toml"}, and restart the service'
    return f"imlmesh node run {shlex.quote(str(folder))} --broker {address}"


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code, raises what `run_node` raises."""
    parser = argparse.ArgumentParser(prog="imlmesh_node", allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--broker", metavar="ADDRESS:PORT")
    parser.add_argument("--simulate", action="store_true")
    given = parser.parse_args(argv)
    set_up_logs()
    return start(given.folder, given.broker, simulate=given.simulate)


def start(
    folder: Path, broker: str | None = None, tell: Tell = log_error, *, simulate: bool = False
) -> int:
    """Run the node of `folder` in this process, with `broker` as text; the exit code."""
    address = None if broker is None else address_of(broker)
    return asyncio.run(run_node(folder.absolute(), address, tell, simulate=simulate))
