"""Which readings come in: names, values, units, times, rates; what one node does harms no other."""

import math
from typing import Any

import pytest

from imlmesh_orchestrator.share import Shares
from imlmesh_orchestrator.telemetry import Telemetry
from imlmesh_protocol import limits
from imlmesh_protocol.errors import ProtocolError
from imlmesh_protocol.telemetry import check_reading, is_metric, is_unit

NOW_MS = 1_700_000_000_000


class Kept:
    """A recorder that remembers, and what was refused."""

    def __init__(self, known: Any = ()) -> None:
        self.series: dict[int, tuple[str, str, str]] = {}
        self.readings: list[tuple[str, str, int, float]] = []
        self.beats: list[tuple[str, int, int]] = []
        self.refused: list[tuple[str, str]] = []
        for series, *names in known:
            self.series[series] = tuple(names)
        self.telemetry = Telemetry(
            self,  # type: ignore[arg-type]
            lambda at_ms, node, code, text: self.refused.append((node, code)),
            known,
        )

    def add_series(self, row: tuple[int, str, str, str]) -> None:
        self.series[row[0]] = row[1:]

    def add_beat(self, node: str, at_ms: int, beat: int) -> None:
        self.beats.append((node, at_ms, beat))

    def add(self, chunks: Any) -> None:
        for times, series, values in chunks:
            node, metric, _ = self.series[series]
            assert all(type(value) is float for value in values)
            self.readings += [(node, metric, at, v) for at, v in zip(times, values, strict=True)]

    def take(self, node: str, at_ms: int = NOW_MS, **readings: Any) -> None:
        """`soil=[1.0]`, or `soil=([at], [1.0])`, of the module iot."""
        columns = {
            f"iot.{name}": found if isinstance(found, tuple) else ([at_ms] * len(found), found)
            for name, found in readings.items()
        }
        self.telemetry.take(node, "iot", columns, {}, at_ms)


def test_a_message_may_hold_readings_of_several_modules() -> None:
    kept = Kept()
    columns = {name: ([NOW_MS], [1.0]) for name in ("iot.soil", "fake.level", "readings.x")}
    nameless = {name: ([NOW_MS], [1.0]) for name in ("soil", ".soil", "iot.")}
    kept.telemetry.take("pi", "readings", columns | nameless, {}, NOW_MS)
    assert {metric for _, metric, _, _ in kept.readings} == columns.keys()
    assert kept.refused == [("pi", "telemetry.invalid")] * len(nameless)


@pytest.mark.parametrize("name", ["a", "iot.soil", "0-x_y.z", "m" * limits.METRIC_CHARS])
def test_names_that_metrics_have(name: str) -> None:
    assert is_metric(name)
    check_reading(name, 1, "")


@pytest.mark.parametrize(
    "name",
    ["", ".soil", "Soil", "a b", "a/b", "ä", "a\n", "m" * (limits.METRIC_CHARS + 1), None, 7],
)
def test_names_that_no_metric_has(name: Any) -> None:
    with pytest.raises(ProtocolError) as caught:
        check_reading(name, 1, "")
    assert caught.value.code == "telemetry.invalid"


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, "7", None, True, [1], 10**400, 1.1e100, 1j]
)
def test_values_that_are_no_finite_numbers(value: Any) -> None:
    with pytest.raises(ProtocolError) as caught:
        check_reading("a", value, "")
    assert caught.value.code == "telemetry.invalid"
    assert "a:" in caught.value.message


@pytest.mark.parametrize("unit", ["", "%", "°C", "m/s²", "kWh", "µmol/m²/s", "Ω"])
def test_units(unit: str) -> None:
    assert is_unit(unit)


@pytest.mark.parametrize("unit", ["=1+1", "+x", "a b", 'x"', "a,b", "a\n", "x" * 17])
def test_what_a_table_program_could_run_is_no_unit(unit: str) -> None:
    assert not is_unit(unit)


def test_readings_come_in_under_the_number_of_their_series() -> None:
    kept = Kept()
    kept.take("pi", soil=[1, 2.5], air=[3])
    kept.take("nuc", soil=[4])
    assert kept.readings == [
        ("pi", "iot.soil", NOW_MS, 1.0),
        ("pi", "iot.soil", NOW_MS, 2.5),
        ("pi", "iot.air", NOW_MS, 3.0),
        ("nuc", "iot.soil", NOW_MS, 4.0),
    ]
    assert sorted(kept.series) == [1, 2, 3]
    assert kept.refused == []


def test_numbers_go_on_where_the_store_ends() -> None:
    kept = Kept([(7, "pi", "iot.soil", "")])
    kept.take("pi", soil=[1])
    kept.take("pi", air=[1])
    assert {series: names[1] for series, names in kept.series.items()} == {
        7: "iot.soil",
        8: "iot.air",
    }


def test_a_new_unit_is_written_and_keeps_the_number() -> None:
    kept = Kept([(7, "pi", "iot.soil", "")])
    kept.telemetry.take("pi", "iot", {"iot.soil": ([NOW_MS], [1])}, {"iot.soil": "%"}, NOW_MS)
    assert kept.series == {7: ("pi", "iot.soil", "%")}
    kept.telemetry.take("pi", "iot", {"iot.soil": ([NOW_MS], [1])}, {"iot.soil": "=1"}, NOW_MS)
    assert kept.refused == [("pi", "telemetry.invalid")]


@pytest.mark.parametrize(
    ("metric", "values"),
    [
        ("fake.soil", [1]),  # of another module than the topic says
        ("iot", [1]),
        ("iot.So il", [1]),
        ("iot." + "x" * limits.METRIC_CHARS, [1]),
        ("iot.big", [1e101]),
        ("iot.low", [1, -1e300]),
    ],
)
def test_a_wrong_reading_is_refused_and_its_neighbours_are_kept(metric: str, values: Any) -> None:
    kept = Kept()
    good = ([NOW_MS], [1])
    readings = {"iot.a": good, metric: ([NOW_MS] * len(values), values), "iot.z": good}
    kept.telemetry.take("pi", "iot", readings, {}, NOW_MS)
    assert [name for _, name, _, _ in kept.readings] == ["iot.a", "iot.z"]
    assert kept.refused == [("pi", "telemetry.invalid")]


@pytest.mark.parametrize("by_ms", [-limits.TELEMETRY_LATE_MS - 1, limits.CLOCK_TOLERANCE_MS + 1])
def test_a_clock_that_is_far_off_is_refused_and_the_next_node_is_not(by_ms: int) -> None:
    kept = Kept()
    kept.take("pi", soil=([NOW_MS + by_ms], [1]), air=([NOW_MS], [2]))
    kept.take("nuc", soil=[3])
    assert [(node, value) for node, _, _, value in kept.readings] == [("pi", 2.0), ("nuc", 3.0)]
    assert kept.refused == [("pi", "telemetry.late")]


def test_a_reading_that_waited_for_the_link_is_not_late() -> None:
    kept = Kept()
    kept.take("pi", soil=([NOW_MS - limits.TELEMETRY_LATE_MS], [1]))
    assert len(kept.readings) == 1


def test_of_a_node_that_was_cut_off_for_long_only_what_is_late_is_refused() -> None:
    kept = Kept()
    late_ms = NOW_MS - limits.TELEMETRY_LATE_MS
    kept.take("pi", soil=([late_ms - 2, late_ms - 1, late_ms, NOW_MS], [1, 2, 3, 4]))
    assert [value for *_, value in kept.readings] == [3.0, 4.0]
    assert kept.refused == [("pi", "telemetry.late")]


def test_ten_thousand_names_are_bounded_and_cost_nobody_else() -> None:
    kept = Kept()
    for start in range(0, 10_000, 500):
        kept.take("evil", **{f"n{number}": [1] for number in range(start, start + 500)})
    kept.take("pi", soil=[1])
    # names that were in time go on
    kept.take("evil", n0=[2])
    refused = 10_000 - limits.TELEMETRY_METRICS
    assert kept.refused == [("evil", "telemetry.metrics")] * refused
    assert len(kept.series) == limits.TELEMETRY_METRICS + 1
    assert kept.readings[-2:] == [
        ("pi", "iot.soil", NOW_MS, 1.0),
        ("evil", "iot.n0", NOW_MS, 2.0),
    ]


def test_a_restart_gives_nobody_more_names() -> None:
    kept = Kept()
    kept.telemetry.beat("evil", NOW_MS, 1, {"load": 1})
    for number in range(limits.TELEMETRY_METRICS):
        columns = {f"health.n{number}": ([NOW_MS], [1])}
        kept.telemetry.take("evil", "health", columns, {}, NOW_MS)
    again = Kept([(series, *names) for series, names in kept.series.items()])
    again.take("evil", soil=[1])
    assert again.refused == [("evil", "telemetry.metrics")]
    again.telemetry.beat("evil", NOW_MS, 2, {"cpu_percent": 3})
    assert again.readings[-1][1] == "health.cpu_percent"


def test_all_nodes_together_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TELEMETRY_SERIES", 3)
    kept = Kept()
    for number in range(5):
        kept.take(f"n{number}", soil=[1])
    assert kept.refused == [("n3", "telemetry.metrics"), ("n4", "telemetry.metrics")]


def test_a_node_that_measures_too_fast_is_slowed_down_alone() -> None:
    kept = Kept()
    burst = limits.TELEMETRY_BURST // 1_000
    for _ in range(burst + 5):
        kept.take("evil", soil=[1] * 1_000)
    kept.take("pi", soil=[1])
    assert kept.refused == [("evil", "telemetry.rate")] * 5
    assert kept.readings[-1][0] == "pi"
    # a second later there is room for a second's share
    kept.take("evil", at_ms=NOW_MS + 1_000, soil=[1] * limits.TELEMETRY_PER_S)
    kept.take("evil", at_ms=NOW_MS + 1_000, soil=[1])
    assert kept.refused == [("evil", "telemetry.rate")] * 6


def test_a_beat_is_kept_with_what_it_says_of_health() -> None:
    kept = Kept()
    health = {"cpu_percent": 12, "temperature_c": 51.5, "load": None, "made_up": 1}
    kept.telemetry.beat("pi", NOW_MS, 3, health)
    assert kept.beats == [("pi", NOW_MS, 3)]
    assert [(metric, value) for _, metric, _, value in kept.readings] == [
        ("health.cpu_percent", 12.0),
        ("health.temperature_c", 51.5),
    ]
    assert kept.series[2] == ("pi", "health.temperature_c", "°C")


def test_a_flood_of_beats_is_kept_at_a_pace_that_honest_nodes_never_reach() -> None:
    kept = Kept()
    for beat in range(1_000):
        kept.telemetry.beat("evil", NOW_MS + beat * 10, beat, {})
    kept.telemetry.beat("pi", NOW_MS, 1, {})
    beats = [beat for node, _, beat in kept.beats if node == "evil"]
    assert beats == list(range(0, 1_000, limits.BEATS_APART_MS // 10))
    assert kept.beats[-1] == ("pi", NOW_MS, 1)


def test_shares_of_names_that_nobody_enrolled_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ENROLLED_NODES", 3)
    shares = Shares(1, 2)
    for number in range(10):
        assert shares.take(f"n{number}", 1, NOW_MS)
    assert len(shares._nodes) == 3
    assert not shares.take("n9", 2, NOW_MS)
