"""Judges mutants: each in a forked process that loads the changed source and runs tests and the fuzzer until one of them notices.

The parent loads what is not ours once and never loads `quiesce`, so a child pays for nothing but our own modules. A child that computes
too long in one test or run, or waits too long, is a hang, which counts as noticed.
"""

from __future__ import annotations

import ast
import gc
import importlib
import json
import os
import re
import select
import signal
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from tests.mutation.mutator import Mutant, mutated

ROOT = Path(__file__).resolve().parents[2]
THIRD_PARTY = (
    "torch", "numpy", "hypothesis", "transitions", "safetensors.numpy", "tokenizers", "jinja2", "fastapi", "prometheus_client", "rich",
)  # fmt: skip
PLUGINS = ("pytest_timeout", "_hypothesis_pytestplugin")
CPU_LIMIT_S = 5
"""Of one test, or one run of the fuzzer; the longest of the clean engine takes a fifth of it."""
WAIT_LIMIT_S = 60
"""Of one test that computes nothing."""
WALL_LIMIT_S = 900


@dataclass(frozen=True, slots=True)
class Suite:
    """Who looks at a mutant: a few runs of the fuzzer, the tests of its file, more runs, other tests, and more runs."""

    own: tuple[str, ...]
    others: tuple[str, ...]
    first_runs: int
    middle_runs: int
    last_runs: int

    @property
    def stages(self) -> Iterator[Callable[[Path], str]]:
        middle = self.first_runs + self.middle_runs
        yield lambda folder: fuzzed(range(self.first_runs), folder)
        yield lambda folder: tested(self.own, folder)
        yield lambda folder: fuzzed(range(self.first_runs, middle), folder)
        yield lambda folder: tested(self.others, folder)
        yield lambda folder: fuzzed(range(middle, middle + self.last_runs), folder)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`killed`, `survived`, or `stillborn` (not even importable: no mutant at all), and who killed it."""

    verdict: str
    killer: str = ""
    cpu_s: float = 0.0
    """What it took."""


def preload() -> None:
    """Loads what all children share.

    Raises:
        RuntimeError: `quiesce` is loaded already, so that no child could load it changed.
    """
    for name in THIRD_PARTY:
        importlib.import_module(name)
    if any(name.split(".")[0] == "quiesce" for name in sys.modules):
        raise RuntimeError("quiesce is loaded already: judge in a process of its own")
    sys.path.insert(0, str(ROOT / ".src"))
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # whatever else is installed costs each child a second
    sys.dont_write_bytecode = False
    gc.collect()
    gc.freeze()  # a child's collections leave alone what it shares with the parent


def one_line(killer: str) -> str:
    """The first line, without what is another in every process."""
    return re.sub(r"( at 0x|@)[0-9a-f]+", "", killer.split("\n")[0])[:200]


def judge(mutant: Mutant | None, suite: Suite) -> Verdict:
    """Judges one mutant in a child; None: the engine as it is, which should survive."""
    source, sink = os.pipe()
    with tempfile.TemporaryDirectory(prefix="quiesce-mutant-") as folder:
        child = os.fork()
        if child:
            os.setpgid(child, child)
        else:
            os.close(source)
            _child(mutant, suite, Path(folder), sink)
        os.close(sink)
        try:
            answer = _answer(source)
        finally:
            os.killpg(child, signal.SIGKILL)  # it is done, or late, or we are interrupted; what it started goes, too
            os.close(source)
        used = os.wait4(child, 0)[2]
    said = json.loads(answer) if answer else {"verdict": "killed", "killer": "hang: no answer"}
    return Verdict(**said, cpu_s=round(used.ru_utime + used.ru_stime, 1))


def _answer(source: int) -> bytes:
    """What the child says; nothing if it says nothing for too long."""
    found = b""
    while select.select([source], [], [], WALL_LIMIT_S)[0]:
        some = os.read(source, 65536)
        if not some:
            return found
        found += some
    return b""


def _child(mutant: Mutant | None, suite: Suite, folder: Path, sink: int) -> None:
    """Never returns."""

    def say(verdict: str, killer: str = "") -> None:
        os.write(sink, json.dumps({"verdict": verdict, "killer": one_line(killer)}).encode())
        os._exit(0)

    silence = os.open(os.devnull, os.O_WRONLY)
    if not os.environ.get("QUIESCE_MUTANTS_LOUD"):
        os.dup2(silence, 1)
        os.dup2(silence, 2)
    os.chdir(ROOT)
    signal.signal(signal.SIGPROF, lambda *_: say("killed", f"hang: {_now[0]}"))
    try:
        if mutant is not None:
            sys.meta_path.insert(0, Changed(mutant))
        importlib.import_module("quiesce.stateful.fuzz.hunt")
    except Exception as error:  # noqa: BLE001  whatever an import can raise
        say("stillborn", f"{type(error).__name__}: {error}")
    try:
        for stage in suite.stages:
            killer = stage(folder)
            if killer:
                say("killed", killer)
    except BaseException as error:  # noqa: BLE001  the fuzzer's own walls
        say("killed", f"fuzz crash: {type(error).__name__}: {error}")
    say("survived")


_now = [""]
"""What runs, for the name of a hang."""


def _begin(what: str) -> None:
    _now[0] = what
    signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)


class Watch:
    """A plugin that remembers the first failure and watches over the time of each test."""

    def __init__(self) -> None:
        self.failure = ""

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        _begin(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.failure:
            hangs = "Timeout" in str(report.longrepr)[-2000:] and "Failed: Timeout" in str(report.longrepr)
            self.failure = f"{'hang' if hangs else 'test'}: {report.nodeid}"

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.failure:
            self.failure = f"test: {report.nodeid}"


def tested(files: tuple[str, ...], folder: Path) -> str:
    """The first test that fails, if any."""
    if not files:
        return ""
    watch = Watch()
    _begin(f"collecting {files[0]}")
    options = ["-x", "-q", "-p", "no:cacheprovider", f"--timeout={WAIT_LIMIT_S}", "--hypothesis-seed=0", "--tb=line"]
    options += [part for name in PLUGINS for part in ("-p", name)]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # hypothesis is loaded before pytest starts
    pytest.main([*options, f"--basetemp={folder / 'pytest'}", *files], plugins=[watch])
    return watch.failure


def fuzzed(seeds: range, folder: Path) -> str:
    """The first run of the fuzzer in which something was wrong, if any."""
    if not seeds:
        return ""
    hunting = importlib.import_module("quiesce.stateful.fuzz.hunt")
    running = importlib.import_module("quiesce.stateful.fuzz.runs")
    driver = importlib.import_module("quiesce.stateful.driver")
    checkpoint = driver.ledger_checkpoint(folder / f"ledger-{seeds[0]}")
    for seed in seeds:
        _begin(f"fuzz seed {seed}")
        schedule, strategy = hunting.drawn_schedule(seed)
        problem = running.run(checkpoint, schedule, strategy).problem
        if problem is not None:
            return f"fuzz {problem.oracle}: seed {seed}: {problem.text}"
    return ""


class Changed(MetaPathFinder):
    """Finds the one module that is changed."""

    def __init__(self, mutant: Mutant) -> None:
        self.path = ROOT / mutant.file
        self.name = "quiesce." + mutant.file.removesuffix(".py").replace("/", ".")
        self.tree = mutated(mutant, self.path.read_text(encoding="utf-8"))

    def find_spec(self, fullname: str, path: Any, target: types.ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        return spec_from_file_location(fullname, self.path, loader=_Loader(fullname, str(self.path), self.tree))


class _Loader(SourceFileLoader):
    def __init__(self, fullname: str, path: str, tree: ast.Module) -> None:
        super().__init__(fullname, path)
        self.tree = tree

    def get_code(self, fullname: str) -> types.CodeType:
        return compile(self.tree, self.path, "exec")
