"""The command: what it lists, what it prints, and how it ends."""

from __future__ import annotations

import io
import logging
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quiesce.engine import cli, demo, logs
from quiesce.spec import MACHINES
from quiesce.spec.language import Machine
from quiesce.statemachine import coupling, diagram, graphviz
from tests.statemachine.tools import require_tool

COMMANDS = ["serve", "chat", "bench", "demo", "diagram", "prove", "fuzz", "replay", "tours"]


@pytest.fixture(autouse=True)
def _nothing_stays_changed() -> Iterator[None]:
    logger, handler = logging.getLogger("quiesce"), signal.getsignal(signal.SIGINT)
    kept = logger.level, logger.propagate, logger.handlers[:]
    yield
    logger.level, logger.propagate, logger.handlers[:] = kept
    signal.signal(signal.SIGINT, handler)


def exits(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_help_lists_the_commands_there_are_and_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert exits("--help") == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: quiesce ")
    assert sorted(re.findall(r"^    (\w+) ", text, re.MULTILINE)) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exits(command, "--help") == 0
    assert capsys.readouterr().out.startswith(f"usage: quiesce {command} ")


@pytest.mark.parametrize(
    "arguments",
    [["nothing"], [], ["diagram", "nothing"], ["demo", "--nothing"], ["chat", "--seed", "x"], ["serve", "--port", "x"]],
    ids=str,
)
def test_a_call_that_cannot_be_exits_2_and_shows_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exits(*arguments) == 2
    assert capsys.readouterr().err.startswith("usage: quiesce")


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_diagram_prints_what_the_library_draws(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = {"mermaid": diagram.mermaid, "dot": graphviz.dot, "md": diagram.markdown_table}
    assert cli.main(["diagram", machine.name]) == 0
    assert capsys.readouterr().out == diagram.mermaid(machine)
    for name, draw in drawn.items():
        assert cli.main(["diagram", machine.name, "--format", name]) == 0
        assert capsys.readouterr().out == draw(machine)


def test_diagram_prints_the_coupling_and_draws_with_graphviz(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, draw in {"mermaid": coupling.mermaid, "dot": coupling.dot, "md": coupling.markdown}.items():
        assert cli.main(["diagram", "coupling", "--format", name]) == 0
        assert capsys.readouterr().out == draw()
    require_tool("dot", "graphviz")
    assert cli.main(["diagram", "link", "--format", "svg"]) == 0
    assert capsys.readouterr().out.startswith("<svg ")
    assert cli.main(["diagram", "--format", "svg", "--out", str(tmp_path)]) == 0
    assert {path.stem for path in tmp_path.glob("*.svg")} == {"coupling", *(machine.name for machine in MACHINES)}
    capsys.readouterr()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["diagram", "link", "--format", "svg"]) == 2
    assert (
        capsys.readouterr().err
        == "quiesce diagram: dot is not installed; it comes with the Debian package graphviz (apt-get install graphviz)\n"
    )


def test_diagram_without_a_machine_writes_all_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["diagram", "--out", str(tmp_path / "drawn")]) == 0
    assert str(tmp_path / "drawn") in capsys.readouterr().out
    written = {path.stem for path in (tmp_path / "drawn").iterdir()}
    assert {machine.name for machine in MACHINES} <= written


def test_an_error_of_the_engine_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--model", str(tmp_path / "nowhere"), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("quiesce demo: model: ")


@pytest.mark.parametrize("command", ["chat", "bench"])
def test_a_model_that_is_not_there_is_one_line_and_exit_2(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert cli.main([command, str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"quiesce {command}: model: ")


def test_a_folder_that_cannot_be_made_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["diagram", "--out", str(tmp_path / "file" / "below")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_interruption_is_one_line_and_exit_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", interrupted)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "quiesce demo: interrupted\n"


def test_a_reader_that_has_seen_enough_ends_the_command_quietly() -> None:
    command = f"{sys.executable} -m quiesce.engine.cli diagram engine | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=110)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == diagram.mermaid(MACHINES[0]).splitlines()[0] + "\n"


def test_help_loads_neither_torch_nor_the_engine() -> None:
    code = (
        "import sys\nfrom quiesce.engine.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'rich', 'quiesce.engine.api'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=110)
    assert done.stdout.splitlines()[-1] == "[]"


# ---- log lines ------------------------------------------------------------------------------------------------------------------


def test_log_lines_have_the_fields_form(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("info")
    logging.getLogger("quiesce.core").info("shutdown: %s", "running")
    assert re.fullmatch(r"INFO \d\d-\d\d \d\d:\d\d:\d\d \[test_cli\.py:\d+\] shutdown: running\n", capsys.readouterr().err)


def test_setting_up_twice_writes_lines_once_and_the_last_level_holds(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("debug")
    logs.set_up("warning")
    logging.getLogger("quiesce.core").info("not wanted")
    logging.getLogger("quiesce.core").warning("wanted")
    assert capsys.readouterr().err.count("\n") == 1


def test_the_library_installs_no_handler_by_itself() -> None:
    code = "import logging, quiesce.engine.api; print(logging.getLogger('quiesce').handlers, logging.getLogger().handlers)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=110)
    assert done.stdout == "[] []\n"
