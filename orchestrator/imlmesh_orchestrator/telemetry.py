"""Which readings of a node come in: names, times and rates are checked, series get their numbers.

The one rule: what a node may cost is bounded for each node by itself; what is too much, or makes no
sense, is refused, counted and shown, reading by reading, and the rest of the message is kept.
Deliberately absent: signatures, and storing.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from imlmesh_orchestrator.share import Shares
from imlmesh_orchestrator.store.rollups import Chunk
from imlmesh_orchestrator.store.telemetry import Recorder, SeriesRow
from imlmesh_protocol import limits
from imlmesh_protocol.errors import ProtocolError
from imlmesh_protocol.telemetry import HEALTH, HEALTH_NAME, MIXED, is_metric, is_unit, is_value

# made here of heartbeats, so a node needs none of its names for them
_OF_BEATS = frozenset(f"{HEALTH_NAME}.{name}" for name in HEALTH)

# no unit of a reading is None
_UNKNOWN = (0, None)

#: refuse(at_ms, node, code, text)
Refuse = Callable[[int, str, str, str], None]


class Telemetry:
    """`known` is what the store held at the start."""

    def __init__(self, recorder: Recorder, refuse: Refuse, known: Iterable[SeriesRow] = ()) -> None:
        self._recorder = recorder
        self._refuse = refuse
        #: by node and metric: its number, and its unit
        self._series: dict[str, dict[str, tuple[int, str]]] = defaultdict(dict)
        self._metrics: Counter[str] = Counter()
        self._last_id = self._count = 0
        self._shares = Shares(limits.TELEMETRY_PER_S, limits.TELEMETRY_BURST)
        self._beaten_ms: dict[str, int] = {}
        for series, node, metric, unit in known:
            self._series[node][metric] = (series, unit)
            self._count += 1
            self._metrics[node] += metric not in _OF_BEATS
            self._last_id = max(self._last_id, series)

    def beat(self, node: str, at_ms: int, beat: int, health: Mapping[str, Any]) -> None:
        """Keep a believed heartbeat, and what it says of the node's health."""
        if at_ms - self._beaten_ms.get(node, -limits.BEATS_APART_MS) < limits.BEATS_APART_MS:
            return  # asked twice, since an answer was late
        self._beaten_ms[node] = at_ms
        self._recorder.add_beat(node, at_ms, beat)
        told = [(name, unit, health.get(name)) for name, unit in HEALTH.items()]
        self._recorder.add(
            [
                ((at_ms,), self._number(node, f"{HEALTH_NAME}.{name}", unit), (float(value),))
                for name, unit, value in told
                if value is not None and is_value(value)
            ]
        )

    def take(
        self,
        node: str,
        name: str,
        readings: Mapping[str, tuple[Sequence[int], Sequence[float]]],
        units: Mapping[str, str],
        at_ms: int,
    ) -> None:
        """Keep the readings of a believed message about `name`, as far as they make sense."""
        columns = [*readings.values()]
        count = sum([len(times) for times, _ in columns])
        if not self._shares.take(node, count, at_ms):
            text = f"{count} readings are more than {limits.TELEMETRY_PER_S} a second"
            self._refuse(at_ms, node, "telemetry.rate", text)
            return
        fits = _all_fit(columns, at_ms)
        known = self._series[node]
        chunks: list[Chunk] = []
        for metric, (times, values) in readings.items():
            try:
                if not fits:
                    times, values = self._fitting(node, metric, times, values, at_ms)
                    if not times:
                        continue
                series, unit = known.get(metric, _UNKNOWN)
                if unit != units.get(metric, ""):
                    series = self._series_of(node, name, metric, units.get(metric, ""))
            except ProtocolError as exc:
                self._refuse(at_ms, node, exc.code, exc.message)
                continue
            # a whole number may be larger than those of SQLite
            chunks.append((times, series, [*map(float, values)]))
        if chunks:
            self._recorder.add(chunks)

    def _fitting(
        self, node: str, metric: str, times: Sequence[int], values: Sequence[float], at_ms: int
    ) -> tuple[Sequence[int], Sequence[float]]:
        """Those of one metric that are not too old; ProtocolError when others make no sense."""
        if min(times) < at_ms - limits.TELEMETRY_LATE_MS:
            text = f"{metric[:80]}: a reading is {(at_ms - min(times)) // 1_000} s old"
            self._refuse(at_ms, node, "telemetry.late", text)
            times, values = _not_late(times, values, at_ms)
        if times:
            _check_columns(metric, times, values, at_ms)
        return times, values

    def _series_of(self, node: str, name: str, metric: str, unit: str) -> int:
        """The number of a metric that is new, or has another unit than before."""
        known = self._series[node].get(metric)
        module, _, rest = metric.partition(".")
        if not is_metric(metric) or not rest or name not in (module, MIXED):
            text = f"{metric[:80]!r} is no name of a metric of {name}"
            raise ProtocolError("telemetry.invalid", text)
        if not is_unit(unit):
            raise ProtocolError("telemetry.invalid", f"{metric}: {unit[:80]!r} is no unit")
        if known is None:
            if self._metrics[node] >= limits.TELEMETRY_METRICS:
                text = f"{metric}: {limits.TELEMETRY_METRICS} metrics of the node are kept already"
                raise ProtocolError("telemetry.metrics", text)
            if self._count >= limits.TELEMETRY_SERIES:
                text = f"{metric}: {limits.TELEMETRY_SERIES} metrics of all nodes are kept already"
                raise ProtocolError("telemetry.metrics", text)
            self._metrics[node] += 1
        return self._number(node, metric, unit)

    def _number(self, node: str, metric: str, unit: str) -> int:
        known = self._series[node].get(metric)
        if known is not None and known[1] == unit:
            return known[0]
        if known is None:
            self._last_id += 1
            self._count += 1
        series = self._last_id if known is None else known[0]
        self._series[node][metric] = (series, unit)
        self._recorder.add_series((series, node, metric, unit))
        return series


def _all_fit(columns: Sequence[tuple[Sequence[int], Sequence[float]]], at_ms: int) -> bool:
    """Whether nobody need look at the times and values of one metric: asked of all at once, which is
    a third of the price, since nearly every message is without fault."""
    times = [*chain.from_iterable([times for times, _ in columns])]
    values = [*chain.from_iterable([values for _, values in columns])]
    return (
        at_ms - limits.TELEMETRY_LATE_MS <= min(times)
        and max(times) <= at_ms + limits.CLOCK_TOLERANCE_MS
        and min(values) >= -limits.TELEMETRY_VALUE
        and max(values) <= limits.TELEMETRY_VALUE
    )


def _not_late(
    times: Sequence[int], values: Sequence[float], at_ms: int
) -> tuple[Sequence[int], Sequence[float]]:
    """Without those that waited too long for the link; the newer ones of a message still count."""
    since_ms = at_ms - limits.TELEMETRY_LATE_MS
    kept = [(time, value) for time, value in zip(times, values, strict=True) if time >= since_ms]
    return [time for time, _ in kept], [value for _, value in kept]


def _check_columns(metric: str, times: Sequence[int], values: Sequence[float], at_ms: int) -> None:
    newest = max(times)
    if newest > at_ms + limits.CLOCK_TOLERANCE_MS:
        text = f"{metric[:80]}: a reading is {(newest - at_ms) // 1_000} s ahead"
        raise ProtocolError("telemetry.late", text)
    if min(values) < -limits.TELEMETRY_VALUE or max(values) > limits.TELEMETRY_VALUE:
        raise ProtocolError("telemetry.invalid", f"{metric[:80]}: a value is too large")
