"""How the demo looks: the live view, the same as plain lines, and the report at its end. Reads a `Show` and a `Status`, changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from quiesce.engine.outputs import Blocks, Status
from quiesce.spec.vocabulary import FinishReason, RequestState

if TYPE_CHECKING:
    from quiesce.engine.demo import Show

SHOWN_STATES: Final = tuple(state for state in RequestState if state not in (RequestState.absent, RequestState.ended))
STYLES: Final = {
    "reading": "green",
    "waiting": "yellow",
    "left": "red",
    "aborted": "magenta",
    "answered": "cyan",
    "refused": "red",
}
BLOCK_STYLES: Final = {"held": "green", "fenced": "yellow", "cached": "blue"}


def plain_line(status: Status, show: Show) -> str:
    """The live view in one line, for logs."""
    blocks = status.blocks
    requests = ", ".join(f"{status.requests[state]} {state}" for state in SHOWN_STATES if status.requests.get(state)) or "none"
    return (
        f"{time.monotonic() - show.began_s:5.1f} s  {status.engine}  requests: {requests}  KV: {blocks.held} held, {blocks.fenced} fenced, "
        f"{blocks.cached} cached, {blocks.free} free  {show.tokens_per_s():,.0f} tokens/s"
    )


def frame(status: Status, show: Show, width: int, height: int) -> Panel:
    """The live view at one instant."""
    counts = Text(" requests  ")
    for state in SHOWN_STATES:
        count = status.requests.get(state, 0)
        counts.append(f"{state} {count:<4}", "bold" if count else "dim")
    counts.append(f"ended {sum(status.finished.values())}", "dim")
    rate = Text(f" tokens/s  {show.tokens_per_s():<8,.0f}in all {show.num_tokens:<8,}streams {status.streams:<4}")
    rate.append(f"steps in flight {status.steps_in_flight}")
    news = [Text(f" · {line}", "dim", no_wrap=True, overflow="ellipsis") for line in show.news[-2:]]
    rows = Table.grid(padding=(0, 1))
    rows.add_column(width=10, no_wrap=True)
    rows.add_column(width=8, no_wrap=True)
    rows.add_column(no_wrap=True)
    for client in show.clients[: max(height - 8 - len(news), 1)]:
        tail = f"{client.question}  {client.text}".replace("\n", " ")
        room = max(width - 26, 10)
        line = Text(tail if len(tail) <= room else "…" + tail[1 - room :])
        line.stylize("dim", 0, max(len(line) - len(client.text), 0))
        rows.add_row(f" client {client.number}", Text(client.doing, STYLES.get(client.doing, "dim")), line)
    title = f"quiesce · engine {status.engine} · admission {status.admission}"
    return Panel(Group(counts, _bar(status.blocks, width - 62), rate, rows, *news), title=title, border_style="blue")


def _bar(blocks: Blocks, width: int) -> Text:
    """Who has the KV blocks, drawn to scale and then counted."""
    bar = Text(" KV blocks ", no_wrap=True)
    sums = covered = 0
    for owner, style in BLOCK_STYLES.items():
        sums += getattr(blocks, owner)
        cells = max(width, 10) * sums // blocks.total
        bar.append("█" * (cells - covered), style)
        covered = cells
    bar.append("░" * (max(width, 10) - covered), "dim")
    for owner, style in BLOCK_STYLES.items():
        bar.append(f" {owner} {getattr(blocks, owner)}", style)
    return bar.append(f" free {blocks.free} of {blocks.total}")


def balance_lines(status: Status, seen: Mapping[str, int], num_left: int) -> list[str]:
    """The books, one sum a line."""
    blocks = status.blocks
    ends = " + ".join(f"{status.finished.get(reason, 0)} {reason}" for reason in FinishReason)
    saw = ", ".join(f"{count} {reason}" for reason, count in sorted(seen.items()))
    return [
        f"requests   {status.accepted} accepted = {ends}; {status.live} live, {status.rejected} refused",
        f"clients    {sum(seen.values())} answers seen to their end ({saw}), {num_left} left without waiting",
        f"KV blocks  {blocks.total} = {blocks.free} free + {blocks.cached} cached + {blocks.held} held + {blocks.fenced} fenced",
        f"streams    {status.streams} open, {status.steps_in_flight} steps in flight",
    ]


def say(console: Console, text: str = "", style: str = "") -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def tell_transcripts(console: Console, show: Show, kinds: Iterable[str]) -> None:
    """The longest answer of each kind, and how many were exact."""
    complete = [(turn, output.text) for turn, output in show.transcripts if output.finish_reason == "stop"]
    say(console, "\nWhat was said", "bold")
    for kind in kinds:
        turn, text = max((pair for pair in complete if pair[0].kind == kind), key=lambda pair: len(pair[1]), default=(None, ""))
        if turn is not None:
            wrong = "" if turn.answer in (None, text) else f"   (the table says: {turn.answer})"
            say(console, f"  > {turn.question}", "dim")
            say(console, f"    {text}{wrong}")
    checked = [turn.answer == text for turn, text in complete if turn.answer is not None]
    say(console, f"  {sum(checked)} of {len(checked)} complete answers are the tables' own, to the letter")
