"""The golden scenarios: each tells exactly the story that its transcript holds, and its musts hold.

A change of a core that is meant changes transcripts: `python tests/sim/test_golden.py --write` makes
them anew, and the difference is read before it is committed.
"""

import inspect
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import scenarios_of_loss
import scenarios_of_permits
import scenarios_of_rules
from scenario import SCENARIOS
from stage import Stage

#: where the scenarios stand; importing them registers them
WRITTEN_IN = (scenarios_of_loss, scenarios_of_permits, scenarios_of_rules)
FOLDER = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def play(name: str) -> tuple[Stage, str]:
    made = SCENARIOS[name]
    stage = made()
    stage.check()
    return stage, stage.transcript(name, inspect.cleandoc(made.__doc__ or ""))


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_goes_as_its_transcript_says(name: str) -> None:
    stage, text = play(name)
    broken = [sentence for sentence, holds in stage.musts if not holds]
    assert not broken, text
    assert stage.musts
    assert text == (FOLDER / f"{name}.txt").read_text(encoding="utf-8")


def test_every_scenario_stands_where_it_is_looked_for() -> None:
    modules = {module.__name__ for module in WRITTEN_IN}
    assert {made.__module__ for made in SCENARIOS.values()} == modules


def test_every_transcript_has_its_scenario() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(SCENARIOS)


def write() -> None:
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.txt"):
        path.unlink()
    for name in SCENARIOS:
        stage, text = play(name)
        (FOLDER / f"{name}.txt").write_text(text, encoding="utf-8")
        for sentence, holds in stage.musts:
            if not holds:
                print(f"{name}: BROKEN: {sentence}")


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    write()
