"""Whatever is sent to any route of the OpenAPI document, the answer is no 500, and the engine is no worse for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.server.from_schema import Drawn, Values, operations
from tests.engine.server.served import Served

ENDLESS = "/lifecycle/events"
RESERVED = ("sleep", "update", "clear", "shutdown")
NUM_EXAMPLES = 300


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    flags = ("--enable-admin", "--dtype", "float32", "--max-model-len", "64", "--control-timeout-s", "0.5")
    with Served(*flags) as served:
        yield served


@pytest.fixture(scope="module")
def document(server: Served) -> dict[str, Any]:
    found: dict[str, Any] = server.get("/openapi.json").json()
    return found


def sent(server: Served, call: Drawn) -> httpx.Response:
    """The answer to a call."""
    content = None if call.operation.body is None else json.dumps(call.body)
    headers = {"Content-Type": "application/json"}
    return server.client.request(
        call.operation.method, call.operation.path, params=call.query, content=content, headers=headers
    )


def recovered(server: Served) -> None:
    """The engine runs, as an operator would have it run: nothing that a call did is beyond repair."""
    found = server.lifecycle()
    for owner in found["pause_owners"]:
        if owner not in RESERVED:
            server.post("/resume", {"owner": owner})
    if found["weights"][1] == "updating":
        server.post("/abort_weight_update")
    if found["engine"] != "running":
        server.post("/wake_up")
    if server.lifecycle()["weights"][1] == "undefined":
        server.post("/update_weights_from_disk", {"model_path": server.get("/model_info").json()["model_path"]})
    found = server.lifecycle()
    assert (found["engine"], found["pause_owners"]) == ("running", {}), found


def test_no_call_is_answered_500_and_none_is_beyond_repair(server: Served, document: dict[str, Any]) -> None:
    known = [operation for operation in operations(document) if operation.path != ENDLESS]
    assert {"/v1/completions", "/sleep", "/update_weights"} <= {operation.path for operation in known}
    values = Values(document)
    calls = st.sampled_from(known).flatmap(values.call)
    before = server.held()

    @settings(
        max_examples=NUM_EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(calls)
    def send(call: Drawn) -> None:
        answer = sent(server, call)
        assert answer.status_code != 500, (call, answer.text)
        if answer.status_code >= 400:
            assert answer.json()["error"]["message"], (call, answer.text)
        if call.operation.method == "POST" and server.lifecycle()["engine"] != "running":
            recovered(server)

    send()
    recovered(server)
    after = server.lifecycle()
    assert (after["requests"], after["streams"]) == ({}, 0)
    assert server.held()["tasks"] <= before["tasks"] + 1


DEEP = "[" * 100_000 + "]" * 100_000
FOUND = {
    "infinity as an integer": ("/sleep", '{"level": 1e999}'),
    "a number that JSON does not have": ("/pause", '{"timeout": NaN}'),
    "an integer too long to be a float": ("/pause", '{"timeout": 1%s}' % ("0" * 400)),
    "lists in lists": ("/pause", DEEP),
    "lists in a field": ("/v1/completions", f'{{"prompt": {DEEP}}}'),
    "half a surrogate pair as an owner": ("/pause", '{"owner": "\\ud800"}'),
    "half a surrogate pair as an id": ("/v1/completions", '{"prompt": "hi", "request_id": "\\ud800"}'),
    "a digit that is none of a number's": ("/v1/completions", '{"prompt": "hi", "logit_bias": {"\u00b2": 1}}'),
    "a number too long to be read": ("/v1/completions", '{"prompt": "hi", "logit_bias": {"%s": 1}}' % ("1" * 5000)),
    "a segment's name with a zero byte": (
        "/update_weights_from_tensor",
        '{"load_format": "shared_memory", "shm_name": "\\u0000"}',
    ),
    "a path too long for the system": ("/update_weights_from_disk", '{"model_path": "%s"}' % ("x" * 5000)),
    "names that are a number": ("/update_weights", '{"update_info": {"names": 5}}'),
    "a rank that is a word": ("/init_weight_transfer_engine", '{"init_info": {"master_port": 1, "rank_offset": "x"}}'),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_answered_500_once_is_answered_400(server: Served, name: str) -> None:
    path, text = FOUND[name]
    answer = server.client.post(path, content=text.encode(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert server.lifecycle()["engine"] == "running"


def test_the_document_tells_what_control_calls_take(document: dict[str, Any]) -> None:
    found = document["paths"]["/sleep"]["post"]
    assert {one["name"] for one in found["parameters"]} == {"level", "tags", "mode", "timeout", "operation_id"}
    assert found["requestBody"]["content"]["application/json"]["schema"]["properties"]["level"] == {"type": "integer"}
    assert "requestBody" not in document["paths"]["/flush_cache"]["get"]
