"""The control routes, dialect by dialect, against `quiesce serve --enable-admin`: each effect is read back, none is taken on trust."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save, save_file

from quiesce.engine.device.transfer import TransferGroup
from quiesce.engine.server.control import ABSENT, ROUTES
from tests.engine.server.served import SMALL, Served

NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with Served("--enable-admin", "--dtype", "float32") as served:
        yield served


@pytest.fixture(autouse=True)
def runs_before_and_after(server: Served) -> Iterator[None]:
    """Every test begins and ends with an engine that runs, owns nothing and is whole."""
    assert server.lifecycle()["engine"] == "running"
    yield
    found = server.lifecycle()
    assert (found["engine"], found["pause_owners"], found["requests"]) == ("running", {}, {})


def checksum(server: Served) -> str:
    found: str = server.post("/weight_checker", {"action": "checksum"}).json()["checksums"]["rank0"]
    return found


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return load_file(Path(SMALL) / "model.safetensors")


@pytest.fixture(scope="module")
def other(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Other weights: one tensor differs."""
    return {**weights, NORM: -weights[NORM]}


@pytest.fixture
def changed_back(server: Served, weights: dict[str, torch.Tensor], tmp_path: Path) -> Iterator[str]:
    """The checksum before; afterwards the old weights are loaded again, and prove to be those."""
    before = checksum(server)
    yield before
    save_file(weights, tmp_path / "old.safetensors")
    assert server.post("/update_weights_from_disk", {"model_path": str(tmp_path / "old.safetensors")}).status_code == 200
    assert checksum(server) == before


def pair(server: Served, close: str, state: str, open_: str, **more: Any) -> tuple[httpx.Response, httpx.Response]:
    """Calls one route, holds the engine's state against what it should be, and calls the route that takes it back."""
    first = server.post(close, **more)
    assert first.status_code == 200, first.text
    assert server.lifecycle()["engine"] == state
    second = server.post(open_)
    assert second.status_code == 200, second.text
    return first, second


def test_vllms_pause_and_resume(server: Served) -> None:
    paused, resumed = pair(server, "/pause?mode=keep", "paused", "/resume")
    assert (paused.json()["status"], resumed.json()["status"]) == ("paused", "resumed")
    assert paused.json()["changed"] is True
    assert paused.headers["X-Quiesce-State"] == "paused"
    assert server.get("/is_paused").json() == {"is_paused": False}


def test_vllms_sleep_and_staged_wake(server: Served) -> None:
    slept = server.post("/sleep?level=1")
    assert (slept.json()["status"], slept.json()["level"]) == ("sleeping", "1")
    assert slept.json()["freed_bytes"] > 0
    assert server.get("/is_sleeping").json() == {"is_sleeping": True}
    assert server.post("/wake_up?tags=weights").json()["status"] == "sleeping"
    assert server.get("/ready").status_code == 503
    assert server.post("/wake_up?tags=kv_cache").json()["status"] == "awake"


def test_a_sleep_of_level_0_is_ended_by_the_tag_scheduling(server: Served) -> None:
    assert server.post("/sleep?level=0").status_code == 200
    assert server.lifecycle()["pause_owners"] == {"sleep": "abort"}
    assert server.post("/wake_up?tags=scheduling").status_code == 200


def test_level_and_tags_are_those_tags_under_that_levels_policies(server: Served) -> None:
    assert server.post("/sleep?level=2&tags=kv_cache").status_code == 200
    assert server.lifecycle()["memory"] == {"weights": "resident", "kv_cache": "released"}
    assert server.post("/wake_up").status_code == 200


def test_the_kv_is_released_only_of_a_paused_engine(server: Served) -> None:
    refused = server.post("/release_kv_cache_memory")
    assert refused.status_code == 409
    assert refused.json()["error"]["how_to"].startswith("pause")
    assert server.post("/pause").status_code == 200
    assert server.post("/release_kv_cache_memory").json()["status"] == "kv_cache_released"
    assert server.post("/wake_up").status_code == 200
    assert server.post("/resume").status_code == 200


@pytest.mark.parametrize("mode", ["abort", "retract", "in_place"])
def test_sglangs_pause_modes(server: Served, mode: str) -> None:
    pair(server, "/pause_generation", "paused", "/continue_generation", body={"mode": mode})


def test_sglangs_memory_routes(server: Served) -> None:
    released, resumed = pair(server, "/release_memory_occupation", "sleeping", "/resume_memory_occupation")
    assert (released.json(), resumed.json()) == (None, None)
    assert released.headers["X-Quiesce-Changed"] == "true"
    assert server.get("/flush_cache").status_code == 200


def test_fastdeploys_words(server: Served) -> None:
    pair(server, "/v1/pause", "paused", "/v1/resume")
    slept, woken = pair(server, "/v1/sleep?tags=weight,kv_cache", "sleeping", "/v1/wakeup?tags=weight,kv_cache")
    assert slept.json()["status"] == woken.json()["status"] == "success"
    assert server.get("/v1/is_paused").json() == {"status": "success", "result": {"is_paused": False}}


def test_ray_serves_options_are_arguments(server: Served) -> None:
    assert server.post("/pause", {"model": "small", "options": {"mode": "keep", "owner": "ray"}}).status_code == 200
    assert server.lifecycle()["pause_owners"] == {"ray": "keep"}
    assert server.post("/resume", {"options": {"owner": "ray"}}).status_code == 200


def test_a_repeat_changes_nothing_and_is_no_error(server: Served) -> None:
    for path in ("/wake_up", "/resume", "/continue_generation", "/resume_memory_occupation", "/wakeup"):
        answer = server.post(path)
        assert answer.status_code == 200, path
        assert answer.headers["X-Quiesce-Changed"] == "false", path


def test_an_illegal_call_is_told_what_is_legal_and_what_to_do_first(server: Served) -> None:
    assert server.post("/sleep?level=2").status_code == 200
    refused = server.post("/start_weight_update")
    assert refused.status_code == 409
    error = refused.json()["error"]
    assert error["state"] == "sleeping"
    assert "wake_up" in error["how_to"]
    generated = server.post("/v1/completions", {"prompt": "hi"})
    assert (generated.status_code, generated.headers["Retry-After"]) == (503, "1")
    assert server.post("/wake_up?tags=weights").status_code == 200
    assert server.post("/wake_up?tags=kv_cache").status_code == 200
    heal(server)


def heal(server: Served) -> None:
    """Discarded weights come back with an update."""
    assert server.post("/update_weights_from_disk", {"model_path": SMALL}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/sleep?level=7", None), ("/pause?mode=gently", None), ("/wake_up?tags=wheights", None), ("/abort_request", {}), ("/pause?owner=sleep", None),
        ("/update_weights_from_disk", {"model_path": "/nowhere"}), ("/update_weights_from_disk", {}), ("/pause?clear_cache=perhaps", None),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_400_and_changes_nothing(server: Served, path: str, body: dict[str, Any] | None) -> None:
    before = server.lifecycle()
    assert server.post(path, body).status_code == 400
    assert server.lifecycle()["epoch"] == before["epoch"]


def test_weights_come_from_disk(server: Served, other: dict[str, torch.Tensor], changed_back: str, tmp_path: Path) -> None:
    save_file(other, tmp_path / "new.safetensors")
    answer = server.post(
        "/update_weights_from_disk", {"model_path": str(tmp_path / "new.safetensors"), "weight_version": "seven"}
    )
    assert answer.json()["success"] is True
    assert checksum(server) != changed_back
    assert server.get("/weight_info").json() == {"weight_version": "seven"}


def test_weights_come_in_the_call_as_safetensors(server: Served, other: dict[str, torch.Tensor], changed_back: str) -> None:
    image = base64.b64encode(save({NORM: other[NORM]})).decode()
    body = {"serialized_named_tensors": [image], "load_format": "safetensors"}
    assert server.post("/update_weights_from_tensor", body).status_code == 200
    assert checksum(server) != changed_back


def test_weights_come_through_shared_memory(server: Served, other: dict[str, torch.Tensor], changed_back: str) -> None:
    image = save({NORM: other[NORM]})
    segment = SharedMemory(create=True, size=len(image))
    try:
        assert segment.buf is not None
        segment.buf[: len(image)] = image
        body = {"shm_name": segment.name, "load_format": "shared_memory"}
        answer = server.post("/update_weights", body)
    finally:
        segment.close()
        segment.unlink()
    assert answer.status_code == 200, answer.text
    assert checksum(server) != changed_back


def test_weights_come_through_a_gloo_group(server: Served, other: dict[str, torch.Tensor], changed_back: str) -> None:
    """As vLLM's and SGLang's trainers do it: rank 0 broadcasts while the server receives."""
    from concurrent.futures import ThreadPoolExecutor

    group = {
        "master_address": "127.0.0.1",
        "master_port": free_port(),
        "rank_offset": 1,
        "world_size": 2,
        "group_name": "trainer",
    }
    named = {"names": [NORM], "dtypes": ["float32"], "shapes": [list(other[NORM].shape)], "group_name": "trainer"}
    with ThreadPoolExecutor(1) as pool:
        joined = pool.submit(server.post, "/init_weights_update_group", group)
        trainer = TransferGroup("trainer", "127.0.0.1", int(str(group["master_port"])), 0, 2, 60)
        assert joined.result().status_code == 200
        updated = pool.submit(server.post, "/update_weights_from_distributed", named)
        trainer.broadcast(other[NORM].float().clone())
        assert updated.result().status_code == 200, updated.result().text
    assert checksum(server) != changed_back
    assert server.post("/destroy_weights_update_group").status_code == 200


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def test_an_update_in_three_calls_serves_its_weights_at_the_end(
    server: Served, other: dict[str, torch.Tensor], changed_back: str
) -> None:
    assert server.post("/start_weight_update").status_code == 200
    assert server.get("/ready").status_code == 503
    image = base64.b64encode(save({NORM: other[NORM]})).decode()
    chunk = {"serialized_named_tensors": [image], "load_format": "safetensors"}
    assert server.post("/update_weights", {"update_info": chunk}).status_code == 200
    assert server.post("/finish_weight_update", {"weight_version": "eight"}).status_code == 200
    assert checksum(server) != changed_back
    assert server.post("/start_weight_update").status_code == 200
    assert server.post("/abort_weight_update").status_code == 200


def test_a_pickle_is_refused_and_told_what_to_send(server: Served) -> None:
    refused = server.post("/update_weights_from_tensor", {"serialized_named_tensors": ["gASV"]})
    assert refused.status_code == 400
    assert "safetensors" in refused.json()["error"]["message"]
    assert server.lifecycle()["weights"][1] == "stable"


def test_a_version_can_be_renamed_and_a_baseline_compared(server: Served) -> None:
    before = checksum(server)
    assert server.post("/update_weight_version", {"new_version": "nine"}).json()["new_version"] == "nine"
    assert server.get("/weight_info").json() == {"weight_version": "nine"}
    same = server.post("/weight_checker", {"action": "compare", "baseline": {"rank0": before}}).json()
    assert same == {"match": True, "mismatches": []}
    assert server.post("/weight_checker", {"action": "compare", "baseline": {"rank0": "else"}}).json()["match"] is False


def test_a_rename_without_whole_weights_is_refused_and_leaves_no_update_open(server: Served) -> None:
    assert server.post("/sleep?level=2").status_code == 200
    assert server.post("/wake_up").status_code == 200
    assert server.lifecycle()["weights"][1] == "undefined"
    assert server.post("/update_weight_version", {"new_version": "ten"}).status_code == 409
    assert server.lifecycle()["weights"][1] == "undefined", "no update is open"
    heal(server)


def test_part_of_the_weights_over_none_is_refused_and_leaves_no_update_open(
    server: Served, other: dict[str, torch.Tensor]
) -> None:
    assert server.post("/sleep?level=2").status_code == 200
    assert server.post("/wake_up").status_code == 200
    image = base64.b64encode(save({NORM: other[NORM]})).decode()
    body = {"serialized_named_tensors": [image], "load_format": "safetensors"}
    assert server.post("/update_weights_from_tensor", body).status_code == 409
    assert server.lifecycle()["weights"][1] == "undefined", "no update is open"
    heal(server)


def test_what_is_not_here_answers_501_with_the_reason(server: Served) -> None:
    for path, reason in ABSENT.items():
        answer = server.post(path)
        assert (answer.status_code, answer.json()["error"]["message"]) == (501, reason)
    assert server.post("/init_weights_update_group", {"master_port": 1, "backend": "nccl"}).status_code == 501
    assert server.post("/v1/update_weights", {"rsync_config": {}}).status_code == 501


def test_sessions_over_http_have_one_history(server: Served) -> None:
    name = server.post("/open_session").json()
    for turn, prompt in enumerate(("one", "two"), 1):
        answer = server.post("/v1/completions", {"prompt": prompt, "max_tokens": 4, "session_id": name})
        assert answer.status_code == 200
        if turn == 2:
            assert answer.json()["usage"]["prompt_tokens"] > 6
    assert server.post("/close_session", {"session_id": name}).json() == {"closed": True}


def test_every_row_of_the_table_is_a_route_and_no_two_are_the_same(server: Served) -> None:
    seen = [(method, route.path) for route in ROUTES for method in route.methods]
    assert len(seen) == len(set(seen))
    paths = server.get("/openapi.json").json()["paths"]
    assert all(method.lower() in paths[path] for method, path in seen)
