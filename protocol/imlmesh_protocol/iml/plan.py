"""IML v2 as models: `Plan`, `Action` and what they hold, field for field.

The one rule: a model says what a field may be, never what it means together with others;
`validate` does that. Values are strict ("5" is no number) and read-only. Deliberately absent:
reading documents (`document`), refusing what this version does not act on (`unsupported`).
"""

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from imlmesh_protocol import limits
from imlmesh_protocol.states import Effect

ActionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", min_length=1, max_length=64)]
DriverWord = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
MemoryKey = Annotated[
    str, Field(pattern=r"^[^.{}\s]+$", min_length=1, max_length=limits.MEMORY_KEY_CHARS)
]
#: literal, so what looks like a template or a pattern is a mistake
Claim = Annotated[str, Field(pattern=r"^[^{}]+$", min_length=1, max_length=128)]
NodeName = Annotated[str, Field(min_length=1, max_length=128)]
#: neither control characters, nor separators of lines, nor what turns the direction of writing
_PRINTABLE = r"[^\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
_PRINTABLE_TEXT = re.compile(_PRINTABLE + "*")
_SCHEMA: JsonDict = {"pattern": f"^{_PRINTABLE}*$"}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
#: answers that mean something at a gate by themselves
ANSWERS = ("approve", "deny", "fail", "skip")


def _printable(written: str) -> str:
    if not _PRINTABLE_TEXT.fullmatch(written):
        raise PydanticCustomError("unprintable", "may hold printable characters only")
    return written


def _prose(written: str) -> str:
    if _CONTROL.search(written):
        message = "may hold no control character but tab and line feed"
        raise PydanticCustomError("control_character", message)
    return written


def _own_answer(written: str) -> str:
    if written in ANSWERS:
        message = "must be another word than {words}"
        raise PydanticCustomError("answer_taken", message, {"words": ", ".join(ANSWERS)})
    return written


def _different(written: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(written)) < len(written):
        raise PydanticCustomError("answers_alike", "must hold different answers")
    return written


#: what people call things beyond one plan: 1 to 128 printable characters
PrintableName = Annotated[
    str,
    Field(min_length=1, max_length=limits.NAME_CHARS, json_schema_extra=_SCHEMA),
    AfterValidator(_printable),
]
Answer = Annotated[
    str,
    Field(min_length=1, max_length=limits.OPTION_CHARS, json_schema_extra=_SCHEMA),
    AfterValidator(_printable),
    AfterValidator(_own_answer),
]


def instant_ms(written: str) -> int:
    """The milliseconds since 1970 of an RFC 3339 time; `ValueError` when there is no such time."""
    return round(datetime.fromisoformat(written.upper()).timestamp() * 1_000)


def _existing(written: str) -> str:
    try:
        instant_ms(written)
    except ValueError as exc:
        raise PydanticCustomError("no_time", "is a time that does not exist") from exc
    return written


Rfc3339 = Annotated[
    str,
    AfterValidator(_existing),
    Field(
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?"
        r"([Zz]|[+-][0-9]{2}:[0-9]{2})$"
    ),
]

#: fields that are imlmesh's own: a plan that uses one was written for us, so a misspelt key is an error
PLAN_EXTENSIONS = frozenset({"ttl_seconds", "nonce", "not_before", "barrier"})
ACTION_EXTENSIONS = frozenset(
    {
        "target_group",
        "target_selector",
        "target_mode",
        "quorum",
        "rolling",
        "fallback_nodes",
        "on_node_loss",
        "effect",
        "impact",
        "claims",
        "on_busy",
        "lease_seconds",
    }
)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _list(default: Any = (), *, title: str, **rules: Any) -> Any:
    """A field that is a JSON list and a read-only tuple here; only the list itself is not strict."""
    return Field(default, strict=False, description=title, **rules)


class CompilerTrace(_Model):
    """The reasoning that led to a plan in compiler mode."""

    analysis: str | None = None
    resolution: str | None = None
    validation: str | None = None
    generation_approved: bool = False
    llm_model: str | None = None
    prompt_tokens: int | None = Field(None, ge=0)
    extra: dict[str, Any] = Field(default_factory=dict)


class Metadata(_Model):
    """Who wrote the plan, and what they want to remember about it."""

    created_by: str | None = None
    llm_model: str | None = None
    tags: tuple[str, ...] = _list(title="Free words")
    context: dict[str, Any] = Field(default_factory=dict, description="Anything; never acted on")


class Retry(_Model):
    """How often and when a failed action is tried again; counts with on_error: retry."""

    max_attempts: int = Field(3, ge=1, le=10)
    delay_seconds: float = Field(1.0, ge=0.1, le=300)
    backoff_factor: float = Field(2.0, ge=1, le=10)
    retry_on: tuple[str, ...] = _list(
        ("TimeoutError", "ConnectionError"), title="Names of errors; an empty list means any"
    )


class Rollback(_Model):
    """Which action undoes this one."""

    action: ActionName
    params: dict[str, Any] = Field(default_factory=dict)


class Perception(_Model):
    """What is looked at before and after an action."""

    capture_before: bool = False
    capture_after: bool = True
    ocr_enabled: bool = False
    validate_output: str | None = Field(None, description="JSONPath")
    timeout_seconds: int = Field(5, ge=1, le=60)


class Memory(_Model):
    """Which values of the plan's session an action reads and writes."""

    read_keys: tuple[MemoryKey, ...] = _list(title="Keys that templates of this action may name")
    write_key: MemoryKey | None = None
    vector_search: str | None = None
    top_k: int = Field(3, ge=1, le=20)


class Approval(_Model):
    """How a person is asked before the action runs."""

    message: Annotated[str, AfterValidator(_prose)] | None = Field(
        None, max_length=limits.APPROVAL_CHARS
    )
    risk_level: Literal["low", "medium", "high", "critical"] = "medium"
    timeout_seconds: int | None = Field(None, ge=10, le=3600, description="None means one hour")
    timeout_behavior: Literal["reject", "skip"] = "reject"
    clarification_options: Annotated[tuple[Answer, ...], AfterValidator(_different)] = _list(
        title="Answers to choose from; each lets the action run", max_length=limits.APPROVAL_OPTIONS
    )


class Rolling(_Model):
    """How many nodes at a time, and how many may fail before the rest is left alone."""

    batch_size: int = Field(1, ge=1)
    max_failures: int = Field(0, ge=0)


class Action(_Model):
    """One driver call of a plan."""

    id: ActionName = Field(description="Name within the plan; others depend on it")
    module: DriverWord = Field(description="Driver, for example filesystem")
    action: DriverWord = Field(description="Action of that driver, for example read_file")
    params: dict[str, Any] = Field(
        default_factory=dict, description="Its parameters; values may hold {{templates}}"
    )
    depends_on: tuple[ActionName, ...] = _list(title="Actions that must be completed before")
    on_error: Literal["abort", "continue", "retry", "rollback", "skip"] = Field(
        "abort", description="What a failure means for the rest of the run"
    )
    requires_approval: bool = Field(False, description="Ask a person before it runs")
    timeout: int = Field(60, ge=1, le=limits.TIMEOUT_S, description="Seconds")
    retry: Retry | None = None
    rollback: Rollback | None = None
    perception: Perception | None = None
    memory: Memory | None = None
    approval: Approval | None = None
    label: str | None = Field(None, max_length=256, description="For people")
    tags: tuple[Annotated[str, Field(max_length=64)], ...] = _list(
        title="Free words", max_length=20
    )
    target_node: NodeName | None = Field(None, description="Alias or id of a node")
    target_group: NodeName | None = Field(None, description="Any node of this group")
    target_selector: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        max_length=limits.SELECTOR_CHARS,
        description='Over labels and facts: os == "linux" and cpu >= 2',
    )
    target_mode: Literal["any", "all", "rolling"] = "any"
    quorum: Annotated[int, Field(ge=1)] | Literal["all"] = "all"
    rolling: Rolling | None = None
    fallback_nodes: tuple[NodeName, ...] = _list(title="Tried in order when target_node is lost")
    on_node_loss: Literal["reroute", "wait", "fail", "ask"] | None = Field(
        None, description="What happens when its node is lost; by default decided by the effect"
    )
    effect: Effect | None = Field(
        None, strict=False, description="More careful than the driver's, never less"
    )
    impact: float | None = Field(None, ge=0, le=1, description="At least the driver's")
    claims: tuple[Claim, ...] = _list(title="Added to what the driver claims", max_length=16)
    on_busy: Literal["wait", "fail"] = "wait"
    lease_seconds: int | None = Field(
        None, ge=1, le=limits.LEASE_S, description="By default the lost window of the mesh"
    )


def _at_least_one(actions: tuple[Action, ...]) -> tuple[Action, ...]:
    # Field(min_length=1) would also count every action that is wrong as missing
    if not actions:
        raise PydanticCustomError("too_short", "no actions", {"min_length": 1})
    return actions


def _with_shared_sets(actions: tuple[Action, ...]) -> tuple[Action, ...]:
    """Equal `depends_on` are one object that holds the very ids: 100,000 actions in waves of 100
    would hold 80 MB of them, and the scheduler compares no names."""
    ids = {action.id: action.id for action in actions}
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}
    for action in actions:
        wanted = action.depends_on
        if wanted:
            names = shared.get(wanted)
            if names is None:
                names = shared[wanted] = tuple([ids.get(name, name) for name in wanted])
            vars(action)["depends_on"] = names
    return actions


class Plan(_Model):
    """An IML v2 plan."""

    protocol_version: Literal["2.0"] = "2.0"
    plan_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=128)] = Field(
        "", description="Name of the plan; made from its content when missing"
    )
    description: str = Field("", max_length=1024, description="What the plan is for")
    session_id: PrintableName | None = Field(
        None, description="Plans with the same one share a memory"
    )
    execution_mode: Literal["sequential", "parallel", "reactive"] = "sequential"
    plan_mode: Literal["standard", "compiler"] = "standard"
    compiler_trace: CompilerTrace | None = None
    metadata: Metadata | None = None
    module_requirements: dict[str, str] = Field(
        default_factory=dict, description="Version specifier (PEP 440) by module"
    )
    actions: Annotated[
        tuple[Action, ...], AfterValidator(_at_least_one), AfterValidator(_with_shared_sets)
    ] = Field(strict=False, description="What is done", json_schema_extra={"minItems": 1})
    app_id: PrintableName | None = None
    agent_id: PrintableName | None = None
    ttl_seconds: int | None = Field(
        None, ge=1, le=limits.PLAN_TTL_S, description="A run that waits longer has failed"
    )
    nonce: Annotated[str, Field(min_length=1)] | None = Field(
        None, max_length=128, description="The same nonce names the same run"
    )
    not_before: Rfc3339 | None = Field(None, description="RFC 3339 time")
    barrier: bool = Field(False, description="Hold each wave until the one before has ended")
