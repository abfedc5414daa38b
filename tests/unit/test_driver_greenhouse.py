"""The simulated greenhouse: a day's course, soil that dries and is watered, noise from a seed."""

import statistics

import pytest

from imlmesh_drivers.iot.twins.greenhouse import STILL, Greenhouse
from imlmesh_drivers.iot.twins.world import SPEED, World


def day(greenhouse: Greenhouse, valve_open: bool = False) -> list[float]:
    """The temperatures of the next 24 hours, one for each."""
    found = []
    for _ in range(24):
        found.append(greenhouse.readings().temperature_c)
        greenhouse.advance(60, valve_open)
    return found


def test_a_day_has_a_cold_and_a_warm_end() -> None:
    hours = day(Greenhouse())
    # it begins at eight: coldest at five in the morning, warmest at five in the afternoon
    assert hours.index(min(hours)) in (20, 21, 22)
    assert hours.index(max(hours)) in (8, 9, 10)
    assert 10 < min(hours) < 14 < 22 < max(hours) < 26


def test_soil_dries_and_water_wets_it() -> None:
    greenhouse = Greenhouse()
    begin = greenhouse.readings().soil
    greenhouse.advance(120, valve_open=False)
    dry = greenhouse.readings().soil
    greenhouse.advance(10, valve_open=True)
    wet = greenhouse.readings().soil
    assert dry < begin < wet
    greenhouse.advance(100_000, valve_open=True)
    assert 0.9 < greenhouse.readings().soil <= 1
    greenhouse.advance(100_000, valve_open=False)
    assert 0 <= greenhouse.readings().soil < 0.1


def test_noise_is_small_and_comes_from_the_seed() -> None:
    one, same, other = Greenhouse(1), Greenhouse(1), Greenhouse(2)
    first = [one.readings() for _ in range(200)]
    assert first == [same.readings() for _ in range(200)]
    assert first != [other.readings() for _ in range(200)]
    spread = statistics.pstdev(reading.temperature_c for reading in first)
    assert 0.02 < spread < 0.1


@pytest.mark.parametrize("minutes", [0.0, 1e-9, 1e9])
def test_readings_stay_possible(minutes: float) -> None:
    greenhouse = Greenhouse()
    greenhouse.advance(minutes, valve_open=True)
    now = greenhouse.readings()
    assert 0 <= now.soil <= 1
    assert 0 <= now.humidity <= 100
    assert 900 < now.pressure_hpa < 1100


def test_a_minute_passes_in_a_second_and_only_in_a_simulation() -> None:
    seconds = [0.0]
    world = World(simulate=True, clock=lambda: seconds[0])
    world.valve_open = lambda: True
    begin = world.readings().soil
    seconds[0] = 5.0
    assert world.readings().soil - begin == pytest.approx(0.1, abs=0.02)
    assert SPEED == 60
    assert World(simulate=False).readings() == STILL
