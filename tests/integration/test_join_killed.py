"""Whatever is killed while a node joins, the same command succeeds afterwards, and one use is spent."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from forked import Forked, Start
from imlmesh_node.main import load_setup
from imlmesh_protocol.wire.joining import JoinToken
from join_wire import Wire
from joined import Front
from orchestrator_mesh import ME, Mesh, action, opened_mesh, plan

#: the connections of a node that joins by a token: whom to believe, a nonce, and to join
QUESTIONS = (1, 2, 3)


class Typed:
    """`imlmesh node join WORDS` in `folder`; with `dies_at` it is killed at that write."""

    def __init__(self, folder: Path, *words: str, dies_at: int = 0) -> None:
        said = ("node", "join", *words)
        self._log = folder / ".said"
        self._process = Forked(Start("imlmesh", said, self._log, folder=folder, dies_at=dies_at))

    async def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)

    async def ended(self) -> int:
        """Its exit code."""
        code = await asyncio.wait_for(self._process.wait(), 60)
        print(self._log.read_text())
        return code


async def node_join(folder: Path, *words: str, dies_at: int = 0) -> int:
    return await Typed(folder, *words, dies_at=dies_at).ended()


async def test_a_node_killed_at_any_write_joins_by_the_same_command(tmp_path):
    front = Front(tmp_path / "h")
    await front.open()
    desk = tmp_path / "desk"
    desk.mkdir()
    token = await front.token(uses=99)
    died = joined = 0
    for dies_at in range(1, 60, 3):
        name = f"pi-{dies_at}"
        first = await node_join(desk, token.text, "--name", name, dies_at=dies_at)
        if first == 0:
            break
        died += 1
        assert await node_join(desk, token.text, "--name", name) == 0
        joined += 1
        folder = desk / name
        record = front.state.enrolled[name]
        assert load_setup(folder).keys.signer.raw_public == record.identity
        assert [path.name for path in desk.iterdir() if name in path.name] == [name]
    assert died == joined > 5
    assert front.state.tokens[token.id].spent == len(front.state.enrolled) == joined + 1
    await front.close()


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.usefixtures("broker_program")
async def test_an_orchestrator_killed_at_any_question_lets_the_node_in_afterwards(
    tmp_path, answered
):
    """And then the node works: an action leaves its file."""
    async with opened_mesh(tmp_path) as mesh:
        await mesh.orchestrator()

        async def kill() -> None:
            await mesh.kill(ME)

        for connection in QUESTIONS:
            name = f"pi-{connection}"
            health = await mesh.until("health", lambda found: found["join"]["endpoints"])
            host, _, port = health["join"]["endpoints"][0].partition(":")
            made = (await mesh.http.post("tokens", json={})).json()
            token = JoinToken.parse(made["text"])
            wire = Wire((host, int(port)), connection, answered=answered, act=kill)
            async with wire as at:
                assert await node_join(tmp_path, token.text, "--name", name, "--at", at) != 0
            assert wire.broke
            assert not (tmp_path / name).exists()
            await mesh.orchestrator()
            await mesh.until("health", lambda found: found["join"]["endpoints"])
            assert await node_join(tmp_path, token.text, "--name", name) == 0
            listed = await mesh.get("tokens")
            assert [each["spent"] for each in listed["tokens"]] == [1] * connection
        # the one of the question that lets in
        await works(mesh, tmp_path / name)


@pytest.mark.parametrize("answered", [False, True])
async def test_a_node_killed_at_any_question_joins_by_the_same_command(tmp_path, answered):
    front = Front(tmp_path / "h")
    await front.open()
    typed: list[Typed] = []

    async def kill() -> None:
        await typed[-1].kill()

    for connection in QUESTIONS:
        token, name = await front.token(), f"pi-{connection}"
        async with Wire(front.address, connection, answered=answered, act=kill) as at:
            typed.append(Typed(tmp_path, token.text, "--name", name, "--at", at))
            assert await typed[-1].ended() == -9
        assert await node_join(tmp_path, token.text, "--name", name) == 0
        assert front.state.tokens[token.id].spent == 1
    await front.close()


async def works(mesh: Mesh, folder: Path) -> None:
    broker = f"127.0.0.1:{mesh.port}"  # which a mesh that `up` did not start tells nobody
    await mesh.start(folder.name, "imlmesh_node", str(folder), "--broker", broker)
    await mesh.online(folder.name)
    params = {"path": "marker.txt", "content": "here"}
    note: dict[str, Any] = action("note", "write_file", params=params, target_node=folder.name)
    run = await mesh.submit(plan(note))
    assert (await mesh.ended(run["run"]))["state"] == "completed"
    assert (folder / "files" / "marker.txt").read_text() == "here"
