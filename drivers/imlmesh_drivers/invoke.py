"""From a params object to a method call: the schema of an action, binding, and the call itself.

The one rule: a params model is built when it is first needed and kept. Every wrong field is named
in one `driver.params`. Deliberately absent: policy, time limits and where the call runs.
"""

import inspect
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from imlmesh_drivers.base import Declaration, Driver
from imlmesh_drivers.call import Call
from imlmesh_drivers.foreign import FOREIGN_ERRORS, coded
from imlmesh_protocol.errors import DriverError

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError


_models: "dict[tuple[type[Driver], str], type[BaseModel]]" = {}


def params_model(driver: type[Driver], name: str) -> "type[BaseModel]":
    """The pydantic model of an action's params: strict types, no unknown fields."""
    model = _models.get((driver, name))
    if model is None:
        model = _models[driver, name] = _build(driver, name)
    return model


def _build(driver: type[Driver], name: str) -> "type[BaseModel]":
    from pydantic import ConfigDict, create_model

    declaration = declaration_of(driver, name)
    method = getattr(driver, name)
    hints = typing.get_type_hints(method, include_extras=True)
    fields: dict[str, Any] = {}
    for parameter in list(inspect.signature(method).parameters.values())[1:]:
        if parameter.name != declaration.call_parameter:
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (hints[parameter.name], default)
    config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())
    return create_model(f"{driver.module}.{name}", __config__=config, **fields)


def declaration_of(driver: type[Driver], name: str) -> Declaration:
    """The declaration of an action; `action.unknown` when the driver has none of that name."""
    try:
        return driver.actions[name]
    except KeyError:
        message = f"{driver.module} has no action {name!r}"
        raise DriverError("action.unknown", message) from None


def params_schema(driver: type[Driver], name: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of an action's params; guarded ones carry "x-guard"."""
    from pydantic.json_schema import GenerateJsonSchema

    class Untitled(GenerateJsonSchema):
        def field_title_should_be_set(self, schema: Any) -> bool:
            return False

    schema = params_model(driver, name).model_json_schema(schema_generator=Untitled)
    del schema["title"]
    return schema


def bind(driver: type[Driver], name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a call, defaults filled in.

    Raises `action.unknown`, or one `driver.params` that names every wrong field.
    """
    model = params_model(driver, name)
    try:
        # the fields are all that a model's __dict__ holds; its iterator costs 20 times as much
        return vars(model.model_validate(params))
    except ValueError as exc:
        # the only ValueError of pydantic; importing its name for every call would cost more
        errors = cast("ValidationError", exc).errors(include_url=False, include_context=False)
        wrong = "; ".join(
            f"{'.'.join(map(str, error['loc'])) or 'params'}: {error['msg']}" for error in errors
        )
        raise DriverError("driver.params", f"{driver.module}.{name}: {wrong}") from exc


def _arguments(driver: Driver, name: str, params: Mapping[str, Any], call: Call) -> dict[str, Any]:
    arguments = bind(type(driver), name, params)
    call_parameter = driver.actions[name].call_parameter
    if call_parameter:
        arguments[call_parameter] = call
    return arguments


def perform_now(driver: Driver, name: str, params: Mapping[str, Any], call: Call) -> Any:
    """Bind and call a `def` action; everything that it raises becomes a coded error."""
    try:
        return getattr(driver, name)(**_arguments(driver, name, params, call))
    except FOREIGN_ERRORS as exc:
        raise coded(exc) from exc


async def perform(driver: Driver, name: str, params: Mapping[str, Any], call: Call) -> Any:
    """The same for an `async def` action; cancelling it cancels the action."""
    try:
        return await getattr(driver, name)(**_arguments(driver, name, params, call))
    except FOREIGN_ERRORS as exc:
        raise coded(exc) from exc
