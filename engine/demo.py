"""`quiesce demo`: sixteen clients ask the real engine about its own lifecycles. Some leave mid-answer, some are aborted; then the
books are balanced. In a second act the operator pauses, sleeps, wakes and updates under the clients' feet (`engine/demo_lifecycle.py`).

On a terminal there is a live view, elsewhere plain lines. What is asked, and who leaves when and how, is planned in advance and the
same every time; the rest is the engine's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.live import Live

from quiesce.engine.api import AsyncEngine
from quiesce.engine.config import EngineConfig
from quiesce.engine.demo_lifecycle import second_act
from quiesce.engine.demo_view import balance_lines, frame, plain_line, say, tell_transcripts
from quiesce.engine.errors import EngineError
from quiesce.engine.outputs import RequestOutput, Status
from quiesce.engine.sampling_params import SamplingParams
from quiesce.engine.tiny.corpus import TELL
from quiesce.engine.tiny.questions import facts, noun
from quiesce.spec.vocabulary import RequestState
from quiesce.statemachine import diagram, trace

NUM_CLIENTS: Final = 16
NUM_TURNS: Final = 8
MAX_TOKENS: Final = 48
KINDS: Final = ("leads", "why", "meaning", "between", "refusal", "legal", "can")
MACHINES: Final = ("engine", "request", "stream", "memory", "weights", "step")
SETTLE_S: Final = 10.0
"""Longest wait for the last device steps after the last answer."""
LIVE_FRAME_S: Final = 0.1
PLAIN_LINE_S: Final = 0.25


class Leaving(Enum):
    """What happens to a turn before its answer is complete, as the demo tells it."""

    not_at_all = ""
    cancel = "its task was cancelled"
    close = "it closed its generator"
    drop = "it dropped its generator"
    abort = "the operator aborted it"


INTERRUPTED: Final[Mapping[int, Leaving]] = {
    2: Leaving.cancel, 4: Leaving.abort, 5: Leaving.close, 8: Leaving.drop, 9: Leaving.abort, 11: Leaving.cancel, 14: Leaving.abort,
}  # fmt: skip
"""By client number. Who leaves asks nothing more; who is aborted goes on with the next question."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One question, and how long its client listens."""

    kind: str
    question: str
    answer: str | None
    """What the tables say; None for a narrated life, of which there are many."""
    params: SamplingParams
    leaving: Leaving = Leaving.not_at_all
    after: int = 0
    """Tokens after which it is left."""


@dataclass(slots=True)
class Client:
    """What one client has on its screen."""

    number: int
    turns: list[Turn]
    doing: str = "arriving"
    question: str = ""
    text: str = ""
    num_tokens: int = 0


@dataclass(slots=True)
class Show:
    """All clients, and what they have seen: the other side of the engine's books."""

    clients: list[Client]
    began_s: float = field(default_factory=time.monotonic)
    seen: Counter[str] = field(default_factory=Counter)
    """Terminals that clients were given, by finish reason."""
    num_left: int = 0
    """Turns whose client did not wait for the terminal."""
    num_tokens: int = 0
    transcripts: list[tuple[Turn, RequestOutput]] = field(default_factory=list)
    news: list[str] = field(default_factory=list)
    problems: Counter[str] = field(default_factory=Counter)
    _marks: deque[tuple[float, int]] = field(default_factory=lambda: deque([(time.monotonic(), 0)], maxlen=11))

    def tokens_per_s(self) -> float:
        """Over about the last ten looks."""
        self._marks.append((time.monotonic(), self.num_tokens))
        (began, before), (ended, after) = self._marks[0], self._marks[-1]
        return (after - before) / max(ended - began, 1e-3)


def plan(seed: int = 1) -> list[Client]:
    """Who asks what, in which order, and who leaves when."""
    rng = random.Random(seed)
    asked = [fact for fact in facts() if fact.machine in MACHINES and fact.kind in KINDS]
    by_kind = {kind: [fact for fact in asked if fact.kind == kind] for kind in KINDS}
    clients = []
    for number in range(NUM_CLIENTS):
        turns = []
        for index in range(NUM_TURNS):
            fact = rng.choice(by_kind[KINDS[(number + index) % len(KINDS)]])
            params = SamplingParams(max_tokens=MAX_TOKENS, temperature=0)
            turns.append(Turn(fact.kind, rng.choice(fact.questions), fact.answer, params))
        turns[number % NUM_TURNS] = _life(rng, number, INTERRUPTED.get(number, Leaving.not_at_all))
        if INTERRUPTED.get(number, Leaving.abort) is not Leaving.abort:
            del turns[number % NUM_TURNS + 1 :]
        clients.append(Client(number, turns))
    return clients


def _life(rng: random.Random, number: int, leaving: Leaving) -> Turn:
    """A long answer. One that will be left never ends by itself, so that it is always left in the middle."""
    question = rng.choice(TELL).format(**noun(rng.choice(MACHINES)).words())
    if leaving is Leaving.not_at_all:
        return Turn("life", question, None, SamplingParams(max_tokens=MAX_TOKENS, seed=number))
    return Turn(
        "life", question, None, SamplingParams(max_tokens=400, seed=number, ignore_eos=True), leaving, rng.randint(10, 24)
    )


# ---- the clients ----------------------------------------------------------------------------------------------------------------


async def visit(engine: AsyncEngine, show: Show, client: Client, pause_s: float) -> None:
    """A client's whole stay: its questions one after the other, with time to read the answers."""
    await asyncio.sleep(pause_s * client.number / 30)
    for index, turn in enumerate(client.turns):
        try:
            await _ask(engine, show, client, turn, f"client-{client.number}.{index}")
        except EngineError as error:
            client.doing = "refused"
            show.problems[f"a client was refused: {type(error).__name__}: {error}"] += 1
            return
        await asyncio.sleep(pause_s * (1 + client.number % 4 / 8))
    if client.doing != "left":
        client.doing = "done"


async def _ask(engine: AsyncEngine, show: Show, client: Client, turn: Turn, request_id: str) -> None:
    client.doing, client.question, client.text, client.num_tokens = "waiting", turn.question, "", 0
    messages = [{"role": "user", "content": turn.question}]
    outputs = engine.chat(messages, turn.params, request_id=request_id)
    leaving = turn.leaving
    async for output in outputs:
        show.num_tokens += len(output.token_ids) - client.num_tokens
        client.doing, client.text, client.num_tokens = "reading", output.text, len(output.token_ids)
        if output.finished:
            _note_end(show, client, turn, output)
        elif leaving is Leaving.abort and client.num_tokens >= turn.after:
            leaving = Leaving.not_at_all
            await engine.abort(request_id)  # the terminal comes on the stream, as always
            show.news.append(f"client {client.number}, {client.num_tokens} tokens into an answer: {turn.leaving.value}")
        elif leaving is not Leaving.not_at_all and client.num_tokens >= turn.after:
            leaving, client.doing, show.num_left = Leaving.not_at_all, "left", show.num_left + 1
            show.news.append(f"client {client.number}, {client.num_tokens} tokens into an answer: {turn.leaving.value}")
            task = asyncio.current_task()
            if turn.leaving is Leaving.cancel and task is not None:
                task.cancel()  # strikes at the next await, inside the engine's generator
            elif turn.leaving is Leaving.close:
                await outputs.aclose()
            else:
                break  # nobody holds the generator now but the garbage collector


def _note_end(show: Show, client: Client, turn: Turn, output: RequestOutput) -> None:
    reason = output.finish_reason or "?"
    show.seen[reason] += 1
    show.transcripts.append((turn, output))
    client.doing = "aborted" if reason == "abort" else "answered"
    if output.error is not None:
        show.problems[f"an answer ended with an error: {output.error}"] += 1


# ---- the books ------------------------------------------------------------------------------------------------------------------


def problems_of(status: Status, seen: Mapping[str, int], num_left: int) -> list[str]:
    """What is wrong with the books of an engine whose clients have all gone; empty if they balance."""
    blocks, finished = status.blocks, status.finished
    found = []
    if status.live or status.accepted != sum(finished.values()):
        found.append(
            f"{status.accepted} requests were accepted, {sum(finished.values())} have ended and {status.live} are live"
        )
    unseen = {reason: count - seen.get(reason, 0) for reason, count in finished.items()}
    if sum(unseen.values()) != num_left or min(unseen.values(), default=0) < 0 or not set(seen) <= set(finished):
        found.append(f"clients saw {dict(seen)} and {num_left} left without waiting, but the engine ended {dict(finished)}")
    if status.requests.get(RequestState.draining, 0):
        found.append(f"{status.requests[RequestState.draining]} requests still wait for their last step")
    if blocks.held or blocks.fenced or blocks.free + blocks.cached != blocks.total:
        found.append(
            f"KV blocks are not all home: {blocks.free} free + {blocks.cached} cached + {blocks.held} held + "
            f"{blocks.fenced} fenced, {blocks.total} in all"
        )
    if status.streams or status.steps_in_flight:
        found.append(f"{status.streams} streams are open and {status.steps_in_flight} steps in flight")
    return found


async def settled(engine: AsyncEngine) -> Status:
    """The status once nothing is on its way any more, or after `SETTLE_S`."""
    deadline_s = time.monotonic() + SETTLE_S
    while True:
        status = engine.status()
        busy = status.live or status.requests.get(RequestState.draining, 0) or status.steps_in_flight or status.streams
        if not busy or time.monotonic() >= deadline_s:
            return status
        await asyncio.sleep(0.01)


# ---- what is shown --------------------------------------------------------------------------------------------------------------


async def _paint(engine: AsyncEngine, show: Show, console: Console, live: Live | None) -> None:
    """Until it is cancelled, and then once more: the live view, or a plain line now and then."""
    told, going = 0, True
    while going:
        try:
            await asyncio.sleep(PLAIN_LINE_S if live is None else LIVE_FRAME_S)
        except asyncio.CancelledError:
            going = False
        if live is not None:
            live.update(frame(engine.status(), show, console.width, console.height), refresh=True)
            continue
        for line in show.news[told:]:
            say(console, f"         {line}")
        told = len(show.news)
        say(console, plain_line(engine.status(), show))


def _write_evidence(console: Console, out: Path) -> None:
    """The trace once more for Perfetto, and the diagrams."""
    entries = list(trace.read(out / "trace.ndjson"))
    (out / "trace.chrome.json").write_text(json.dumps(trace.chrome_trace(entries)), encoding="utf-8")
    steps = sum("step" in entry for entry in entries)
    diagram.write_all(out / "diagrams")
    say(console, "\nEvidence", "bold")
    width = len(str(out)) + len("/trace.chrome.json")
    for name, text in (
        ("trace.ndjson", f"{len(entries) - steps} transitions and {steps} device steps, one JSON object a line"),
        ("second_act.ndjson", "the second act's transitions: pause, sleep, wake, update"),
        ("trace.chrome.json", "the same for https://ui.perfetto.dev"),
        ("diagrams", "every lifecycle, drawn from the tables that ran"),
    ):
        say(console, f"  {out / name!s:{width}}  {text}")


# ---- the whole --------------------------------------------------------------------------------------------------------------


async def _perform(engine: AsyncEngine, show: Show, console: Console, live_view: bool) -> Status:
    """Loads, lets the clients come and go, and returns the status when all is quiet."""
    async with engine:
        ready_s, num_blocks = time.monotonic() - show.began_s, engine.status().blocks.total
        say(console, f"ready after {ready_s:.1f} s: {num_blocks} KV blocks, {NUM_CLIENTS} clients")
        show.began_s = time.monotonic()
        with Live(console=console, auto_refresh=False) if live_view else contextlib.nullcontext() as live:
            painter = asyncio.create_task(_paint(engine, show, console, live))
            try:
                async with asyncio.TaskGroup() as group:
                    for client in show.clients:
                        group.create_task(visit(engine, show, client, 0.35 if live_view else 0.02))
                status = await settled(engine)
            finally:
                painter.cancel()
                await asyncio.wait([painter])
        seconds = time.monotonic() - show.began_s
        say(console, f"{show.num_tokens:,} tokens in {seconds:.1f} s for {status.accepted} questions")
        return status


def _stop_once() -> None:
    """The first Ctrl+C cancels the demo; those that follow must not spoil the shutdown, which aborts and is short."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def stop() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if task is not None:
            task.cancel()

    with contextlib.suppress(NotImplementedError):  # no such thing on Windows: there asyncio's own handling remains
        loop.add_signal_handler(signal.SIGINT, stop)


async def _demonstrate(model: str, out: Path, num_threads: int, console: Console, live_view: bool) -> int:
    _stop_once()
    show = Show(plan())
    say(console, f"loading {model} ...")
    engine = AsyncEngine(
        EngineConfig(
            model=model, trace_path=out / "trace.ndjson", num_threads=num_threads, max_model_len=512, num_kv_blocks=96, max_num_seqs=12
        )
    )  # fmt: skip
    try:
        status = await _perform(engine, show, console, live_view)
    finally:  # also when interrupted while loading, where there is no context to leave yet
        await engine.shutdown(timeout=0)
    tell_transcripts(console, show, (*KINDS, "life"))
    say(console, "\nBalance", "bold")
    for line in balance_lines(status, show.seen, show.num_left):
        say(console, f"  {line}")
    wrong = [f"{problem} ({count} times)" for problem, count in show.problems.items()]
    wrong += problems_of(status, show.seen, show.num_left)
    after = engine.status()
    wrong += [f"after shutdown: {problem}" for problem in problems_of(after, show.seen, show.num_left) if problem not in wrong]
    if after.engine != "stopped":
        wrong.append(f"the engine did not stop: it is {after.engine}")
    for problem in wrong:
        say(console, f"  NOT RIGHT: {problem}", "bold red")
    if not wrong:
        say(console, "  every request ended once, every block is home, nothing is left open", "green")
    also_wrong = await second_act(model, num_threads, out, console)
    for problem in also_wrong:
        say(console, f"  NOT RIGHT: {problem}", "bold red")
    _write_evidence(console, out)
    return 1 if wrong or also_wrong else 0


def run(model: str, out: Path, num_threads: int = 1, plain: bool = False) -> int:
    """Runs the demo; the exit status, 1 if the books do not balance.

    Args:
        out: folder for the trace and the diagrams.
        plain: lines instead of the live view, as where stdout is no terminal.

    Raises:
        EngineError: the model cannot be served.
        KeyboardInterrupt: Ctrl+C; the engine has been shut down.
    """
    console = Console()
    live_view = console.is_terminal and not console.is_dumb_terminal and not plain
    try:
        return asyncio.run(_demonstrate(model, out, num_threads, console, live_view))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        console.show_cursor()
