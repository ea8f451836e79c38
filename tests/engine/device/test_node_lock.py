"""One engine at a time moves memory of a device, in whatever process it is."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from quiesce.engine.device.node_lock import alone

HOLD = """
import sys
from quiesce.engine.device.node_lock import alone
with alone("GPU-1", lambda: None):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def test_the_second_waits_for_the_first_and_asks_whether_to_go_on() -> None:
    asked, entered = threading.Event(), threading.Event()

    def second() -> None:
        with alone("GPU-1", asked.set):
            entered.set()

    with alone("GPU-1", lambda: None):
        thread = threading.Thread(target=second)
        thread.start()
        assert asked.wait(60)
        assert not entered.is_set()
    assert entered.wait(60)
    thread.join()


def test_a_wait_that_is_called_off_ends_and_leaves_the_lock_to_its_holder() -> None:
    def stop() -> None:
        raise RuntimeError("the device is closing")

    with alone("GPU-1", lambda: None), alone("GPU-2", stop), pytest.raises(RuntimeError, match="closing"), alone("GPU-1", stop):
        pytest.fail("two hold one lock")
    with alone("GPU-1", stop):
        """It is free again."""


def test_a_process_that_dies_holds_nothing() -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdin is not None
    with holder:
        assert holder.stdout.readline() == "held\n"

        def kill_it() -> None:
            holder.kill()

        with alone("GPU-1", kill_it):
            assert holder.wait(60) != 0
