"""Logs of a process: one JSON object a line, to stderr or to a file of limited size; and the limit of a
file that another process fills.

The one rule: what a program wants to act on is a field, not a phrase; `extra={"code": ...}`
becomes one. Deliberately absent: the audit ledger and the logs of actions.
"""

import contextlib
import json
import logging
import os
import shutil
import sys
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from imlmesh_protocol import limits
from imlmesh_protocol.errors import MeshError

_BUILTIN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class JsonLines(logging.Formatter):
    """at, level, logger, message, the extra fields; of an exception its code and traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {k: v for k, v in vars(record).items() if k not in _BUILTIN_FIELDS}
        if record.exc_info:
            if isinstance(record.exc_info[1], MeshError):
                line.setdefault("code", record.exc_info[1].code)
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def set_up_logs(file: Path | None = None, *, level: str = "INFO") -> None:
    """Send everything of this process to `file`, or to stderr; replaces an earlier set-up.

    `level` is a name of the logging module. A full file becomes `<file>.1`, the one kept.
    """
    handler: logging.Handler
    if file is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        handler = RotatingFileHandler(
            file, maxBytes=limits.LOG_FILE_BYTES, backupCount=1, encoding="utf-8"
        )
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=level, force=True)
    logging.captureWarnings(True)


def is_too_long(file: Path) -> bool:
    """Whether a log has become longer than it may be."""
    try:
        return file.stat().st_size > limits.LOG_FILE_BYTES
    except OSError:
        return False


def begin_anew(file: Path) -> None:
    """Empty a log to whose end another process writes; what it held is `<file>.1`, the one kept.

    That process keeps the file open, so it cannot be renamed; a line between copy and cut is lost.
    """
    # a full disk is no reason to leave it as it is
    with contextlib.suppress(OSError):
        shutil.copyfile(file, file.with_name(f"{file.name}.1"))
    with contextlib.suppress(OSError):
        os.truncate(file, 0)
