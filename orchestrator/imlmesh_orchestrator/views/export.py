"""One run as a document to send: run, plan and story.

The one rule: whoever reads it needs nothing else, so results are whole. Deliberately absent: log
lines; they live in the stream's memory.
"""

import sqlite3
from collections.abc import Mapping
from typing import Any

from imlmesh_orchestrator.views.runs import plan_of, show_run
from imlmesh_orchestrator.views.stories import story
from imlmesh_orchestrator.views.units import Alias


def export_run(
    database: sqlite3.Connection,
    name: str,
    alias: Alias,
    effects: Mapping[tuple[str, str], str],
) -> dict[str, Any]:
    """Everything that is known of one run, for somebody who was not there."""
    run = show_run(database, name, alias, effects, whole=True)
    plan = plan_of(database, run["digest"])
    return {
        "schema": "imlmesh.run-export/1",
        "run": run,
        "plan": plan.model_dump(mode="json", exclude_defaults=True),
        "story": story(database, run["run"], alias),
    }
