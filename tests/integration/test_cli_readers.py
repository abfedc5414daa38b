"""Whoever reads our output may leave: that shows no traceback and claims no outcome."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import cli_records

if TYPE_CHECKING:
    from conftest import Api

CHANGE = (
    'event: change\nid: 9\ndata: {"seq": 9, "at_ms": 0, "run": "r-1-abcd", "kind": "result-taken",'
    ' "text": "x"}\n\n'
)
END = 'event: end\ndata: {"run": "r-1-abcd", "state": "failed"}\n\n'


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("version", 130, ""),
        ("run list", 130, ""),
        ("run list -o json", 130, ""),
        ("event tail --run r-1-abcd", 130, ""),
        ("run watch r-1-abcd", 130, "detached; r-1-abcd keeps running."),
        ("", 130, ""),
    ],
)
def test_nobody_reads(api: Api, words: str, code: int, said: str) -> None:
    run = cli_records.run([cli_records.action("look", "failed")], run="r-1-abcd", state="running")
    api.answer("GET /v1/runs", {"schema": "imlmesh.run-list/1", "runs": [run]})
    api.answer("GET /v1/runs/r-1-abcd", run)
    # the rest is on its way when the reader has gone
    api.streams += [CHANGE, CHANGE * 1_000 + END]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "imlmesh", *words.split()],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    os.close(writing)
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert said or done.stderr == ""


def test_nobody_reads_what_is_said_beside_the_data(api: Api) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "imlmesh", "run", "show", "r-9"],
        stdout=subprocess.PIPE,
        stderr=writing,
        text=True,
        check=False,
        timeout=60,
    )
    os.close(writing)
    assert (done.returncode, done.stdout) == (3, "")
