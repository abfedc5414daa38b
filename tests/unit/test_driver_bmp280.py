"""The BMP280's formulas against the worked example of its data sheet, and their inverse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imlmesh_drivers.iot.bmp280 import EXAMPLE, Calibration, raw_from_bytes, raw_to_bytes


def test_the_example_of_the_data_sheet() -> None:
    # chapter 3.12: 25.08 degrees, 100,653.27 Pa
    celsius, fine = EXAMPLE.temperature(519_888)
    assert celsius == pytest.approx(25.08, abs=0.005)
    assert EXAMPLE.pressure(415_148, fine) == pytest.approx(100_653.27, abs=0.3)


def test_trimming_values_survive_their_registers() -> None:
    assert Calibration.from_bytes(EXAMPLE.to_bytes()) == EXAMPLE
    assert EXAMPLE.is_plausible
    assert not Calibration.from_bytes(bytes(24)).is_plausible
    assert not Calibration.from_bytes(b"\xff" * 24).is_plausible


@given(st.floats(-40, 85), st.floats(30_000, 110_000))
def test_the_inverse_finds_what_was_measured(celsius: float, pascal: float) -> None:
    pressure, temperature = raw_from_bytes(raw_to_bytes(*EXAMPLE.raw_of(celsius, pascal)))
    found_c, fine = EXAMPLE.temperature(temperature)
    assert found_c == pytest.approx(celsius, abs=0.01)
    assert EXAMPLE.pressure(pressure, fine) == pytest.approx(pascal, abs=1)


def test_without_a_factor_there_is_no_pressure() -> None:
    broken = Calibration(27504, 26435, -1000, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    assert broken.pressure(415_148, 128_422.0) == 0.0
