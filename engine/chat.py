"""`quiesce chat`: a conversation on the terminal. Tokens stream as they come; the history grows with every answer.

Ctrl+C ends the answer being given, not the chat: the request is aborted and the prompt comes back, what was said so far stays in the
history. Ctrl+D leaves. With input from a pipe each line is one turn, and the end of the input leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Final

from quiesce.engine.api import AsyncEngine
from quiesce.engine.config import EngineConfig
from quiesce.engine.errors import EngineError
from quiesce.engine.sampling_params import SamplingParams

HELP: Final = "/reset forgets the conversation, /exit (or Ctrl+D) leaves, Ctrl+C ends an answer."
PROMPT: Final = "> "


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What the command line says."""

    model: str = "tiny"
    temperature: float | None = None
    """None, here and below: the checkpoint's own default."""
    top_p: float | None = None
    max_tokens: int | None = None
    """Per answer; None: as many as the context has room for."""
    seed: int | None = None
    system: str | None = None
    num_threads: int | None = None


def _given(**options: float | None) -> dict[str, float]:
    return {name: value for name, value in options.items() if value is not None}


@dataclass(slots=True)
class Conversation:
    """What was said, in the form of chat messages."""

    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets everything but the system message."""
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]

    def say(self, role: str, text: str) -> None:
        self.messages.append({"role": role, "content": text})


class Chat:
    """One conversation with one engine."""

    def __init__(self, engine: AsyncEngine, options: ChatOptions) -> None:
        self.engine, self.options = engine, options
        self.conversation = Conversation(options.system)
        self.params = SamplingParams.of(
            **{**engine.model.info.generation_defaults, **_given(temperature=options.temperature, top_p=options.top_p)},
            max_tokens=options.max_tokens, seed=options.seed, output_kind="delta",
        )  # fmt: skip
        self._num_turns = 0

    async def turn(self, question: str) -> None:
        """Asks, prints the answer as it comes, and remembers both. Ctrl+C aborts; a refused turn leaves no trace."""
        kept = len(self.conversation.messages)
        self.conversation.say("user", question)
        self._num_turns += 1
        name, text = f"chat-{self._num_turns}", ""
        try:
            with self._interruptions(name):
                outputs = self.engine.chat(self.conversation.messages, self.params, request_id=name)
                async for output in outputs:
                    text += output.text
                    print(output.text, end="", flush=True)
        except EngineError as error:
            del self.conversation.messages[kept:]
            print(f"{error}\n/reset starts anew", file=sys.stderr)
            return
        print(
            " [interrupted]" if output.finish_reason == "abort" else " [max tokens]" if output.finish_reason == "length" else ""
        )
        if output.error is not None:
            print(f"the answer ended with an error: {output.error}", file=sys.stderr)
        self.conversation.say("assistant", text)

    @contextlib.contextmanager
    def _interruptions(self, name: str) -> Iterator[None]:
        """While an answer is given Ctrl+C aborts it: the terminal comes on the stream, as always."""
        loop, aborts = asyncio.get_running_loop(), set[asyncio.Task[object]]()
        before = signal.getsignal(signal.SIGINT)
        try:
            loop.add_signal_handler(signal.SIGINT, lambda: aborts.add(asyncio.ensure_future(self.engine.abort(name))))
        except (NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread
            yield
            return
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            signal.signal(signal.SIGINT, before)  # the loop has put Python's own back, which raises anywhere

    async def command(self, line: str) -> bool:
        """Does what a line says. Whether the chat goes on."""
        match line.strip():
            case "":
                pass
            case "/exit" | "/quit":
                return False
            case "/reset":
                self.conversation.reset()
                print("(a new conversation)")
            case "/help":
                print(HELP)
            case word if word.startswith("/"):
                print(f"{word.split()[0]} is no command. {HELP}")
            case question:
                await self.turn(question)
        return True


def _next_line(terminal: bool) -> str | None:
    """The next line of input; None at its end. Ctrl+C at the prompt drops the line.

    Called in the loop's own thread: between turns nothing else is to be done there, and a thread that reads could not be stopped.
    """
    while True:
        try:
            Keyboard.listening = True
            line = input(PROMPT) if terminal else next(sys.stdin, None)
            Keyboard.listening = False
            return line
        except EOFError:
            Keyboard.listening = False
            print()
            return None
        except KeyboardInterrupt:
            print()


async def _converse(options: ChatOptions) -> int:
    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  line editing and history of `input`
        print(f"loading {options.model} ...", file=sys.stderr)
    engine = AsyncEngine(EngineConfig(model=options.model, num_threads=options.num_threads))
    chat = Chat(engine, options)
    try:
        await engine.start()
        if terminal:
            print(HELP)
        while (line := _next_line(terminal)) is not None and await chat.command(line):
            pass
    finally:
        await engine.shutdown(timeout=0)
    return 0


class Keyboard:
    """Whether a line is being read: only then is Ctrl+C an exception, and only once, so that none can strike beside its handler."""

    listening = False


def _interrupt(number: int, frame: FrameType | None) -> None:
    if Keyboard.listening:
        Keyboard.listening = False
        raise KeyboardInterrupt


def run(options: ChatOptions) -> int:
    """Chats until the input ends or says /exit. The exit status.

    Raises:
        EngineError: the model cannot be served, or an option cannot be.
    """
    signal.signal(signal.SIGINT, _interrupt)  # asyncio's own way would cancel the whole chat while it waits for a line
    with asyncio.Runner() as runner:
        return runner.run(_converse(options))
