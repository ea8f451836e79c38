"""What a control call carries: query and body as one, since the peers' clients send the same flag now here, now there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from starlette.requests import Request

from quiesce.engine.errors import InvalidRequest, shown
from quiesce.engine.server.bodies import read_json

T = TypeVar("T")
TRUE, FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
TAGS: Final = {"weight": "weights"}
"""FastDeploy's word for it."""


async def arguments_of(request: Request) -> dict[str, Any]:
    """Query, body and Ray Serve's `options`, later ones over earlier ones. No body, an empty one and `null` are no arguments.

    Raises:
        InvalidRequest: the body is no JSON object.
    """
    found: dict[str, Any] = {}
    for name in request.query_params:
        values = request.query_params.getlist(name)
        found[name] = values if len(values) > 1 else values[0]
    text = await request.body()
    if text.strip():
        try:
            body = read_json(text)
        except ValueError as error:
            raise InvalidRequest("body", f"is no JSON: {error}") from None
        if body is not None and not isinstance(body, Mapping):
            raise InvalidRequest("body", f"must be a JSON object, not {shown(body)}")
        found |= body or {}
    options = found.pop("options", None)
    return {**found, **(options if isinstance(options, Mapping) else {})}


def text(field: str, given: Any) -> str:
    if not isinstance(given, str):
        raise InvalidRequest(field, f"must be a text, not {shown(given)}")
    return given


def flag(field: str, given: Any) -> bool:
    if isinstance(given, bool):
        return given
    word = str(given).lower()
    if word not in (*TRUE, *FALSE):
        raise InvalidRequest(field, f"must be true or false, not {shown(given)}")
    return word in TRUE


def whole(field: str, given: Any) -> int:
    try:
        return int(given)
    except (TypeError, ValueError, OverflowError):  # of infinity
        raise InvalidRequest(field, f"must be an integer, not {shown(given)}") from None


def seconds(field: str, given: Any) -> float:
    try:
        return float(given)
    except (TypeError, ValueError, OverflowError):  # of an integer that is too long
        raise InvalidRequest(field, f"must be seconds, not {shown(given)}") from None


def names(field: str, given: Any) -> list[str]:
    """Names as a list, one text, or a text with commas."""
    found = given.split(",") if isinstance(given, str) else given
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise InvalidRequest(field, f"must be names, not {shown(given)}")
    return [word for name in found for word in (part.strip() for part in name.split(",")) if word]


def tags(field: str, given: Any) -> list[str] | dict[str, str]:
    """Tags of memory by name, or each with its policy."""
    if isinstance(given, Mapping):
        return {TAGS.get(str(name), str(name)): str(policy) for name, policy in given.items()}
    return [TAGS.get(name, name) for name in names(field, given)]


def version(field: str, given: Any) -> int | str:
    if isinstance(given, bool) or not isinstance(given, (int, str)):
        raise InvalidRequest(field, f"must be an integer or a name, not {shown(given)}")
    return given


def mapping(field: str, given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise InvalidRequest(field, f"must be an object, not {shown(given)}")
    return given


def optional(read: Callable[[str, Any], T], field: str, given: Any) -> T | None:
    return None if given is None else read(field, given)


def anything(field: str, given: Any) -> Any:
    """Read by the verb, which knows what may stand here."""
    return given


SCHEMAS: Final[Mapping[Callable[[str, Any], Any], Mapping[str, Any]]] = {
    text: {"type": "string"}, flag: {"type": "boolean"}, whole: {"type": "integer"}, seconds: {"type": "number", "minimum": 0},
    names: {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}]},
    tags: {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "object", "additionalProperties": {"type": "string"}}]},
    version: {"anyOf": [{"type": "integer"}, {"type": "string"}]}, mapping: {"type": "object"}, anything: {},
}  # fmt: skip
"""How an argument is read -> what the OpenAPI document says of it."""


@dataclass(frozen=True, slots=True)
class Take:
    """One argument of a verb: its parameter, what clients call it, how it is read, and what it is where it is missing or null."""

    parameter: str
    names: tuple[str, ...]
    read: Callable[[str, Any], Any]
    default: Any = None

    def of(self, given: Mapping[str, Any]) -> Any:
        """Raises InvalidRequest: the value cannot be."""
        for name in self.names:
            if given.get(name) is not None:
                return self.read(name, given[name])
        return self.default


def take(name: str, read: Callable[[str, Any], Any], default: Any = None, *also: str) -> Take:
    return Take(name, (name, *also), read, default)


def described(takes: Sequence[Take], has_body: bool) -> dict[str, Any]:
    """What the OpenAPI document says of a call with these arguments: each may stand in the query, and in a JSON body where there is one."""
    schemas = {name: SCHEMAS[one.read] for one in takes for name in one.names}
    found: dict[str, Any] = {
        "parameters": [{"name": name, "in": "query", "schema": schema} for name, schema in schemas.items()]
    }
    if has_body:
        body = {"type": "object", "properties": schemas}
        found["requestBody"] = {"required": False, "content": {"application/json": {"schema": body}}}
    return found
