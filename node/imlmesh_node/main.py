"""The process of a node: `python -m imlmesh_node [--simulate] FOLDER`, or `imlmesh node run FOLDER`.

The one rule: everything that it is comes from its folder. Deliberately absent: when to end;
`runtime/process` knows that.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from imlmesh_node.config import load_config, load_policy
from imlmesh_node.journal import Journal
from imlmesh_node.running import RunningNode, Setup
from imlmesh_node.simulated import simulated
from imlmesh_protocol.errors import InputError
from imlmesh_protocol.wire.topics import node_subscriptions
from imlmesh_runtime.link.mqtt import MqttLink
from imlmesh_runtime.logs import set_up_logs
from imlmesh_runtime.notify import is_service
from imlmesh_runtime.process import only_one, until_told
from imlmesh_runtime.trust import NodeKeys

_WARM_UP_S = 1.0  # after the start, which is over by then unless the broker is away


async def run_node(folder: Path, simulate: bool = False) -> int:
    """Run the node of `folder` until told to end; 0, or 1 when it could not go on.

    With `simulate` its pins and buses are twins in a greenhouse, whatever the policy says of them.

    Raises InputError, TrustError or StoreError when the folder cannot be used.
    """
    with only_one(folder / "node.lock", "node.running"):
        setup = load_setup(folder)
        if simulate:
            setup = replace(setup, policy=simulated(setup.policy))
        config = setup.config
        journal = Journal.open(folder / "journal.db")
        loaded = await journal.load(time.time_ns() // 1_000_000)
        subscriptions = node_subscriptions(config.mesh, config.id)
        link = MqttLink(config.brokers, config.id, setup.keys.context(), subscriptions)
        node = RunningNode(setup, journal, loaded, link)
        node.start()
        asyncio.get_running_loop().call_later(_WARM_UP_S, node.warm_up)
        failed = await until_told(node.engine.failed, node.engine.turned)
        await node.stop()
        return 1 if failed else 0


def load_setup(folder: Path) -> Setup:
    """Everything that the folder says; makes the folder for files when it is missing."""
    strict = is_service()  # which does not go on with a warning that nobody reads
    config = load_config(folder)
    policy = load_policy(folder, strict=strict)
    keys = NodeKeys.load(folder, config.mesh, strict=strict)
    Path(policy.site.files).mkdir(mode=0o700, parents=True, exist_ok=True)
    return Setup(folder, config, policy, keys)


def main(argv: Sequence[str]) -> int:
    """Run the node of a folder; returns the exit code, raises what `run_node` raises."""
    folders = [word for word in argv if word != "--simulate"]
    if len(folders) != 1:
        raise InputError("usage", "python -m imlmesh_node [--simulate] FOLDER")
    set_up_logs()
    return asyncio.run(run_node(Path(folders[0]).absolute(), "--simulate" in argv))
