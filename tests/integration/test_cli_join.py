"""`imlmesh node join` where it cannot be done: a coded error, and nothing half done."""

import asyncio
import os
import subprocess
import tomllib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import forked
from imlmesh import joining, service
from imlmesh.machine import Machine
from imlmesh.nouns.node import join
from imlmesh_protocol.errors import MeshError
from imlmesh_protocol.wire.joining import JoinToken
from joined import Front

TOKEN = JoinToken("home", ("127.0.0.1:9",), b"p" * 32, "t-1", b"s" * 16).text


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    made = Front(tmp_path / "h")
    await made.open()
    yield made
    await made.close()


async def typed(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(forked.typed, ("node", "join", *words), folder)


async def until(holds: Callable[[], Any]) -> None:
    while True:
        if holds():
            return
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("words", "code", "exit_code"),
    [
        (("mj1_abc",), "token.invalid", 3),
        (("https://example.org/",), "token.invalid", 3),
        (("@missing.txt",), "token.invalid", 3),
        ((TOKEN, "--name", "A/B"), "name.invalid", 3),
        ((TOKEN, "--profile", "root"), "config.invalid", 3),
        ((TOKEN, "--policy", "missing.toml"), "policy.invalid", 3),
        ((TOKEN, "--policy", ".policy.toml"), "policy.invalid", 3),
        ((TOKEN, "--profile", "readonly", "--policy", "x"), "usage", 2),
        ((TOKEN, "--out", "/dev/null/pi-bed"), "config.invalid", 3),
        ((TOKEN, "--at", "nowhere"), "config.invalid", 3),
        ((TOKEN, "--at", "127.0.0.1:9", "--name", "pi-bed"), "join.unreachable", 5),
    ],
)
async def test_what_is_wrong_is_said_and_nothing_is_made(tmp_path, words, code, exit_code):
    # no node would run with it
    (tmp_path / ".policy.toml").write_text('profile = "readonly"\n[root]\nread = ["files"]\n')
    done = await typed(tmp_path, *words)
    assert f"error[{code}]" in done.stderr
    assert done.returncode == exit_code
    assert "try: " in done.stderr
    assert [path for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
    # a wrong token may have a right secret in it
    assert "mj1_" not in done.stderr.replace("begins with mj1_", "")


@pytest.mark.parametrize(
    ("user", "lacks", "hidden", "code"),
    [
        (1000, None, "/nowhere", "access.denied"),
        (0, "no systemd", "/nowhere", "service.no_systemd"),
        (0, None, "/", "service.interpreter"),
    ],
)
def test_what_a_service_lacks_is_said_before_the_token_is_used(
    monkeypatch, tmp_path, user, lacks, hidden, code
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(Machine, "lacks", lambda self: lacks)
    monkeypatch.setattr(service, "_HIDDEN", (Path(hidden),))
    monkeypatch.setattr(joining, "join_mesh", lambda wanted: pytest.fail("nothing is asked"))
    with pytest.raises(MeshError) as caught:
        join(TOKEN, name="pi-bed", service=True)
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


async def test_a_folder_of_something_else_is_left_alone(front, tmp_path):
    token = await front.token(uses=9)
    there = tmp_path / "pi-bed"
    there.mkdir()
    (there / "mine.txt").write_text("mine")
    refused = await typed(tmp_path, token.text, "--name", "pi-bed")
    assert "error[folder.exists]" in refused.stderr
    assert [path.name for path in there.iterdir()] == ["mine.txt"]
    assert front.state.enrolled == {}


async def test_a_node_of_another_mesh_stays_that(front, tmp_path):
    first = await front.token()
    assert (await typed(tmp_path, first.text, "--name", "pi-bed")).returncode == 0
    before = (tmp_path / "pi-bed" / "keys" / "node.pem").read_bytes()
    other = Front(tmp_path / "other")
    await other.open()
    second = await other.token()
    refused = await typed(tmp_path, second.text, "--name", "pi-bed")
    assert "error[folder.exists]" in refused.stderr
    assert (tmp_path / "pi-bed" / "keys" / "node.pem").read_bytes() == before
    assert (other.state.enrolled, other.state.tokens[second.id].spent) == ({}, 0)
    await other.close()


async def test_a_token_may_lie_in_a_file_and_the_policy_names_the_profile(front, tmp_path):
    (tmp_path / "token.txt").write_text((await front.token()).text + "\n")
    policy = 'profile = "readonly"\n\n[roots]\nread = ["files"]\n'
    (tmp_path / "policy.toml").write_text(policy)
    words = ("@token.txt", "--name", "pi-bed", "--policy", "policy.toml", "--out", "there")
    done = await typed(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == tmp_path / "there"
    assert (tmp_path / "there" / "policy.toml").read_text() == policy
    assert front.state.enrolled["pi-bed"].profile == "readonly"
    for path in (tmp_path / "there").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize(
    ("asked", "given", "written"),
    [
        ("readonly", "unrestricted", "readonly"),
        ("power_user", "readonly", "readonly"),
        ("readonly", "", "readonly"),
    ],
)
async def test_a_mesh_never_gives_more_than_was_asked_for_here(
    front, tmp_path, asked, given, written
):
    at = "{}:{}".format(*front.address)
    joining = asyncio.create_task(
        typed(tmp_path, "--at", at, "--name", "pi-bed", "--profile", asked)
    )
    async with asyncio.timeout(40):
        await until(lambda: front.state.joins)
    answer = {"profile": given} if given else {}
    await front.api(lambda client: client.post("joins/pi-bed/approve", answer))
    done = await joining
    assert done.returncode == 0, done.stderr
    policy = tomllib.loads((tmp_path / "pi-bed" / "policy.toml").read_text())
    assert policy["profile"] == written
