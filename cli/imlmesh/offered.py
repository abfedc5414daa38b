"""The text of docs/actions.md, which `python docs/pages.py --write` writes.

The one rule: tables come from the shipped manifests and figures from limits.py, so the page cannot
say anything else than the drivers do.
"""

from collections.abc import Iterator

from imlmesh.fleet import schema_text
from imlmesh.foreign import as_json
from imlmesh_drivers.registry import shipped_manifest
from imlmesh_protocol import limits
from imlmesh_protocol.manifest import ActionSpec

_MIB = 1024 * 1024
#: for tests; it loads only where a policy names it
_LEFT_OUT = frozenset({"fake"})

_HEAD = """\
# What nodes can do

Written from the drivers' manifests by `docs/pages.py`; `imlmesh action show MODULE.ACTION` says the same of the nodes of a
mesh. A param with a default may be left out. `needs` is the profile that the node's policy must give at least, `impact` above
0.7 asks a person first, `effect` says what doing it twice would mean (`docs/VOCABULARY.md`). A field after `returns` is in
every result; a driver may add others.
"""

_NOTES = {
    "filesystem": f"""\
Paths lie beneath `[roots]` of the node's policy.toml, relative ones start in the first write root; what may be written may
be read. No link is followed on the way, however quickly somebody swaps it, `..` is refused, and of a file with two names
(a hard link) neither is opened, since the other may lie elsewhere. Devices and FIFOs are described, never opened.

What is written appears whole or not at all: a file that is being written has no name, an archive is unpacked beside its
place and moves there when all of it fits, a folder that is deleted loses its name first. A refused or killed action leaves
what was there. An archive with links, devices or names that lead out is refused as a whole; it has at most
{limits.ARCHIVE_ENTRIES:,} entries and {limits.ARCHIVE_BYTES // _MIB:,} MiB. A walk ends with `result.too_large` after {limits.TREE_ENTRIES:,} names.
`content_pattern` is a regular expression in Python's form, tried on each line. `watch_path` waits for a file that is not
there yet, or for the entries of a folder, not of those below it. The undo of a move moves back; a file that the move
replaced stays lost.
""",
    "os_exec": f"""\
Programs are those of `[commands]` in the node's policy.toml, called by the rule's name or path, without a shell:

```toml
[commands.backup]
argv0 = "/usr/bin/rsync"
args = ["-a|--delete", "[a-z]+/", "backup:[a-z]+/"]   # one of them must match the whole of each argument
processes = 20            # what it may have with all that it starts; left out: see below
memory_mb = 2048
```

An argument that looks like a flag passes only by an expression that itself begins with a dash: `[a-z-]+` was written for
words and lets no `-rf` through. Without `args` any argument may be given, at most {limits.ARGUMENT_BYTES // 1024} KiB each.
Arguments for which the expressions take more than {limits.ARGUMENTS_MATCH_MS} ms of the processor are refused: one such as `([a-z]+ ?)+` may try for ever.
The environment holds PATH, LANG, HOME, the policy's `[env]`, and what plans set: names that begin with `IML_`, and those of
`[env]`.

A command with all that it starts may have {limits.COMMAND_PROCESSES} processes and {limits.COMMAND_MEMORY_BYTES // _MIB:,} MiB of memory and print {limits.COMMAND_OUTPUT_BYTES // _MIB} MiB a stream,
of which {limits.OUTPUT_BYTES // 1024} KiB are kept; beyond that it is killed and fails. Memory that its processes share counts once; what it writes
into /dev/shm without mapping it is bounded by the service alone (`MemoryMax`, docs/service.md). When it ends, times out or is cancelled, nothing of it
is left, daemons in sessions of their own included: SIGTERM first, SIGKILL after {limits.KILL_GRACE_MS // 1000} s. The same holds when the node itself is
killed. An application goes on after its action, at most {limits.APPLICATIONS_OPEN} of them, and ends with the node.
`kill_process` ends no process of the mesh, of the system or of another account (`policy.process`), `close_application` only
what plans opened.
""",
}


def page() -> Iterator[str]:
    """The lines of the page."""
    yield _HEAD
    for name, module in sorted(shipped_manifest().modules.items()):
        if name in _LEFT_OUT:
            continue
        yield f"## {name}\n\n{module.description}\n"
        if name in _NOTES:
            yield _NOTES[name]
        yield "| action | params | returns | effect | needs | impact | |\n|---|---|---|---|---|---|---|"
        for action, spec in module.actions.items():
            yield f"| **{action}** | {_params(spec)} | {', '.join(spec.returns)} | {_facts(spec)} |"
        yield ""


def _params(spec: ActionSpec) -> str:
    wanted = spec.params.get("required", ())
    found = []
    properties = spec.params.get("properties", {})
    for name in sorted(properties, key=lambda name: name not in wanted):
        schema = properties[name]
        default = "" if name in wanted else f" = {as_json(schema.get('default'))}"
        found.append(f"`{name}` {schema_text(schema)}{default}")
    return "<br>".join(found)


def _facts(spec: ActionSpec) -> str:
    more = [spec.description]
    if spec.claims:
        more.append(f"Claims {', '.join(f'`{claim}`' for claim in spec.claims)}.")
    if spec.undo is not None:
        more.append(f"Undone by `{spec.undo.action}`.")
    if spec.vouch:
        more.append("A plan may vouch for less effect.")
    return f"{spec.effect} | {spec.permission} | {spec.impact:g} | {' '.join(more)}"
