"""Routes about the memory of sessions.

The one rule: what is read comes from the store, so it is there after a restart. Deliberately
absent: making room; the core lets go of the oldest.
"""

from fastapi import APIRouter, Request
from pydantic import TypeAdapter, ValidationError
from starlette.responses import Response

from imlmesh_orchestrator.api.problems import answer
from imlmesh_orchestrator.api.requests import body_of
from imlmesh_orchestrator.api.served import served_of
from imlmesh_orchestrator.core.rendering import DEFAULT_SESSION
from imlmesh_orchestrator.views.memory import list_memory, show_memory
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, ProtocolError
from imlmesh_protocol.iml.plan import MemoryKey, PrintableName
from imlmesh_protocol.wire.codec import pack, unpack

router = APIRouter()

_KEY: TypeAdapter[str] = TypeAdapter(MemoryKey)
_SESSION: TypeAdapter[str] = TypeAdapter(PrintableName)


@router.get("/memory")
async def list_keys(request: Request) -> Response:
    session = _session(request) if "session" in request.query_params else None
    entries = await served_of(request).ask(lambda db: list_memory(db, session))
    return answer({"schema": "imlmesh.memory-list/1", "entries": entries})


@router.get("/memory/{key:path}")
async def get_value(request: Request, key: str) -> Response:
    session = _session(request)
    return answer(await served_of(request).ask(lambda db: show_memory(db, session, key)))


@router.put("/memory/{key:path}")
async def set_value(request: Request, key: str) -> Response:
    served, session = served_of(request), _session(request)
    body = await body_of(request, "value")
    if "value" not in body:
        raise InputError("usage", "value is missing")
    try:
        _KEY.validate_python(key)
        # what a plan could not have written must not come in by this door
        value = unpack(pack(body["value"]), max_bytes=limits.PARAMS_BYTES)
    except ValidationError as exc:
        text = (
            f"a key is 1 to {limits.MEMORY_KEY_CHARS} characters without space, '.', '{{' or '}}'"
        )
        raise InputError("name.invalid", text) from exc
    except ProtocolError as exc:
        code = "memory.too_large" if exc.code == "message.too_large" else "usage"
        raise InputError(code, f"the value of {key}: {exc.message}") from exc
    served.shell.room.check()
    await served.shell.set_memory(session, key, value, request.state.by)
    return answer(await served.ask(lambda db: show_memory(db, session, key)))


@router.delete("/memory/{key:path}")
async def delete_value(request: Request, key: str) -> Response:
    session = _session(request)
    await served_of(request).shell.delete_memory(session, key, request.state.by)
    return answer({"schema": "imlmesh.memory-deleted/1", "session": session, "key": key})


def _session(request: Request) -> str:
    session = request.query_params.get("session", DEFAULT_SESSION)
    try:
        return _SESSION.validate_python(session)
    except ValidationError as exc:
        text = f"a session is 1 to {limits.NAME_CHARS} printable characters"
        raise InputError("name.invalid", text) from exc
