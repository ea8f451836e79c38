"""The house rules, read from the sources: a rule that no command runs does not exist."""

from __future__ import annotations

import ast
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from quiesce.spec import MACHINES
from quiesce.statemachine.effects import BY_WORD
from quiesce.statemachine.machine import KEPT
from quiesce.statemachine.readme import refreshed

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("spec", "statemachine", "engine", "kernels", "proofs", "tests")
FILE_LINES, FUNCTION_LINES = 400, 70

ALLOWED = {"spec": {"quiesce.spec"}, "statemachine": {"quiesce.spec", "quiesce.statemachine", "transitions"}}
ASYNCIO_HOMES = {
    "engine/api.py",
    "engine/blocking.py",
    "engine/link/connection.py",
    "engine/session.py",
    "engine/stream.py",
    "engine/demo.py",
    "engine/demo_lifecycle.py",
    "engine/chat.py",
    "engine/server/command.py",
    "engine/server/projections.py",
    "engine/server/serving.py",
    "engine/server/transfers.py",
}


def sources(*parts: str) -> Iterator[tuple[Path, ast.Module]]:
    for part in parts or PARTS:
        for path in sorted((ROOT / part).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_data_plane(path: Path) -> bool:
    """The device, what trained the shipped model, and the benchmarks, which run peers beside us."""
    return any(f"/engine/{part}/" in path.as_posix() for part in ("device", "tiny", "bench"))


def serving() -> Iterator[tuple[Path, ast.Module]]:
    """The engine without its benchmarks: those build worlds of their own to measure."""
    return ((path, tree) for path, tree in sources("engine") if "/engine/bench/" not in path.as_posix())


def test_files_and_functions_are_short() -> None:
    long = []
    for path, tree in sources():
        lines = path.read_text(encoding="utf-8").count("\n")
        if lines > FILE_LINES:
            long.append(f"{relative(path)}: {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno:
                length = node.end_lineno - node.lineno + 1
                if length > FUNCTION_LINES:
                    long.append(f"{relative(path)}: {node.name} has {length} lines")
    assert not long


@pytest.mark.parametrize("part", ["spec", "statemachine"])
def test_the_lower_floors_import_only_what_is_below_them(part: str) -> None:
    standard = set(__import__("sys").stdlib_module_names) | {"__future__"}
    wrong = [
        f"{relative(path)}: {name}"
        for path, tree in sources(part)
        for name in imports(tree)
        if name.split(".")[0] not in standard and not any(name == good or name.startswith(good + ".") for good in ALLOWED[part])
    ]
    assert not wrong
    assert not [relative(path) for path, tree in sources(part) if {"asyncio", "torch"} & set(imports(tree))]


def test_kernels_import_torch_and_nothing_of_ours_but_kernels() -> None:
    wrong = [
        f"{relative(path)}: {name}"
        for path, tree in sources("kernels")
        for name in imports(tree)
        if name.startswith("quiesce.") and not name.startswith("quiesce.kernels")
    ]
    assert not wrong


def test_the_control_plane_is_free_of_torch() -> None:
    wrong = []
    for path, tree in sources("engine"):
        if is_data_plane(path):
            continue
        for name in imports(tree):
            if relative(path) == "engine/cli.py" and name.startswith("quiesce.proofs"):
                continue  # the command that runs the proofs, loaded when it is called
            root = name.split(".")[0]
            if root in ("torch", "transformers", "safetensors", "triton") or name.startswith(
                ("quiesce.kernels", "quiesce.proofs")
            ):
                wrong.append(f"{relative(path)}: {name}")
    assert not wrong


def test_importing_the_package_and_the_control_plane_loads_no_torch() -> None:
    code = "import sys, quiesce; quiesce.AsyncEngine, quiesce.spec if hasattr(quiesce, 'spec') else None; print('torch' in sys.modules)"
    python = ROOT / ".venv" / "bin" / "python"
    command = [str(python) if python.exists() else __import__("sys").executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout.strip() == "False"


def test_asyncio_is_imported_at_the_clients_edge_only() -> None:
    users = {relative(path) for path, tree in serving() if "asyncio" in set(imports(tree))}
    assert users <= ASYNCIO_HOMES


def test_the_data_plane_knows_neither_records_nor_the_gate() -> None:
    wrong = [
        f"{relative(path)}: {name}"
        for path, tree in sources("engine/device")
        for name in imports(tree)
        if name.startswith("quiesce.statemachine") and name != "quiesce.statemachine.effects"
    ]
    assert not wrong


def test_a_state_is_written_by_the_gate_alone() -> None:
    """Records are born with their first state; after that only `Gate._make` assigns it."""
    writers = Counter[str]()
    for path, tree in (*sources("spec", "statemachine", "kernels", "proofs"), *serving()):
        for function in ast.walk(tree):
            if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            for node in ast.walk(function):
                targets = (
                    node.targets
                    if isinstance(node, ast.Assign)
                    else [node.target]
                    if isinstance(node, (ast.AugAssign, ast.AnnAssign))
                    else []
                )
                for target in targets:
                    if isinstance(target, ast.Attribute) and target.attr == "state":
                        writers[f"{relative(path)}:{function.name}"] += 1
    inits = {name for name in writers if name == "statemachine/records.py:__init__"}
    exceptions = {"engine/errors.py:__init__", "statemachine/gate.py:__init__"}  # errors that carry a state's name
    assert set(writers) - inits - exceptions == {"statemachine/gate.py:_make"}
    assert writers["statemachine/gate.py:_make"] == 1


def test_each_event_fires_at_one_place() -> None:
    fired = Counter[str]()
    for _, tree in serving():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("fire", "_fire", "_fire_each", "_fire_marked")
            ):
                for argument in node.args:
                    if (
                        isinstance(argument, ast.Attribute)
                        and isinstance(argument.value, ast.Name)
                        and argument.value.id.endswith("Event")
                    ):
                        fired[f"{argument.value.id}.{argument.attr}"] += 1
    assert fired, "the pattern that finds them still fits the code"
    assert {event: count for event, count in fired.items() if count > 1} == {}
    wired = {f"RequestEvent.{event.name}" for machine in MACHINES if machine.name == "request" for event in machine.events}
    assert wired <= set(fired), "every event of a request is fired somewhere"


def test_each_effect_is_minted_by_the_gate_and_performed_at_one_place() -> None:
    kinds = {kind.__name__ for kind in BY_WORD.values()}
    made = [
        f"{relative(path)}:{node.lineno}"
        for path, tree in sources("statemachine", "engine", "kernels", "proofs")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in kinds
        and "quiesce.engine.answers" not in set(imports(tree))
    ]
    assert made == [], "effects come from rows through the gate; nobody calls their constructors by name"
    performed = Counter(
        node.name.removeprefix("do_")
        for _, tree in serving()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("do_")
    )
    assert set(performed) <= set(BY_WORD)
    assert all(count == 1 for count in performed.values())
    takers = [relative(path) for path, tree in sources("statemachine", "engine") for node in ast.walk(tree)
              if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "take_mint_key"]  # fmt: skip
    assert takers == ["statemachine/gate.py"]


def test_gates_use_no_bare_assert() -> None:
    """`python -O` removes them (sglang#24123)."""
    wrong = [
        f"{relative(path)}:{node.lineno}"
        for path, tree in sources("spec", "statemachine", "engine", "kernels", "proofs")
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
    ]
    assert not wrong


def test_every_kept_machine_says_where_it_is_declared() -> None:
    for machine in MACHINES:
        assert (ROOT / machine.file).exists(), machine.file
    assert {"engine", "pause_token", "operation", "memory", "weights", "request", "step", "stream", "session", "link"} == KEPT


def test_the_generated_parts_of_the_readme_are_fresh() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert refreshed(text) == text, "run `make format`"
    assert text.count("<!-- generated:") == 6


def test_the_top_level_is_the_layout() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    top = {line.split("/")[0] for line in listed if line and not line.startswith(".")}
    files = {"pyproject.toml", "README.md", "Makefile", "constraints.txt", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"}
    assert top <= set(PARTS) | files
