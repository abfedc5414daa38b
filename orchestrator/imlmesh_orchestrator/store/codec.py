"""Changes as rows: kind, version and a msgpack array of the change's own fields in their order.

The one rule: what was once written can be read for ever; a class that changes its fields gets a
new version and keeps the reading of the old one. Deliberately absent: `at_ms`, `cause` and `run`,
which are columns.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import EnumType
from operator import attrgetter
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import msgpack

from imlmesh_orchestrator.core import admission_changes, changes, joining_changes, permit_changes
from imlmesh_orchestrator.core.changes import Change, RunChange
from imlmesh_protocol.errors import Fault, StoreError
from imlmesh_protocol.iml.plan import Plan
from imlmesh_protocol.manifest import Manifest, manifest_from_wire

VERSION = 1
_COLUMNS = {"at_ms", "cause", "run"}

# the plan is kept beside its text, so that its id cannot be another's
_documents: OrderedDict[int, tuple[Plan, str]] = OrderedDict()
_DOCUMENTS = 16

Convert = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Form:
    """How one change class is written and read."""

    kind: str
    made_by: type[Change]
    of_run: bool
    values: Callable[[Change], Any]
    single: bool
    readers: tuple[Convert | None, ...]


def encode(change: Change) -> tuple[str | None, int, str, str, int, bytes]:
    """run, at_ms, cause, kind, version, body."""
    form = FORMS[type(change)]
    values = form.values(change)
    return (
        change.run if form.of_run else None,  # type: ignore[attr-defined]
        change.at_ms,
        change.cause,
        form.kind,
        VERSION,
        _packer.pack((values,) if form.single else values),
    )


def decode(run: str | None, at_ms: int, cause: str, kind: str, version: int, body: bytes) -> Change:
    """The change that a row holds; `store.corrupt` when it is none of ours."""
    form = _BY_KIND.get(kind)
    if form is None or version != VERSION:
        raise StoreError("store.corrupt", f"a change of kind {kind!r}, version {version}")
    try:
        packed = msgpack.unpackb(body)
        values = [
            value if read is None else read(value)
            for value, read in zip(packed, form.readers, strict=True)
        ]
    except (ValueError, TypeError, msgpack.UnpackException) as exc:
        raise StoreError("store.corrupt", f"a change of kind {kind}: {exc}") from exc
    head = (at_ms, cause, run) if form.of_run else (at_ms, cause)
    return form.made_by(*head, *values)


def kind_of(change: Change) -> str:
    """The class's name as it is stored and shown: DispatchPlanned is dispatch-planned."""
    return FORMS[type(change)].kind


def plan_document(plan: Plan) -> str:
    """The plan as JSON text; remembered, for a commit needs it twice and a trigger again and again."""
    known = _documents.get(id(plan))
    if known is not None and known[0] is plan:
        return known[1]
    text = plan.model_dump_json(exclude_defaults=True)
    _documents[id(plan)] = (plan, text)
    if len(_documents) > _DOCUMENTS:
        _documents.popitem(last=False)
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, Fault):
        return [value.code, value.message, value.details]
    if isinstance(value, Plan):
        return plan_document(value)
    if isinstance(value, Manifest):
        return value.to_wire()
    return dict(value)


class _Packer(threading.local):
    """One for each thread, for making one costs as much as packing a small change."""

    def __init__(self) -> None:
        self.pack = msgpack.Packer(default=_plain).pack


_packer = _Packer()


def _fault(value: Any) -> Fault:
    code, message, details = value
    return Fault(code, message, details)


def _reader(hint: Any) -> Convert | None:
    """How a plain value becomes what the annotation says; None when it already is."""
    if isinstance(hint, UnionType):
        reads = [_reader(part) for part in get_args(hint) if part is not NoneType]
        read = reads[0]
        return read and (lambda value: None if value is None else read(value))
    if get_origin(hint) is tuple:
        # rows of a tuple are tuples too; what they hold is plain
        inner = get_args(hint)[0]
        return _rows if get_origin(inner) is tuple else tuple
    if isinstance(hint, EnumType):
        return hint
    return _READERS.get(hint)


def _rows(value: Any) -> tuple[tuple[Any, ...], ...]:
    return tuple(map(tuple, value))


_READERS: dict[Any, Convert] = {
    Fault: _fault,
    Manifest: manifest_from_wire,
    Plan: Plan.model_validate_json,
}


def _form(made_by: type[Change]) -> Form:
    hints = get_type_hints(made_by)
    names = [field.name for field in fields(made_by) if field.name not in _COLUMNS]
    return Form(
        kind=re.sub(r"(?<=[a-z])(?=[A-Z])", "-", made_by.__name__).lower(),
        made_by=made_by,
        of_run=issubclass(made_by, RunChange),
        values=attrgetter(*names),
        single=len(names) == 1,
        readers=tuple(_reader(hints[name]) for name in names),
    )


_ROOMS = (changes, admission_changes, joining_changes, permit_changes)
#: every class of these that stands for something that happened
FORMS: dict[type[Change], Form] = {
    made_by: _form(made_by)
    for room in _ROOMS
    for made_by in vars(room).values()
    if isinstance(made_by, type)
    and issubclass(made_by, Change)
    and made_by not in (Change, RunChange)
}
_BY_KIND = {form.kind: form for form in FORMS.values()}
