"""Plan files: read within the limits, written whole or not at all.

The one rule: "-" is stdin, and a file that exists is only written over when that was asked for.
Deliberately absent: what is in them.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, Place

STDIN = Path("-")


def name_of(file: Path) -> str | None:
    """The file as errors name it; None for stdin."""
    return None if file == STDIN else str(file)


def read_plan(file: Path) -> bytes:
    """The content; InputError plan.not_found, plan.too_large."""
    try:
        if file == STDIN:
            return _read(sys.stdin.buffer, file)
        with file.open("rb") as opened:
            return _read(opened, file)
    except OSError as exc:
        place = Place(file=str(file))
        raise InputError("plan.not_found", f"{file}: {exc.strerror}", place=place) from exc


def read_plan_text(file: Path) -> str:
    """The content as text; also InputError plan.syntax where it is not UTF-8."""
    data = read_plan(file)
    try:
        return data.decode()
    except UnicodeDecodeError:
        from imlmesh_protocol.iml.document import parse

        # It names the place.
        parse(data, name_of(file))
        raise


def write_plan(file: Path, text: str, *, overwrite: bool) -> None:
    """Write a plan; InputError config.invalid when the file exists, plan.not_found for the rest."""
    if file.exists() and not overwrite:
        hint = "choose another name, or add --force"
        raise InputError("config.invalid", f"{file} exists already", hint=hint)
    try:
        target = file.resolve()
        mode = target.stat().st_mode if target.exists() else 0o666 & ~_umask()
        descriptor, new = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as opened:
            opened.write(text)
        Path(new).chmod(mode)
        Path(new).replace(target)
    except OSError as exc:
        place = Place(file=str(file))
        raise InputError("plan.not_found", f"{file}: {exc.strerror}", place=place) from exc


def _read(opened: BinaryIO, file: Path) -> bytes:
    data = opened.read(limits.PLAN_BYTES + 1)
    if len(data) > limits.PLAN_BYTES:
        text = f"{file} is larger than {limits.PLAN_BYTES:,} bytes"
        raise InputError("plan.too_large", text, place=Place(file=str(file)))
    return data


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
