"""Who may call what: control routes are off unless asked for, and sizes are bounded before anything is parsed."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from quiesce.engine import cli
from tests.engine.server.served import SMALL, Served

TOKEN = "an admin's token"


@pytest.fixture(scope="module")
def plain() -> Iterator[Served]:
    with Served("--api-key", "a client's key") as served:
        yield served


@pytest.fixture(scope="module")
def guarded() -> Iterator[Served]:
    with Served("--admin-token", TOKEN) as served:
        yield served


def test_without_a_flag_there_are_no_control_routes(plain: Served) -> None:
    assert plain.post("/pause").status_code == 404
    assert plain.lifecycle()["engine"] == "running"


def test_generating_asks_for_the_api_key_and_looking_does_not(plain: Served) -> None:
    body = {"prompt": "hi", "max_tokens": 1}
    assert plain.post("/v1/completions", body).status_code == 401
    assert plain.post("/v1/completions", body, headers={"Authorization": "Bearer another"}).status_code == 401
    assert plain.post("/v1/completions", body, headers={"Authorization": "Bearer a client's key"}).status_code == 200
    assert plain.get("/health").status_code == 200


def test_the_admin_token_opens_the_control_routes_and_nothing_else_does(guarded: Served) -> None:
    for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
        assert guarded.post("/pause", headers=header).status_code == 401
    assert guarded.lifecycle()["engine"] == "running"
    mine = {"Authorization": f"Bearer {TOKEN}"}
    assert guarded.post("/pause", headers=mine).status_code == 200
    assert guarded.post("/resume", headers=mine).status_code == 200


def test_a_body_or_header_beyond_the_limit_is_refused_before_it_is_read(plain: Served) -> None:
    key = {"Authorization": "Bearer a client's key"}
    assert plain.client.post("/v1/completions", content=b" " * (17 * 2**20), headers=key).status_code == 413
    parts = (b" " * 2**20 for _ in range(17))  # no Content-Length
    assert plain.client.post("/v1/completions", content=parts, headers=key).status_code == 413
    assert plain.client.get("/health").status_code == 200


def test_admin_without_a_token_is_accepted_on_loopback_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", SMALL, "--host", "0.0.0.0", "--enable-admin"]) == 2
    assert "enable_admin: needs --admin-token" in capsys.readouterr().err


def test_an_admin_port_has_the_control_routes_and_the_other_has_not() -> None:
    with Served("--admin-port", "0") as served:
        admin = served.next_line()
        assert urlsplit(admin).port != urlsplit(served.url).port
        assert served.post("/pause").status_code == 404
        assert httpx.post(f"{admin}/pause", timeout=60).status_code == 200
        assert httpx.post(f"{admin}/v1/completions", json={"prompt": "hi"}, timeout=60).status_code == 404
        assert served.lifecycle()["engine"] == "paused"
        assert httpx.post(f"{admin}/resume", timeout=60).status_code == 200


def test_a_port_in_use_and_a_model_that_is_not_there_are_told_in_one_line(
    plain: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", "/nowhere"]) == 2
    assert "/nowhere/config.json" in capsys.readouterr().err
    port = str(urlsplit(plain.url).port)
    assert cli.main(["serve", SMALL, "--port", port]) == 2
    assert "Address already in use" in capsys.readouterr().err
