"""Pulse width modulation and servos.

The one rule: what is started keeps its pin until it is stopped, cleaned up, or the safe state is set.
"""

from typing import Annotated, TypedDict

from annotated_types import Interval

from imlmesh_drivers.base import Pin, action
from imlmesh_drivers.buses import Factory
from imlmesh_drivers.call import Call
from imlmesh_drivers.iot.board import Board
from imlmesh_drivers.iot.digital import BY_NUMBERING, HeaderPin, Numbering
from imlmesh_drivers.iot.pins import Use, bcm, hardware
from imlmesh_protocol.errors import DriverError
from imlmesh_protocol.manifest import Undo

Frequency = Annotated[float, Interval(ge=1.0, le=1000000.0)]
Percent = Annotated[float, Interval(ge=0.0, le=100.0)]
Angle = Annotated[float, Interval(ge=-90.0, le=90.0)]


class PwmStarted(TypedDict):
    """A pin that pulses: hertz, and per cent of the time that it is high."""

    pin: int
    frequency_hz: float
    duty_cycle: float
    factory: Factory


class PwmSet(TypedDict):
    """The same by the names of set_pwm."""

    pin: int
    mode: Numbering
    frequency: float
    duty_cycle: float
    factory: Factory


class DutyCycle(TypedDict):
    """Per cent now, and before."""

    pin: int
    duty_cycle: float
    previous: float
    factory: Factory


class PwmStopped(TypedDict):
    """`stopped` is false when nothing pulsed there."""

    pin: int
    stopped: bool


class ServoAt(TypedDict):
    """Degrees from the middle."""

    pin: int
    angle: float
    factory: Factory


class PwmActions(Board):
    """Actions on pulses and servos."""

    @action(
        effect="physical",
        impact=0.5,
        permission="local_worker",
        claims="gpio:{pin}",
        undo=Undo("pwm_stop", {"pin": "{{params.pin}}"}),
    )
    def pwm_start(
        self, call: Call, pin: Pin, frequency_hz: Frequency, duty_cycle: Percent = 50.0
    ) -> PwmStarted:
        """Let a pin pulse; it does until pwm_stop."""
        self._start(pin, frequency_hz, duty_cycle, call.dispatch)
        return {
            "pin": pin,
            "frequency_hz": float(frequency_hz),
            "duty_cycle": float(duty_cycle),
            "factory": self.pins.rules.factory,
        }

    @action(
        effect="physical",
        impact=0.5,
        permission="local_worker",
        claims="gpio:{pin}",
        undo=Undo(
            "pwm_set_duty_cycle",
            {"pin": "{{params.pin}}", "duty_cycle": "{{result.previous}}"},
        ),
    )
    def pwm_set_duty_cycle(self, pin: Pin, duty_cycle: Percent) -> DutyCycle:
        """Change how much of the time a pulsing pin is high."""
        with self.pins.lock:
            use = self._pulsing(pin)
            if use is None:
                text = f"pin: gpio:{pin} does not pulse; pwm_start begins it"
                raise DriverError("driver.params", text)
            with hardware(f"duty_cycle: gpio:{pin}"):
                previous = use.device.value * 100
                use.device.value = duty_cycle / 100
        return {
            "pin": pin,
            "duty_cycle": float(duty_cycle),
            "previous": round(previous, 6),
            "factory": self.pins.rules.factory,
        }

    @action(effect="physical", impact=0.5, permission="local_worker", claims="gpio:{pin}")
    def pwm_stop(self, pin: Pin) -> PwmStopped:
        """End the pulses of a pin; it goes to its safe level, else it becomes an input."""
        with self.pins.lock:
            stopped = self._pulsing(pin) is not None and self.pins.release(pin)
        return {"pin": pin, "stopped": stopped}

    @action(effect="physical", impact=0.5, permission="local_worker", claims=BY_NUMBERING)
    def set_pwm(
        self,
        call: Call,
        pin: HeaderPin,
        frequency: Frequency,
        duty_cycle: Percent,
        mode: Numbering = "BCM",
    ) -> PwmSet:
        """Let a pin pulse, or change how it does, by BCM number or place on the header."""
        number = bcm(pin, mode)
        with self.pins.lock:
            use = self._pulsing(number)
            if use is None:
                self._start(number, frequency, duty_cycle, call.dispatch)
            else:
                self._change(number, use, frequency, duty_cycle)
        return {
            "pin": pin,
            "mode": mode,
            "frequency": float(frequency),
            "duty_cycle": float(duty_cycle),
            "factory": self.pins.rules.factory,
        }

    @action(effect="physical", impact=0.5, permission="local_worker", claims="gpio:{pin}")
    def set_servo(self, call: Call, pin: Pin, angle: Angle) -> ServoAt:
        """Turn a servo to an angle in degrees, 0 being its middle; it holds it until cleanup.

        Pulses of 1 to 2 ms every 20 ms, which every hobby servo understands.
        """
        with self.pins.lock:
            use = self.pins.use_of(pin, "servo")
            if use is None:
                self.pins.take(pin, "servo", call.dispatch, "AngularServo", initial_angle=angle)
            else:
                with hardware(f"angle: gpio:{pin}"):
                    use.device.angle = angle
        return {"pin": pin, "angle": float(angle), "factory": self.pins.rules.factory}

    def _pulsing(self, pin: int) -> Use | None:
        return self.pins.use_of(pin, "pwm")

    def _start(self, pin: int, frequency: float, duty_cycle: float, owner: str) -> None:
        options = {"frequency": frequency, "initial_value": duty_cycle / 100}
        self.pins.take(pin, "pwm", owner, "PWMOutputDevice", **options)

    def _change(self, pin: int, use: Use, frequency: float, duty_cycle: float) -> None:
        with hardware(f"frequency: gpio:{pin}"):
            # a frequency out of reach is refused before the duty cycle changes
            if frequency != use.device.frequency:
                use.device.frequency = frequency
            use.device.value = duty_cycle / 100
