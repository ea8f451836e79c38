"""Calls drawn from the server's own OpenAPI document: as it says, and with something else in one place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

TEXTS = st.sampled_from(("", "a", "small", "0", "keep", "abort", "weights", "kv_cache", "user", "safetensors", "\u0000", "é\n", "\ud800", "x" * 5000)) | st.text(max_size=5)  # fmt: skip
WHOLE = st.sampled_from((0, 1, -1, 2, 7, 2**31, 2**63, -(2**63), 10**30)) | st.integers(-5, 300)
NUMBERS = st.sampled_from((0.0, 1e999, 1.0, -1.0, 0.5, 1e308, -0.0, 1e-320)) | st.floats(0, 2)
ANYTHING = st.recursive(
    st.none() | st.booleans() | WHOLE | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
SCALARS = {"string": TEXTS, "integer": WHOLE, "number": NUMBERS, "boolean": st.booleans(), "null": st.none()}


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    query: Mapping[str, Any]
    """Parameter -> schema."""
    body: Mapping[str, Any] | None

    def __repr__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True, slots=True)
class Drawn:
    """One call."""

    operation: Operation
    query: dict[str, str | list[str]]
    body: Any


def operations(document: Mapping[str, Any]) -> Iterator[Operation]:
    """All that the document has."""
    for path, methods in document["paths"].items():
        for method, found in methods.items():
            query = {one["name"]: one.get("schema", {}) for one in found.get("parameters", ()) if one["in"] == "query"}
            content = found.get("requestBody", {}).get("content", {})
            yield Operation(method.upper(), path, query, content.get("application/json", {}).get("schema"))


class Values:
    """Values that a schema of the document allows, and now and then one that it does not."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._schemas: Mapping[str, Any] = document.get("components", {}).get("schemas", {})

    def call(self, operation: Operation) -> st.SearchStrategy[Drawn]:
        query = self._object({"properties": operation.query}).map(_flat)
        body = st.none() if operation.body is None else self.of(operation.body) | ANYTHING
        return st.builds(Drawn, st.just(operation), query, body)

    def of(self, schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
        """Nine times of ten what the schema says."""
        return st.integers(0, 9).flatmap(lambda luck: ANYTHING if luck == 9 else self._right(schema))

    def _right(self, schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
        if "$ref" in schema:
            return self._right(self._schemas[schema["$ref"].rpartition("/")[2]])
        if "anyOf" in schema:
            return st.one_of(*(self.of(one) for one in schema["anyOf"]))
        kind = schema.get("type")
        if kind == "object":
            return self._object(schema)
        if kind == "array":
            return st.lists(self.of(schema.get("items", {})), max_size=4)
        return SCALARS.get(kind, ANYTHING) if isinstance(kind, str) else ANYTHING

    def _object(self, schema: Mapping[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
        """What must be there, and some of what may be."""
        properties = schema.get("properties", {})
        must = {name: self.of(properties[name]) for name in schema.get("required", ())}
        may = {name: one for name, one in properties.items() if name not in must}
        if not may:
            return st.fixed_dictionaries(must) if must else st.dictionaries(st.text(max_size=3), ANYTHING, max_size=2)
        some = st.lists(st.sampled_from(sorted(may)), max_size=3, unique=True)
        return some.flatmap(lambda chosen: st.fixed_dictionaries({**must, **{name: self.of(may[name]) for name in chosen}}))


def _flat(query: Mapping[str, Any]) -> dict[str, Any]:
    """A query has texts and lists of them."""
    return {name: [_text(one) for one in value] if isinstance(value, list) else _text(value) for name, value in query.items()}


def _text(value: Any) -> str:
    return str(value).encode("utf-8", "replace").decode()
