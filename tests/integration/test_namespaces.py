"""The network that tests make for themselves: apart from this machine's, and gone at the end."""

import subprocess
import sys

from namespaces import Lan

WAIT = "import sys, time; print('here', flush=True); time.sleep(600)"


def test_nothing_is_left_of_it_not_even_what_ran_there(lan: Lan) -> None:
    computer = lan.computer("desk")
    command = [*computer.within, sys.executable, "-c", WAIT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "here\n"
        lan.close()
        assert running.wait(20) == -9
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    assert computer.namespace.partition("-")[0] not in names.stdout


def test_computers_hear_each_other_until_a_firewall_says_no(lan: Lan) -> None:
    look = "import asyncio; from imlmesh_runtime.multicast import *; here = networks(); "
    ask = f"{look}print([n.address for n in here], asyncio.run(trouble(here)))"
    desk, lonely = lan.computer("desk"), lan.computer("lonely", lonely=True)
    assert desk.run(sys.executable, "-c", ask).stdout == f"['{desk.address}'] \n"
    assert lonely.run(sys.executable, "-c", ask).stdout == "[] this computer is in no network\n"
    desk.drop_mdns("input")
    assert "is dropped on this computer" in desk.run(sys.executable, "-c", ask).stdout
