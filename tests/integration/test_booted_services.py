"""The services on a machine that systemd runs: installed by the pages of docs/, watched, closed, ended.

One machine serves all tests, in their order: broker, orchestrator and node as docs/firmware.md and
docs/service.md say, then what systemd does about them, then their removal.
"""

import json
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from booted import PYTHON, Booted, booted

NODE = "imlmesh-node@pi-bed.service"
ORCHESTRATOR = "imlmesh-orchestrator.service"
HOME = "/var/lib/imlmesh"
FOLDER = f"{HOME}/nodes/pi-bed"
FIRMWARE = "/opt/checkout/firmware-configs"
#: beside what the greenhouse's policy opens
BUSES = """
[i2c.1]
factory = "mock"
allow = [0x76]
[serial]
mock = ["/dev/ttyS0"]
[onewire]
factory = "mock"
"""
AS_ORCHESTRATOR = ("setpriv", "--reuid=imlmesh", "--regid=imlmesh", "--clear-groups")

pytestmark = [pytest.mark.usefixtures("bootable"), pytest.mark.mosquitto]


@pytest.fixture(scope="module")
def machine(bootable: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    with booted(tmp_path_factory.mktemp("machine")) as found:
        yield found


def is_active(machine: Booted, unit: str) -> bool:
    return machine.run("systemctl", "is-active", unit, check=False).stdout.strip() == "active"


def liveness(machine: Booted) -> str:
    shown = machine.api("GET", "nodes/pi-bed")
    return str(shown["liveness"]) if shown else ""


def health(machine: Booted) -> dict[str, Any]:
    found = machine.api("GET", "health")
    assert found is not None
    return found


def quicken(machine: Booted, unit: str, *more: str) -> None:
    """Let a unit be started again at once; as an administrator would change it."""
    place = f"/etc/systemd/system/{unit}.d"
    lines = "\\n".join(["[Service]", "RestartSec=0", *more])
    machine.run("sh", "-c", f"mkdir -p {place} && printf '{lines}' >{place}/quick.conf")
    machine.run("systemctl", "daemon-reload")


def test_the_orchestrator_is_installed_and_ready(machine: Booted) -> None:
    done = machine.imlmesh("service", "install", "orchestrator")
    assert f"✔ enable and start {ORCHESTRATOR}" in done.stdout
    assert is_active(machine, ORCHESTRATOR)
    # nobody has to say where it is, and may
    machine.imlmesh("status", "--home", HOME)
    status = json.loads(machine.imlmesh("status", "--json").stdout)
    assert status["broker"]["connected"] is False
    assert status["broker"]["address"] == "127.0.0.1:8884"


def test_mosquitto_serves_it_as_the_page_says(machine: Booted) -> None:
    place = "/etc/mosquitto/imlmesh"
    keys = [f"{FIRMWARE}/mosquitto/openssl.cnf"]
    machine.run(*["install", "-o", "root", "-g", "mosquitto", "-m", "640"], *keys, place)
    conf = (f"{FIRMWARE}/mosquitto/mosquitto.conf", "/etc/mosquitto/mosquitto.conf")
    machine.run("install", "-m", "644", *conf)
    drop_in = "/etc/systemd/system/mosquitto.service.d/imlmesh.conf"
    machine.run("install", "-D", "-m", "644", f"{FIRMWARE}/mosquitto/hardening.conf", drop_in)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "mosquitto")
    assert machine.show("mosquitto.service", "User") == "mosquitto"
    machine.until(lambda: health(machine)["broker"]["connected"])


def test_a_node_is_installed_and_comes_online(machine: Booted) -> None:
    policy = "/opt/policy.toml"
    shipped = "/opt/checkout/examples/greenhouse.policy.toml"
    machine.run("sh", "-c", f"cat {shipped} - >{policy} <<'END'\n{BUSES}END")
    token = json.loads(machine.imlmesh("token", "create", "--json").stdout)["text"]
    words = ("node", "join", token, "--name", "pi-bed", "--out", "/tmp/pi-bed", "--policy", policy)
    done = machine.imlmesh(*words, "--service")
    assert f"✔ enable and start {NODE}" in done.stdout, done.stderr
    # and the same line again, as after whatever ended it
    assert machine.imlmesh(*words, "--service").returncode == 0
    assert machine.imlmesh("service", "install", "node", "--hardware").returncode == 0
    machine.run("systemctl", "restart", NODE)
    assert is_active(machine, NODE)
    assert "pi-bed\n" not in machine.run("ls", "/tmp").stdout
    machine.until(lambda: liveness(machine) == "online")


def test_mosquitto_is_told_who_is_shut_out(machine: Booted) -> None:
    doctor = (*AS_ORCHESTRATOR, PYTHON, "-m", "imlmesh", "doctor", "broker", "--home", HOME)
    asked = machine.run(*doctor, "-o", "json", check=False)
    # the last question revokes a certificate and waits until it is refused
    record = json.loads(asked.stdout)
    assert [one for one in record["findings"] if not one["passed"]] == []
    assert (asked.returncode, len(record["findings"])) == (0, 17)
    for version, names in ((1_000, ["pi-bed"]), (1_001, [])):
        table = {"version": version, "revoked": [], "quarantined": names}
        text = f"echo '{json.dumps(table)}' >{HOME}/broker/new && "
        text += f"mv {HOME}/broker/new {HOME}/broker/access.json"
        machine.run(*AS_ORCHESTRATOR, "sh", "-c", text)
        told = f"{HOME}/broker/applied.json"
        machine.until(
            lambda told=told, version=version: (
                json.loads(machine.run(*AS_ORCHESTRATOR, "cat", told).stdout)
                == {"version": version}
            )
        )
        rules = machine.run("cat", "/etc/mosquitto/imlmesh/mesh.acl").stdout
        assert ("user pi-bed\n" in rules) == bool(names)
    # a broken list changes nothing, and is told
    copy, list_ = "/etc/mosquitto/imlmesh/node-ca.crl", f"{HOME}/ca/node-ca.crl"
    good = machine.run("cat", copy).stdout
    machine.run("sh", "-c", f"cp -p {list_} {list_}.good && head -c 300 {list_}.good >{list_}")
    said = ("journalctl", "-u", "imlmesh-access", "-o", "cat")
    machine.until(lambda: "broker.lists" in machine.run(*said).stdout)
    assert machine.run("cat", copy).stdout == good
    machine.run("sh", "-c", f"mv {list_}.good {list_}")


def test_a_plan_runs_behind_all_that_is_closed(machine: Booted) -> None:
    """Drivers in the node, in a thread and in a child process with its libraries, and a command."""
    done = machine.imlmesh("plan", "run", "/opt/checkout/examples/hello.iml.yaml")
    assert done.returncode == 0, done.stderr
    note = machine.run("cat", f"{FOLDER}/files/hello.txt").stdout
    assert note.startswith("Hello from ")
    wanted: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "iot.digital_write": ({"pin": 17, "value": 1}, {"pin": 17, "value": 1, "previous": 0}),
        "iot.read_sensor": ({"sensor_type": "DHT22", "pin": 4}, {"pin": 4, "unit": "celsius"}),
        "iot.read_sensor 2": ({"sensor_type": "BMP280"}, {"address": 0x76, "unit": "celsius"}),
        "iot.read_sensor 3": ({"sensor_type": "DS18B20"}, {"temperature": 20.0}),
        "iot.send_uart": ({"data": "read\n"}, {"bytes_sent": 5}),
        "os_exec.run_command": ({"command": ["expr", "40", "+", "2"]}, {"stdout": "42\n"}),
        "filesystem.create_archive": (
            {"source": "hello.txt", "destination": "hello.zip"},
            {"entries": 1},
        ),
    }
    actions = []
    for number, (name, (params, _)) in enumerate(wanted.items()):
        module, action = name.split()[0].split(".")
        actions.append({"id": f"a{number}", "module": module, "action": action, "params": params})
    head = {"protocol_version": "2.0", "plan_id": "all", "description": "All kinds of drivers"}
    text = json.dumps({**head, "execution_mode": "sequential", "actions": actions})
    submitted = machine.api("POST", "runs", {"text": text})
    assert submitted is not None

    def ended() -> dict[str, Any] | None:
        found = machine.api("GET", f"runs/{submitted['run']}")
        return found if found and found["ended_at_ms"] is not None else None

    run = machine.until(ended)
    results = [action["result"] for action in run["actions"]]
    for result, (_, expected) in zip(results, wanted.values(), strict=True):
        assert result is not None, run
        assert expected.items() <= result.items(), run
    called = machine.imlmesh("action", "call", "iot.read_sensor", "sensor_type=DS18B20", "--json")
    assert json.loads(called.stdout)["result"]["temperature"] == 20.0

    def measured() -> set[str]:
        found = machine.api("GET", "telemetry?metric=iot.*")
        return {each["metric"] for each in found["series"]} if found else set()

    machine.until(lambda: {"iot.dht22.4.humidity", "iot.bmp280.76.pressure_hpa"} <= measured())


def test_a_node_changes_its_files_and_nothing_else(machine: Booted) -> None:
    pid = machine.show(NODE, "MainPID")
    tried = {
        f"{FOLDER}/files/x": True,
        "/tmp/x": True,
        f"{FOLDER}/policy.toml": False,
        f"{FOLDER}/mesh.toml": False,
        f"{FOLDER}/keys/root.pub": False,
        f"{FOLDER}/keys/identity.key": False,
        f"{FOLDER}/keys/renewed": True,
        f"{HOME}/x": False,
        "/etc/x": False,
        "/proc/sys/kernel/hostname": False,
    }
    inside = ["nsenter", f"--target={pid}", "--mount", "--wd=/"]
    for path, allowed in tried.items():
        # as root, which its user is not: what is read-only is so for everybody in there
        done = machine.run(*inside, "sh", "-c", f"echo x >>{path}", check=False)
        assert (done.returncode == 0) == allowed, f"{path}: {done.stderr}"
    moved = machine.run(*inside, "mv", f"{FOLDER}/policy.toml", f"{FOLDER}/old", check=False)
    assert moved.returncode != 0
    made = machine.run(*inside, "cp", "/bin/true", f"{FOLDER}/files/program")
    assert made.returncode == 0
    ran = machine.run(*inside, f"{FOLDER}/files/program", check=False)
    assert ran.returncode == 126, "a program that was written there ran"
    # what it wrote into its own /tmp is not in that of the machine
    assert machine.run("sh", "-c", "ls /tmp | grep -v systemd-private", check=False).stdout == ""


def test_the_user_of_nodes_reads_no_key_of_the_mesh(machine: Booted) -> None:
    as_node = ("setpriv", "--reuid=imlmesh-node", "--regid=imlmesh-node", "--clear-groups")
    assert machine.run(*as_node, "cat", f"{FOLDER}/mesh.toml").returncode == 0
    for path in (f"{HOME}/ca/ca.key", f"{HOME}/broker/broker.key", f"{HOME}/orchestrator"):
        denied = machine.run(*as_node, "ls", "-l", path, check=False)
        assert "Permission denied" in denied.stderr, path
    for words in ([], ["--home", HOME]):
        asked = machine.run(*as_node, PYTHON, "-m", "imlmesh", "status", *words, check=False)
        assert (asked.returncode, "access.denied" in asked.stderr) == (6, True), asked.stderr


def test_installing_again_leaves_what_runs_alone(machine: Booted) -> None:
    pids = [machine.show(unit, "MainPID") for unit in (NODE, ORCHESTRATOR)]
    machine.imlmesh("service", "install", "node")
    machine.imlmesh("service", "install", "orchestrator")
    assert [machine.show(unit, "MainPID") for unit in (NODE, ORCHESTRATOR)] == pids
    assert liveness(machine) == "online"


def test_a_node_that_is_reloaded_goes_on(machine: Booted) -> None:
    pid = machine.show(NODE, "MainPID")
    machine.run("systemctl", "reload", NODE)
    told = "the policy names no plug-in that could be read anew"
    machine.until(lambda: told in machine.imlmesh("service", "logs", "node").stdout)
    assert machine.show(NODE, "MainPID") == pid
    assert liveness(machine) == "online"


def test_logs_come_from_the_journal_with_their_fields(machine: Booted) -> None:
    lines = machine.imlmesh("service", "logs", "orchestrator", "-o", "jsonl").stdout.splitlines()
    records = [json.loads(line) for line in lines]
    assert {record["schema"] for record in records} == {"imlmesh.service-log/1"}
    assert {record["unit"] for record in records} == {ORCHESTRATOR}
    own = [record for record in records if record.get("logger") == "imlmesh_orchestrator.main"]
    assert any(record["message"].startswith("epoch ") for record in own)
    # systemd's own words stand between
    assert any("Started" in record["message"] for record in records if "logger" not in record)
    table = machine.imlmesh("service", "logs", "-n", "500").stdout
    assert "node@pi-bed " in table
    assert "orchestrator " in table
    assert len(machine.imlmesh("service", "logs", "-n", "3").stdout.splitlines()) == 3
    # Ctrl-C ends following, and journalctl with it
    follow = f"{PYTHON} -m imlmesh service logs node -f -n 1 >/run/followed 2>&1"
    # a shell lets what it starts in the background ignore SIGINT
    started = machine.run("sh", "-c", f"env --default-signal=INT {follow} & echo $!")
    machine.until(lambda: "node@pi-bed " in machine.run("cat", "/run/followed").stdout)
    machine.run("kill", "-INT", started.stdout.strip())
    machine.until(lambda: machine.run("pgrep", "journalctl", check=False).returncode == 1)


def test_the_network_is_told_where_the_service_is(machine: Booted) -> None:
    machine.run("ip", "link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
    machine.run("ip", "link", "set", "lan1", "up")
    machine.run("ip", "addr", "add", "192.0.2.7/24", "dev", "lan0")
    machine.run("ip", "link", "set", "lan0", "up", "multicast", "on")
    assert machine.imlmesh("service", "install", "orchestrator", "--lan").returncode == 0
    machine.run("systemctl", "restart", ORCHESTRATOR)
    said = ("journalctl", "-u", ORCHESTRATOR, "-o", "cat")
    told = "is announced by mDNS, at 192.0.2.7"
    machine.until(lambda: told in machine.run(*said).stdout)
    machine.until(lambda: liveness(machine) == "online")


def test_a_node_that_hangs_is_ended_and_started_again(machine: Booted) -> None:
    quicken(machine, NODE, "WatchdogSec=2", "TimeoutAbortSec=1")
    machine.run("systemctl", "restart", NODE)
    before = machine.show(NODE, "MainPID")
    # fed for longer than the watchdog waits, it lives
    fed = machine.show(NODE, "WatchdogTimestampMonotonic")
    machine.until(
        lambda: int(machine.show(NODE, "WatchdogTimestampMonotonic")) > int(fed) + 2_500_000
    )
    assert machine.show(NODE, "MainPID") == before
    machine.run("kill", "-STOP", before)
    machine.until(lambda: machine.show(NODE, "NRestarts") == "1")
    machine.until(lambda: is_active(machine, NODE))
    assert machine.show(NODE, "MainPID") != before
    machine.until(lambda: liveness(machine) == "online")
    told = machine.imlmesh("service", "logs", "node").stdout
    assert "Watchdog timeout" in told


def test_a_killed_orchestrator_comes_back_by_itself(machine: Booted) -> None:
    quicken(machine, ORCHESTRATOR)
    before = health(machine)["epoch"]
    machine.run("systemctl", "kill", "--signal=KILL", ORCHESTRATOR)
    machine.until(lambda: machine.show(ORCHESTRATOR, "NRestarts") == "1")
    machine.until(lambda: is_active(machine, ORCHESTRATOR))
    machine.until(lambda: liveness(machine) == "online")
    assert health(machine)["epoch"] > before


def test_a_policy_or_key_that_others_reach_is_a_refusal(machine: Booted) -> None:
    policy, key = f"{FOLDER}/policy.toml", f"{FOLDER}/keys/identity.key"
    for spoil, mend in (
        (f"chmod 644 {policy}", f"chmod 600 {policy}"),
        (f"chown mosquitto {policy}", f"chown imlmesh-node {policy}"),
        (f"chmod 777 {FOLDER}", f"chmod 700 {FOLDER}"),
        (f"chmod 640 {key}", f"chmod 600 {key}"),
    ):
        machine.run("systemctl", "stop", NODE)
        before = len(codes(machine))
        machine.run(*spoil.split())
        machine.run("systemctl", "start", "--no-block", NODE)
        # where not even reading is allowed any more, that is what it says
        machine.until(lambda n=before: {"trust.mode", "trust.file"} & set(codes(machine)[n:]))
        machine.until(lambda: int(machine.show(NODE, "NRestarts")) >= 1)
        assert not is_active(machine, NODE), spoil
        machine.run("systemctl", "stop", NODE)
        machine.run(*mend.split())
    machine.run("systemctl", "start", NODE)
    assert is_active(machine, NODE)


def codes(machine: Booted) -> list[str]:
    """Of all errors that the node has told the journal."""
    lines = machine.run("journalctl", "-u", NODE, "-o", "json").stdout.splitlines()
    told = [json.loads(line)["MESSAGE"] for line in lines]
    return [found[1] for each in told if (found := re.search(r'"code": ?"([^"]+)"', str(each)))]


def test_uninstall_stops_both_and_leaves_the_data(machine: Booted) -> None:
    pids = [machine.show(unit, "MainPID") for unit in (NODE, ORCHESTRATOR)]
    before = health(machine)["epoch"]
    assert machine.imlmesh("service", "uninstall", "node").returncode == 0
    done = machine.imlmesh("service", "uninstall", "orchestrator")
    assert f"its data stays in {HOME}" in done.stderr
    for pid in pids:
        assert machine.run("test", "-e", f"/proc/{pid}", check=False).returncode == 1
    known = machine.run("systemctl", "list-unit-files", "imlmesh*", check=False).stdout
    assert "0 unit files" in known
    assert machine.run("test", "-e", f"{FOLDER}/journal.db").returncode == 0
    assert machine.run("test", "-e", "/run/imlmesh", check=False).returncode == 1
    # and back again, with all that it knew
    machine.imlmesh("service", "install", "orchestrator")
    assert health(machine)["epoch"] > before
    assert "pi-bed" in machine.imlmesh("node", "list").stdout


def test_nothing_of_the_machine_is_left_outside(tmp_path: Path) -> None:
    # nobody else on this machine has a file of that name
    inside = f"inside-{secrets.token_hex(4)}"
    with booted(tmp_path) as machine:
        machine.run("touch", *(f"{folder}/{inside}" for folder in ("/tmp", "/var", "/etc", "/dev")))
        written = machine.run("touch", f"/usr/{inside}", check=False)
        assert written.returncode != 0
        assert (
            machine.run("sh", "-c", "echo 1 >/proc/sys/kernel/sysrq", check=False).returncode != 0
        )
    for folder in ("/tmp", "/var", "/etc", "/usr", "/dev"):
        assert not Path(folder, inside).exists()
    assert not list((tmp_path / "root").iterdir())
    shutil.rmtree(tmp_path / "root")
