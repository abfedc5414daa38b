"""Routes about what nodes measured.

The one rule: they read through a reader of their own, a page at a time, so that a question about
a year holds up neither the mesh nor `node list`. Deliberately absent: writing; nodes do that.
"""

import csv
import io
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from imlmesh_orchestrator.api.problems import answer
from imlmesh_orchestrator.api.requests import number_of, one_of
from imlmesh_orchestrator.api.served import Served, served_of
from imlmesh_orchestrator.store.rollups import HOUR_MS
from imlmesh_orchestrator.views.nodes import find_node
from imlmesh_orchestrator.views.plain import to_json
from imlmesh_orchestrator.views.telemetry import FIELDS, Cursor, Tier, Wanted, page, summaries
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError

router = APIRouter()

_PATTERN = re.compile(r"[a-z0-9_.*-]+")


class Format(StrEnum):
    """How an export is written."""

    CSV = "csv"
    JSONL = "jsonl"


@router.get("/telemetry")
async def query(request: Request) -> Response:
    served = served_of(request)
    wanted = _wanted(request, served)
    found: dict[str, Any] = {"series": [], "truncated": False}
    if served.output_path.exists():
        found = await served.history.ask(lambda database: summaries(database, wanted))
    for series in found["series"]:
        series["alias"] = served.shell.name_of(series["node"])
    asked = {"tier": wanted.tier, "since_ms": wanted.since_ms, "until_ms": wanted.until_ms}
    return answer({"schema": "imlmesh.telemetry-list/1", **asked, **found})


@router.get("/telemetry/export")
async def export(request: Request) -> Response:
    served = served_of(request)
    wanted = _wanted(request, served)
    kind = one_of(request.query_params, "format", Format) or Format.CSV
    media = "text/csv; charset=utf-8" if kind == Format.CSV else "application/jsonl"
    return StreamingResponse(_lines(served, wanted, Format(kind)), media_type=media)


def _wanted(request: Request, served: Served) -> Wanted:
    params = request.query_params
    now_ms = served.shell.clock.now_ms()
    tier = Tier(one_of(params, "tier", Tier) or Tier.RAW)
    until_ms = number_of(params, "until_ms")
    # the newest reading may be a little ahead of us
    until_ms = now_ms + limits.CLOCK_TOLERANCE_MS if until_ms is None else until_ms
    since_ms = number_of(params, "since_ms")
    since_ms = now_ms - HOUR_MS if since_ms is None else since_ms
    if since_ms >= until_ms:
        raise InputError("usage", "since_ms must lie before until_ms")
    metric = params.get("metric")
    if metric is not None and (not _PATTERN.fullmatch(metric) or len(metric) > limits.METRIC_CHARS):
        raise InputError("usage", f"metric {metric[:80]!r} is a-z, 0-9, _, ., - and * for anything")
    name = params.get("node")
    node = None if name is None else find_node(served.shell.state, name).node
    return Wanted(tier, since_ms, until_ms, node, metric)


async def _lines(served: Served, wanted: Wanted, kind: Format) -> AsyncIterator[bytes]:
    names = ("time", "at_ms", "node", "metric", "unit", *FIELDS[wanted.tier])
    if kind is Format.CSV:
        yield f"{','.join(names)}\n".encode()
    if not served.output_path.exists():
        return
    cursor = Cursor(wanted.since_ms)
    while rows := await served.history.ask(lambda database: page(database, wanted, cursor)):
        for row in rows:
            at = datetime.fromtimestamp(row["at_ms"] / 1_000, UTC)
            row["time"] = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if kind is Format.JSONL:
            head = {"schema": "imlmesh.reading/1"}
            yield b"".join(to_json(head | row) + b"\n" for row in rows)
        else:
            text = io.StringIO()
            writer = csv.DictWriter(text, names, lineterminator="\n")
            writer.writerows(rows)
            yield text.getvalue().encode()
