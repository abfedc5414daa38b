"""`imlmesh telemetry`: what nodes measure, and how it went."""

from typing import Annotated, Any, Literal

import typer

from imlmesh.grammar import noun, verb
from imlmesh.settings import settings

app = noun(
    "See and export what nodes measure.",
    """\
imlmesh telemetry query
imlmesh telemetry query --node pi-bed --metric 'iot.*' --since 1d
imlmesh telemetry export --since 7d --tier minute > week.csv""",
)


Tier = Literal["raw", "minute", "hour"]
Node = Annotated[str | None, typer.Option(metavar="NODE", help="Only of this node.")]
Metric = Annotated[
    str | None, typer.Option(metavar="METRIC", help="Only this metric; * stands for anything.")
]
Since = Annotated[str, typer.Option(metavar="TIME", help="From when: 1h (ago), 14:05, 2026-03-01.")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Until when; else now.")]
Tiers = Annotated[
    Tier | None,
    typer.Option(help="raw, minute or hour; else the finest one that is quick and reaches back."),
]

_RAW_MS = 6 * 3_600_000
_MINUTE_MS = 7 * 24 * 3_600_000


@verb(
    app,
    """\
imlmesh telemetry query                                      the last hour of everything
imlmesh telemetry query --metric 'health.*' --since 1d
imlmesh telemetry query --node pi-bed --metric iot.soil -o json""",
)
def query(
    node: Node = None,
    metric: Metric = None,
    since: Since = "1h",
    until: Until = None,
    tier: Tiers = None,
) -> None:
    """Show each metric's last, lowest, mean and highest value, and how it went."""
    from imlmesh.client import Client
    from imlmesh.measured import print_series
    from imlmesh.render import emit

    asked = _asked(node, metric, since, until, tier)
    found = Client.connect(settings.home).get("telemetry", **asked)
    if not emit(found, "series"):
        print_series(found)


@verb(
    app,
    """\
imlmesh telemetry export > hour.csv
imlmesh telemetry export --metric iot.soil --since 30d --tier minute > soil.csv
imlmesh telemetry export --format jsonl | jq .value""",
)
def export(
    node: Node = None,
    metric: Metric = None,
    since: Since = "1h",
    until: Until = None,
    tier: Tiers = None,
    form: Annotated[
        Literal["csv", "jsonl"] | None,
        typer.Option("--format", help="csv or jsonl; csv unless -o jsonl."),
    ] = None,
) -> None:
    """Write readings or roll-ups to stdout, in the order of time, however many there are."""
    import sys

    from imlmesh.client import Client
    from imlmesh_protocol.errors import InputError

    if settings.output == "yaml":
        raise InputError("usage", "an export is csv or jsonl", hint="--format csv or -o jsonl")
    asked = _asked(node, metric, since, until, tier)
    kind = form or ("csv" if settings.output == "table" else "jsonl")
    for piece in Client.connect(settings.home).stream("telemetry/export", format=kind, **asked):
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


def _asked(
    node: str | None, metric: str | None, since: str, until: str | None, tier: Tier | None
) -> dict[str, Any]:
    import time

    from imlmesh.spans import at_ms_of
    from imlmesh_protocol.errors import InputError

    now_ms = time.time_ns() // 1_000_000
    since_ms = at_ms_of(since, now_ms)
    until_ms = None if until is None else at_ms_of(until, now_ms)
    if since_ms >= (now_ms if until_ms is None else until_ms):
        raise InputError("usage", "--since must be before --until, and before now")
    tier = tier or _tier(now_ms - since_ms)
    return {
        "node": node,
        "metric": metric,
        "since_ms": since_ms,
        "until_ms": until_ms,
        "tier": tier,
    }


def _tier(ago_ms: int) -> Tier:
    if ago_ms <= _RAW_MS:
        return "raw"
    return "minute" if ago_ms <= _MINUTE_MS else "hour"
