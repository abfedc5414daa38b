"""The routes of the API, version 1.

The one rule: thin; each route reads its request, asks shell or views, and answers with a dict.
Deliberately absent: pydantic models of answers, and anything on the path of an action.
"""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response, StreamingResponse

from imlmesh_orchestrator.api.events import event_stream
from imlmesh_orchestrator.api.problems import answer, problem
from imlmesh_orchestrator.config import Config
from imlmesh_orchestrator.shell import Shell
from imlmesh_orchestrator.store.files import Files
from imlmesh_orchestrator.store.reading import FileReader
from imlmesh_orchestrator.submission import Checked, check, snapshot
from imlmesh_orchestrator.views import approvals, nodes, runs
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, InputErrors, MeshError, ProtocolError


@dataclass(frozen=True, slots=True)
class Served:
    """What the routes answer from."""

    shell: Shell
    config: Config
    output: FileReader
    output_path: Path
    about: dict[str, Any]
