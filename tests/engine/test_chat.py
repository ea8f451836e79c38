"""The chat: through a pipe it answers line by line; on a terminal Ctrl+C ends an answer and not the conversation."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quiesce.engine import chat
from quiesce.engine.api import AsyncEngine
from quiesce.engine.chat import Chat, ChatOptions, Conversation
from quiesce.engine.config import EngineConfig
from quiesce.engine.errors import InvalidRequest

GREEDY = ChatOptions(temperature=0.0, max_tokens=12, num_threads=1)


def talk(monkeypatch: pytest.MonkeyPatch, text: str, options: ChatOptions = GREEDY) -> int:
    """Chats with the shipped model through a pipe."""
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    try:
        return chat.run(options)
    finally:
        signal.signal(signal.SIGINT, handler)


def test_every_line_of_a_pipe_is_answered_and_the_end_of_input_leaves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk(monkeypatch, "What does draining mean?\n\nWhat does draining mean?\n") == 0
    answers = capsys.readouterr().out.splitlines()
    assert len(answers) == 2
    assert all(answers)


def test_an_answer_is_remembered_and_reset_forgets_it() -> None:
    async def body() -> None:
        async with AsyncEngine(EngineConfig(num_threads=1)) as engine:
            talked = Chat(engine, ChatOptions(temperature=0.0, max_tokens=4, system="be brief"))
            await talked.turn("What does draining mean?")
            assert [message["role"] for message in talked.conversation.messages] == ["system", "user", "assistant"]
            await talked.turn("And running?")
            assert [message["role"] for message in talked.conversation.messages][3:] == ["user", "assistant"]
            assert await talked.command("/reset")
            assert talked.conversation.messages == [{"role": "system", "content": "be brief"}]
            assert not await talked.command("/exit")

    asyncio.run(body())


def test_a_turn_that_is_refused_leaves_no_trace_and_the_chat_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    async def body() -> None:
        async with AsyncEngine(EngineConfig(num_threads=1, max_model_len=64)) as engine:
            talked = Chat(engine, ChatOptions(temperature=0.0, max_tokens=2))
            await talked.turn("word " * 200)
            assert talked.conversation.messages == []
            await talked.turn("What is draining?")
            assert len(talked.conversation.messages) == 2

    asyncio.run(body())
    assert "leave no room" in capsys.readouterr().err


def test_a_word_with_a_slash_that_is_no_command_is_not_sent_to_the_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk(monkeypatch, "/nothing at all\n/help\n/exit\nnever read\n") == 0
    said = capsys.readouterr().out
    assert said.startswith("/nothing is no command. /reset ")
    assert said.count("\n") == 2


def test_the_same_seed_gives_the_same_conversation(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said = set()
    for _ in range(2):
        assert (
            talk(
                monkeypatch, "Tell the life of a request.\n", ChatOptions(temperature=1.0, max_tokens=12, seed=3, num_threads=1)
            )
            == 0
        )
        said.add(capsys.readouterr().out)
    assert len(said) == 1


def test_an_option_that_cannot_be_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequest, match="temperature"):
        talk(monkeypatch, "", ChatOptions(temperature=-1.0))


def test_a_conversation_starts_with_its_system_message_alone() -> None:
    assert Conversation().messages == []
    assert Conversation("be brief").messages == [{"role": "system", "content": "be brief"}]


class Terminal:
    """`quiesce chat` on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "quiesce.engine.cli", "chat", *arguments],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, cwd=Path(__file__).parent,
            env={**os.environ, "TERM": "dumb"},
        )  # fmt: skip
        os.close(theirs)
        self.seen = ""

    def __enter__(self) -> Terminal:
        return self

    def wait_for(self, pattern: str) -> None:
        """Reads until the pattern is there, and forgets what was before its end."""
        deadline = time.monotonic() + 60
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < deadline, f"{pattern!r} did not come: {self.seen[-300:]!r}"
            if select.select([self.ours], [], [], 0.2)[0]:
                self.seen += os.read(self.ours, 4096).decode(errors="replace")
        self.seen = self.seen[found.end() :]

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def interrupt_until(self, pattern: str) -> None:
        """Presses Ctrl+C again and again: one that comes just before the line editor listens is only noticed with the next key."""
        deadline = time.monotonic() + 60
        while not re.search(pattern, self.seen) and time.monotonic() < deadline:
            self.interrupt()
            if select.select([self.ours], [], [], 0.5)[0]:
                self.seen += os.read(self.ours, 4096).decode(errors="replace")
        self.wait_for(pattern)

    def leave(self) -> int:
        """Presses Ctrl+D until the chat is gone: the terminal eats one that comes between two reads of the line editor."""
        deadline = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < deadline:
            self.type("\x04")
            with contextlib.suppress(OSError):  # the other end is closed
                if select.select([self.ours], [], [], 0.2)[0]:
                    self.seen += os.read(self.ours, 4096).decode(errors="replace")
        return self.process.wait(0)

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)


def test_ctrl_c_at_the_prompt_drops_the_line_and_ctrl_d_leaves() -> None:
    with Terminal() as terminal:
        terminal.wait_for("> ")
        terminal.interrupt_until("> ")
        assert terminal.leave() == 0, terminal.seen


def test_ctrl_c_during_an_answer_aborts_it_and_the_chat_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    """Pressed when the first words are there, of an answer that would be 1,347 tokens long: every token is as likely as any."""

    async def main() -> None:
        async with AsyncEngine(EngineConfig(num_threads=1)) as engine:
            chat = Chat(engine, ChatOptions(temperature=1e6, seed=46))
            turn = asyncio.create_task(chat.turn("Tell the life of a request."))
            while engine.status().live == 0:  # noqa: ASYNC110  there is no event for it
                await asyncio.sleep(0)
            os.kill(os.getpid(), signal.SIGINT)
            await turn
            assert "[interrupted]" in capsys.readouterr().out
            chat.options = ChatOptions(temperature=0)
            assert await chat.command("/reset")
            assert engine.status().live == 0

    asyncio.run(main())
