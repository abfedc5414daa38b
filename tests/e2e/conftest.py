"""A person at a terminal: types commands into real pseudo-terminals and reads what they say."""

import contextlib
import fcntl
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from forked import Forked, Start, typed
from imlmesh import Client
from namespaces import Computer, Lan

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


#: starts a program at a terminal (/dev/pts/…); its number, and what tells its exit code once it has one
Begin = Callable[[Path], tuple[int, Callable[[], int | None]]]


class Terminal:
    """One program in a terminal of its own."""

    def __init__(self, begin: Begin, columns: int = 100, lines: int = 40) -> None:
        self.shown = ""
        self.exit_code: int | None = None
        self._terminal, far_end = os.openpty()
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, size)
        self.pid, self._ended = begin(Path(os.ttyname(far_end)))
        os.close(far_end)

    @property
    def text(self) -> str:
        """What was shown, without colours and cursor movements."""
        return _ESCAPE.sub("", self.shown)

    def expect(self, pattern: str, timeout_s: float = 30) -> re.Match[str]:
        """Read until `pattern` is seen; fails when the program ends or the time does."""
        deadline_s = time.monotonic() + timeout_s
        while (found := re.search(pattern, self.text)) is None:
            if time.monotonic() > deadline_s or not self._read():
                pytest.fail(f"never showed {pattern!r}:\n{self.text}")
        return found

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self._terminal, keys.encode())

    def wait(self, timeout_s: float = 30) -> int:
        """Read until the program ends; its exit code."""
        deadline_s = time.monotonic() + timeout_s
        while self.exit_code is None:
            self._read()
            if (code := self._ended()) is not None:
                while self._read():
                    pass
                self.exit_code = code
            elif time.monotonic() > deadline_s:
                pytest.fail(f"did not end:\n{self.text}")
        return self.exit_code

    def kill(self) -> None:
        """SIGKILL, at once."""
        if self.exit_code is None:
            self._signal(signal.SIGKILL)
            self.wait()

    def close(self) -> None:
        """End it if it still runs, as closing the window would."""
        if self.exit_code is None:
            self._signal(signal.SIGTERM)
            self.wait(40)
        os.close(self._terminal)

    def _signal(self, number: signal.Signals) -> None:
        if self._ended() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _read(self) -> bool:
        """Take what was shown; False when nothing more will come."""
        ready, _, _ = select.select([self._terminal], [], [], 0.05)
        if not ready:
            return True
        with contextlib.suppress(OSError):
            if data := os.read(self._terminal, 65_536):
                self.shown += data.decode(errors="replace")
                return True
        return False


class Person:
    """Types `imlmesh …` with one home; everything started is ended with the test module.

    `namespace` is the network namespace of the computer, where it is another one.
    """

    def __init__(self, folder: Path, namespace: str = "") -> None:
        self.folder = folder
        self._namespace = namespace
        self.home = folder / "home"
        #: the interpreter whose imlmesh is typed
        self.python = sys.executable
        self._terminals: list[Terminal] = []
        # a terminal says for itself how wide it is and whether it has colours
        foreign = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
        inherited = {n: v for n, v in os.environ.items() if n not in foreign}
        self.env = {**inherited, "IMLMESH_HOME": str(self.home), "TERM": "xterm-256color"}

    def open(self, *arguments: str, columns: int = 100, anew: bool = False) -> Terminal:
        """Start `imlmesh ARGUMENTS` in a new terminal; `anew` as a shell does, not as a fork."""

        def forked(terminal: Path) -> tuple[int, Callable[[], int | None]]:
            place = (terminal, terminal, self.folder, self.env, self._namespace, terminal)
            process = Forked(Start("imlmesh", arguments, *place))
            return process.pid, lambda: process.returncode

        begin = self._begin_anew(arguments) if anew or self._is_foreign else forked
        terminal = Terminal(begin, columns)
        self._terminals.append(terminal)
        return terminal

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`imlmesh ARGUMENTS`, not in a terminal, to its end."""
        if not self._is_foreign:
            return typed(arguments, self.folder, self.env, self._namespace)
        return subprocess.run(
            [self.python, "-m", "imlmesh", *arguments],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    @property
    def _is_foreign(self) -> bool:
        return self.python != sys.executable

    def _begin_anew(self, arguments: Sequence[str]) -> Begin:
        def begin(terminal: Path) -> tuple[int, Callable[[], int | None]]:
            with terminal.open("r+b", buffering=0) as ends:
                process = subprocess.Popen(
                    [self.python, "-m", "imlmesh", *arguments],
                    stdin=ends,
                    stdout=ends,
                    stderr=ends,
                    cwd=self.folder,
                    env=self.env,
                    start_new_session=True,
                    preexec_fn=_take_terminal,
                )
            return process.pid, process.poll

        return begin

    def ask(self, *arguments: str) -> dict[str, Any]:
        """The JSON that `imlmesh ARGUMENTS` prints."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def join(self, name: str, *words: str, owner: "Person | None" = None) -> Path:
        """The folder of a node that joins here the mesh of `owner`, or this person's own."""
        token = (owner or self).ask("token", "create")["text"]
        return Path(self.ask("node", "join", token, "--name", name, *words)["folder"])

    def until(self, ready: Callable[[], Any], timeout_s: float = 30) -> Any:
        """The first true answer of `ready`."""
        deadline_s = time.monotonic() + timeout_s
        while not (found := ready()):
            if time.monotonic() > deadline_s:
                pytest.fail("it did not happen in time")
            time.sleep(0.1)
        return found

    def liveness(self, node: str) -> str:
        """What the orchestrator thinks of a node, over its socket; "" of one that was never born."""
        with Client.connect(self.home) as client:
            nodes = client.get("nodes")["nodes"]
        return next((str(each["liveness"]) for each in nodes if each["alias"] == node), "")

    def leave(self) -> None:
        """Close all terminals, the last opened first."""
        while self._terminals:
            self._terminals.pop().close()


@dataclass(frozen=True)
class Desk:
    """A computer, somebody at it, and the terminal of their mesh."""

    computer: Computer
    owner: Person
    up: Terminal


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # a shell in the background gives its children none, a terminal does
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="module")
def person(broker_program: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    """Somebody in an empty folder."""
    found = Person(tmp_path_factory.mktemp("person"))
    yield found
    found.leave()


@pytest.fixture(scope="module")
def desk(
    broker_program: None, shared_lan: Lan, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Desk]:
    """The mesh of an owner who lets others in: `up --lan` at a computer of the network that the
    tests of a file share."""
    computer = shared_lan.computer("desk")
    owner = Person(tmp_path_factory.mktemp("owner"), computer.namespace)
    up = owner.open("up", "--timing", "lan", "--lan", columns=600)
    try:
        up.expect(r"Ctrl-C stops all of it")
        yield Desk(computer, owner, up)
    finally:
        owner.leave()


@pytest.fixture
def someone(broker_program: None, tmp_path: Path) -> Iterator[Callable[[Computer, str], Person]]:
    """Makes somebody at a computer of the network, in a folder of that name."""
    made: list[Person] = []

    def at(computer: Computer, name: str) -> Person:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        made.append(Person(folder, computer.namespace))
        return made[-1]

    yield at
    for person in made:
        person.leave()
