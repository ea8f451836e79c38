"""What the routes share: the engine, the model's name, and its defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from quiesce.engine.api import AsyncEngine
from quiesce.engine.errors import EngineError, InvalidRequest
from quiesce.engine.outputs import Status
from quiesce.engine.server.settings import Settings
from quiesce.engine.server.transfers import Transfers
from quiesce.engine.tokenizer import Tokenizer


class ModelUnknown(EngineError):
    """The call names a model that is not served here."""

    http_status = 404


class Host:
    """One engine behind one server."""

    def __init__(self, engine: AsyncEngine, settings: Settings) -> None:
        self.engine, self.settings = engine, settings
        self.name = settings.served_model_name
        self.defaults: Mapping[str, Any] = getattr(engine.model.info, "generation_defaults", {})
        self.chat_defaults: Mapping[str, Any] = {**self.defaults, "max_tokens": None}
        self.transfers = Transfers(engine.config.control_timeout_s)
        self.is_stopping = False
        """SIGTERM came: new work is refused at once, whatever the engine would say."""

    def status(self) -> Status:
        return self.engine.status()

    def check_model(self, name: str | None) -> None:
        """Raises ModelUnknown."""
        if name is not None and name not in (self.name, self.engine.config.model):
            raise ModelUnknown(f"model: {name!r} is not served here; {self.name!r} is")

    def tokenizer(self, field: str) -> Tokenizer:
        """Raises InvalidRequest: the checkpoint has none."""
        if self.engine.model.tokenizer is None:
            raise InvalidRequest(field, "this checkpoint has no tokenizer; send token ids")
        return self.engine.model.tokenizer

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, words: Mapping[str, Any]) -> str:
        """The messages as the checkpoint's template writes them. A message may be in parts, as OpenAI's clients send them.

        Raises:
            InvalidRequest: the template refuses them, or a part is not text.
        """
        whole = [{**message, "content": _text(message.get("content"))} for message in messages]
        return self.tokenizer("messages").apply_chat_template(whole, add_generation_prompt, **words)

    def lifecycle(self) -> dict[str, Any]:
        """`Status` as JSON, same names."""
        return plain(self.status())


def _text(content: object) -> object:
    if not isinstance(content, list):
        return content
    parts = [part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else None for part in content]
    if not all(isinstance(part, str) for part in parts):
        raise InvalidRequest("messages", "parts of a message must be text")
    return "".join(str(part) for part in parts)


def plain(status: Status) -> dict[str, Any]:
    """A status as dictionaries and lists."""
    found = {name: getattr(status, name) for name in status.__slots__ if name != "measured"}
    found["blocks"] = asdict(status.blocks)
    return {
        name: dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value
        for name, value in found.items()
    }
