"""Which tests of the suite are examples, and which of them notices a bug of the corpus.

A test is an *example* if a person chose what happens in it and in which order. It is none if that is drawn (Hypothesis, a random
generator, a random schedule), tried at every place (each await, each edge), or comes out of the model. The scenario files are examples.

The suite runs once on the engine as it is, and each test says which functions of the engine it enters; a bug is then shown to those
tests that enter a function it changes, or start a process of their own, in a forked process, as a mutant is.
"""

from __future__ import annotations

import ast
import json
import os
import re
import select
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NoReturn

import pytest

from tests.historical.corpus import ROOT, Bug, applies, patched_tree
from tests.mutation.judge import PLUGINS, preload

FOLDERS = ("tests/engine", "tests/stateful")
"""What imports the engine; the others know nothing of it."""
NOT_EXAMPLES: Mapping[str, str] = {
    "tests/stateful/fuzz": "the fuzzer",
    "tests/engine/server/test_schema.py": "drawn from the OpenAPI document",
    "tests/engine/server/test_storm.py": "a storm of clients by lot",
    "tests/engine/test_cohort_mixture.py": "a seeded mixture",
    "tests/engine/test_control_at_every_await.py": "every await",
    "tests/engine/test_edge_tours.py": "edges of the model",
    "tests/engine/test_rules_on_the_engine.py": "stories that the model's explorer found",
    "tests/stateful/test_story_replay.py": "stories that the model's explorer found",
}
"""Files and folders -> where their cases come from."""
DRAWING = frozenset({"for_every_await", "POS", "RandomWalk", "DelayBounded", "Random", "default_rng"})
"""A test function that names one of these draws its cases, or tries all."""
SUITE_LIMIT_S, WAIT_LIMIT_S = 2400, 60
EVERYTHING = "*"
"""Entered by a test that starts a process: nobody knows where that goes."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A test of the engine as it is."""

    test: str
    seconds: float
    enters: tuple[str, ...]
    """Functions of the engine, as `engine/core.py:254`: where they begin."""


def is_example(item: pytest.Item) -> bool:
    path = item.path.relative_to(ROOT).as_posix()
    if any(path == name or path.startswith(f"{name}/") for name in NOT_EXAMPLES) or not isinstance(item, pytest.Function):
        return False
    function = item.function
    if getattr(function, "is_hypothesis_test", False) or DRAWING & set(_names(function.__code__)):
        return False
    given = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return not any(type(value).__name__ in DRAWING for value in given)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def changed_functions(bug: Bug) -> set[str]:
    """The functions of the engine as it is that the patch changes: the innermost around each line that goes or comes."""
    found = set()
    for file, part in re.findall(r"^\+\+\+ b/(\S+)\n(.*?)(?=^--- |\Z)", bug.diff, re.MULTILINE | re.DOTALL):
        spans = [
            (min(part.lineno for part in (node, *node.decorator_list)), node.end_lineno or 0)
            for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        ]
        for place in _places(part):
            around = [(first, last) for first, last in spans if first <= place <= last]
            found.add(f"{file}:{max(around)[0]}" if around else EVERYTHING)
    return found


def _places(part: str) -> Iterator[int]:
    """Lines of the file as it is that go, or before which something comes."""
    place = 0
    for line in part.splitlines():
        if line.startswith("@@"):
            place = int(line.split("-")[1].split(",")[0])
            continue
        if line[:1] in ("-", "+"):
            yield place
        place += line[:1] in ("-", " ", "")


class Reach:
    """A plugin that notes which functions of the engine each test enters; what the fixtures of a file enter counts for all of its tests."""

    def __init__(self, engine: str) -> None:
        self._engine, self._now, self._place = engine, set[CodeType](), ""
        self._ignored: set[CodeType] = set()
        self.entered: dict[str, set[str]] = {}
        self.of_fixtures: dict[str, set[str]] = {}
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.exec") and self._place:
            self.entered.setdefault(self._place, set()).add(EVERYTHING)

    def _called(self, frame: FrameType, event: str, argument: object) -> None:
        self._now.add(frame.f_code)

    @contextmanager
    def _watching(self, into: set[str]) -> Iterator[None]:
        self._now = set()
        threading.settrace(self._called)
        sys.settrace(self._called)
        try:
            yield
        finally:
            sys.settrace(None)
            into |= {
                f"engine/{code.co_filename.split('/engine/', 1)[1]}:{code.co_firstlineno}"
                for code in self._now
                if code.co_filename.startswith(self._engine)
            }

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        self._place = item.nodeid
        with self._watching(self.of_fixtures.setdefault(item.nodeid.split("::")[0], set())):
            yield

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        with self._watching(self.entered.setdefault(item.nodeid, set())):
            yield

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failed.append(report.nodeid)

    def seen(self) -> list[Seen]:
        return [
            Seen(test, round(self.seconds[test], 3), tuple(sorted(entered | self.of_fixtures[test.split("::")[0]])))
            for test, entered in self.entered.items()
            if test not in self.failed
        ]


class Chosen:
    """A plugin that leaves only some tests, and notes what fails."""

    def __init__(self, wanted: Callable[[pytest.Item], bool], note: Callable[[str], None] = lambda test: None) -> None:
        self._wanted, self._note = wanted, note

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if self._wanted(item)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._note(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._note(report.nodeid)


def _run(files: Sequence[str], folder: Path, *plugins: object) -> None:
    options = ["-q", "-p", "no:cacheprovider", f"--timeout={WAIT_LIMIT_S}", "--tb=line", "--hypothesis-seed=0"]
    options += [part for name in PLUGINS for part in ("-p", name)]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    pytest.main([*options, f"--basetemp={folder / 'pytest'}", *files], plugins=list(plugins))


def _in_child(work: Callable[[Callable[[str], NoReturn]], None], limit_s: float) -> str:
    """What a forked process says; nothing where it is late or dies."""
    source, sink = os.pipe()
    child = os.fork()
    if not child:
        os.close(source)

        def say(text: str) -> NoReturn:
            data = text.encode()
            while data:
                data = data[os.write(sink, data) :]
            os._exit(0)

        os.setpgid(0, 0)
        signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # a job in the background ignores it, and tests of Ctrl+C need it
        os.set_inheritable(sink, False)
        silence = os.open(os.devnull, os.O_WRONLY)
        if not os.environ.get("QUIESCE_MUTANTS_LOUD"):
            os.dup2(silence, 1)
            os.dup2(silence, 2)
        work(say)
        os._exit(1)
    os.close(sink)
    found, end_s = b"", time.monotonic() + limit_s
    while select.select([source], [], [], max(0.0, end_s - time.monotonic()))[0] and (some := os.read(source, 65536)):
        found += some
    os.killpg(child, signal.SIGKILL)
    os.close(source)
    os.waitpid(child, 0)
    return found.decode()


def examples() -> list[Seen]:
    """Every example of the suite, on the engine as it is.

    Raises:
        RuntimeError: they do not run to their end.
    """

    def work(say: Callable[[str], NoReturn]) -> None:
        reach = Reach(f"{ROOT}/.src/quiesce/engine/")
        with tempfile.TemporaryDirectory(prefix="quiesce-examples-") as folder:
            _run(FOLDERS, Path(folder), Chosen(is_example), reach)
        say(json.dumps({"failed": reach.failed, "seen": [asdict(one) for one in reach.seen()]}))

    answer = _in_child(work, SUITE_LIMIT_S)
    if not answer:
        raise RuntimeError("the suite did not run to its end")
    found = json.loads(answer)
    for test in found["failed"]:
        print(f"fails on the engine as it is, and counts for nothing: {test}", flush=True)
    return [Seen(one["test"], one["seconds"], tuple(one["enters"])) for one in found["seen"]]


def caught(bugs: Sequence[Bug], seen: Sequence[Seen]) -> dict[str, str]:
    """Bug -> the first example that fails with it in the engine; empty: none does.

    Bugs that can be in one engine are shown to the examples together, and each example that fails there to each of the bugs alone. So
    whoever is not named has passed every example, alone or in company.
    """
    found = dict.fromkeys((bug.name for bug in bugs), "")
    left = list(bugs)
    while left:
        with tempfile.TemporaryDirectory(prefix="quiesce-examples-") as folder:
            company = together(left, Path(folder))
            failing = _failing(Path(folder), _shown(company, seen))
        left = [bug for bug in left if bug not in company]
        print(f"{len(company)} bugs together fail {len(failing)} examples", flush=True)
        for bug in company if failing else ():
            with tempfile.TemporaryDirectory(prefix="quiesce-examples-") as folder:
                patched_tree(bug, Path(folder))
                alone = [one for one in _shown([bug], seen) if one.test in failing]
                found[bug.name] = next(iter(_failing(Path(folder), alone, first=True)), "")
            print(f"{bug.name}: {found[bug.name] or 'none of them alone'}", flush=True)
    return found


def together(bugs: Sequence[Bug], folder: Path) -> list[Bug]:
    """Puts as many of the bugs into one engine as can be; which they are."""
    package, company = patched_tree(bugs[0], folder) / "quiesce", [bugs[0]]
    company += [bug for bug in bugs[1:] if applies(bug, package)]
    return company


def _shown(bugs: Sequence[Bug], seen: Sequence[Seen]) -> list[Seen]:
    """Examples that enter a function which one of the bugs changes."""
    changed = {EVERYTHING}.union(*map(changed_functions, bugs))
    return [one for one in seen if changed & set(one.enters)]


def _failing(tree: Path, shown: Sequence[Seen], first: bool = False) -> list[str]:
    """Examples that fail with the engine of this tree, or the first of them; quick files first."""
    costs: dict[str, float] = {}
    for one in shown:
        file = one.test.split("::")[0]
        costs[file] = costs.get(file, 0.0) + one.seconds
    names, failing = {one.test for one in shown}, list[str]()

    def work(say: Callable[[str], NoReturn]) -> None:
        def note(test: str) -> None:
            failing.append(test)
            if first:
                say(json.dumps(failing))

        sys.path.insert(0, str(tree))
        os.environ["PYTHONPATH"] = os.pathsep.join([str(tree), str(ROOT)])
        with tempfile.TemporaryDirectory(prefix="quiesce-examples-") as folder:
            _run(sorted(costs, key=costs.__getitem__), Path(folder), Chosen(lambda item: item.nodeid in names, note))
        say(json.dumps(failing))

    answer = _in_child(work, SUITE_LIMIT_S) if names else "[]"
    return list(dict.fromkeys(json.loads(answer))) if answer else ["a hang"]


def begin() -> None:
    """Loads what all children share."""
    os.chdir(ROOT)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / ".src"), str(ROOT)])
    preload()
