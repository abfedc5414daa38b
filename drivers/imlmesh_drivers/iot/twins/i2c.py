"""An I2C bus in memory with two devices on it: a BMP280 at 0x76 and an ADS1115 at 0x48.

The one rule: a device is what its registers do, as its data sheet says; whoever speaks to it uses
smbus2's own messages. An address where nothing is answers with the error of a real bus.
"""

import errno
import os
from typing import Protocol

from smbus2 import i2c_msg

from imlmesh_drivers.iot import bmp280
from imlmesh_drivers.iot.twins.world import World

_READS = 0x0001  # I2C_M_RD of linux/i2c.h
ADS1115_AT = 0x48
BMP280_AT = 0x76


class Device(Protocol):
    """What may lie at an address."""

    def write(self, data: bytes) -> None: ...

    def read(self, count: int) -> bytes: ...


class I2cTwin:
    """Stands in for smbus2.SMBus."""

    def __init__(self, world: World) -> None:
        self.devices: dict[int, Device] = {ADS1115_AT: Ads1115(world), BMP280_AT: Bmp280(world)}

    def i2c_rdwr(self, *messages: i2c_msg) -> None:
        """As smbus2's: messages in one transaction; OSError where nobody answers."""
        for message in messages:
            device = self.devices.get(message.addr)
            if device is None:
                raise OSError(errno.EREMOTEIO, os.strerror(errno.EREMOTEIO))
            if message.flags & _READS:
                for place, value in enumerate(device.read(message.len)):
                    message.buf[place] = value.to_bytes(1, "big")
            else:
                device.write(bytes(message))

    def close(self) -> None:
        """As smbus2's."""


class Bmp280:
    """Temperature and pressure; BST-BMP280-DS001, chapters 3 and 4."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._registers = bytearray(256)
        self._registers[bmp280.CHIP_ID] = bmp280.CHIP_IDS[0]
        at = bmp280.CALIBRATION
        self._registers[at : at + bmp280.CALIBRATION_BYTES] = bmp280.EXAMPLE.to_bytes()
        self._pointer = 0

    def write(self, data: bytes) -> None:
        """A register's number, then its value, then perhaps more such pairs (5.2.1)."""
        self._pointer = data[0]
        for number, value in zip(data[0::2], data[1::2], strict=False):
            if number in (bmp280.CONTROL, bmp280.CONFIG):
                self._registers[number] = value
            if number == bmp280.CONTROL and value & 0b11:
                self._measure()

    def read(self, count: int) -> bytes:
        """From the register that was named last, rising."""
        found = bytes(self._registers[(self._pointer + n) % 256] for n in range(count))
        self._pointer = (self._pointer + count) % 256
        return found

    def _measure(self) -> None:
        now = self._world.readings()
        raw = bmp280.EXAMPLE.raw_of(now.temperature_c, now.pressure_hpa * 100)
        at = bmp280.DATA
        self._registers[at : at + bmp280.DATA_BYTES] = bmp280.raw_to_bytes(*raw)
        # forced mode measures once and sleeps again
        self._registers[bmp280.CONTROL] &= 0b11111100


class Ads1115:
    """Four channels of 16 bits; channel 0 measures the soil. SBAS444, chapter 9.6."""

    def __init__(self, world: World) -> None:
        self._world = world
        #: conversion, config, low and high threshold
        self._registers = [0, 0x8583, 0x8000, 0x7FFF]
        self._pointer = 0

    def write(self, data: bytes) -> None:
        """A register's number, then perhaps its two bytes."""
        self._pointer = data[0] & 0b11
        if self._pointer and len(data) >= 3:
            self._registers[self._pointer] = int.from_bytes(data[1:3], "big")

    def read(self, count: int) -> bytes:
        """The register that was named last, again and again."""
        if self._pointer == 0:
            # the multiplexer of the config register: 0b100 and above are single channels
            channel = self._registers[1] >> 12 & 0b111
            soil = self._world.readings().soil if channel in (0b000, 0b100) else 0.0
            self._registers[0] = round(soil * 0x7FFF)
        word = self._registers[self._pointer].to_bytes(2, "big")
        return (word * (count // 2 + 1))[:count]
