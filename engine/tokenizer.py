"""Text to token ids and back, and chats to text, from a Hugging Face checkpoint folder. No torch.

    tokenizer = Tokenizer(folder)            tokenizer.json, tokenizer_config.json, chat_template.jinja
    decoder = IncrementalDecoder(tokenizer)  one for each stream; says only what can no longer change

Control tokens written out in a text (`<|im_end|>`) are encoded as the control tokens themselves, in a message of a chat as well,
as vLLM and transformers do: who passes on text of strangers and minds forged turns removes them first.

A chat template is foreign code: it runs in jinja2's immutable sandbox, and whatever it raises is the caller's `InvalidRequest`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import jinja2
import tokenizers
from jinja2.ext import Extension
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from quiesce.engine.errors import InvalidRequest

REPLACEMENT: Final = "\ufffd"
"""What a decoder writes for bytes that are not UTF-8, or not yet."""

TEMPLATE_ERRORS: Final = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What a template can raise on messages that it was not written for."""


class Tokenizer:
    """The vocabulary of one checkpoint, and its way of writing a chat.

    Raises:
        InvalidRequest: tokenizer.json is missing or cannot be read, or another file of the folder is malformed; it is named.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._tokenizer = _load(self.folder / "tokenizer.json")
        # A file saved in training may cut or pad what it encodes; here every text must come through whole.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        config = _read_config(self.folder / "tokenizer_config.json")
        self._named = {
            name: text for name in config if name.endswith("_token") and (text := _content(config[name])) is not None
        }
        self._template = _chat_template(self.folder, config)
        self._render: Callable[..., str] | None = None
        self.bos_token_id: int | None = self._id_of("bos_token")
        self.eos_token_id: int | None = self._id_of("eos_token")
        """The token named `eos_token`; generation_config.json may name others beside it (`checkpoint.py`)."""
        self.special_ids = frozenset(i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special)
        bytes_ = (self._tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        self.byte_ids = frozenset(found for found in bytes_ if found is not None)
        """Tokens of one byte each, in vocabularies that fall back to bytes; empty for byte-level ones."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; a model's embedding may have more rows."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """The token ids of a text.

        Raises:
            InvalidRequest: the text holds half of a surrogate pair, which is no text at all.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest("prompt", f"not Unicode text: {error.reason} at character {error.start}") from None
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; an id outside the vocabulary has none."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **kw: Any) -> str:
        """The prompt that stands for a chat, as the checkpoint's own template writes it. `kw` are further template variables.

        Raises:
            InvalidRequest: there is no template, or it refuses the messages, or tries to leave its sandbox.
        """
        if self._template is None:
            raise InvalidRequest("messages", f"{self.folder}: has no chat template; send a prompt instead")
        words = {"tools": None, "documents": None, **self._named, **kw}
        try:
            if self._render is None:
                self._render = _environment().from_string(self._template).render
            return self._render(messages=messages, add_generation_prompt=add_generation_prompt, **words)
        except TEMPLATE_ERRORS as error:
            raise InvalidRequest("messages", f"the chat template refuses them: {error}") from error

    def _id_of(self, name: str) -> int | None:
        text = self._named.get(name)
        return None if text is None else self._tokenizer.token_to_id(text)


class IncrementalDecoder:
    """The text of one growing list of token ids, in pieces: joined they are `decode` of all ids.

    A piece ends where the bytes so far end a character. What a token says can depend on its neighbour to the left (a leading
    space is kept or not), so ids are decoded behind the ids of the piece before, and only the new part is told.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids: list[int] = []
        """The ids of the last piece, then those not told to their end."""
        self._read = 0
        """How many of `_ids` belong to the last piece."""
        self._told = 0
        """How many characters of their text are told."""
        self._byte_run = False

    def feed(self, ids: Sequence[int]) -> str:
        """Takes the next ids; returns the text that is now certain, often none."""
        self._ids.extend(ids)
        for token in ids:
            if not (self._skip and token in self._tokenizer.special_ids):
                self._byte_run = token in self._tokenizer.byte_ids
        # Decoders with byte fallback judge a run of bytes as a whole: one broken byte at its end turns all of it to U+FFFD.
        if not ids or self._byte_run:
            return ""
        text = self._decode()
        if text.endswith(REPLACEMENT):
            # An unfinished character is one U+FFFD, the last; those before it are certain.
            piece, self._told = text[self._told : -1], max(self._told, len(text) - 1)
            return piece
        piece = text[self._told :]
        if piece:
            self._ids = self._ids[self._read :]
            self._read, self._told = len(self._ids), len(self._decode())
        return piece

    def finish(self) -> str:
        """The rest, whatever it is: nothing more will come. The decoder is then as new."""
        rest = self._decode()[self._told :]
        self._ids, self._read, self._told, self._byte_run = [], 0, 0, False
        return rest

    def _decode(self) -> str:
        return self._tokenizer.decode(self._ids, self._skip)


class _Generation(Extension):
    """`{% generation %}` marks what the model said, for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Callable[[], str]) -> str:
        return caller()


def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers sets it up, so that a template means the same here."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own `tojson` escapes HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _load(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise InvalidRequest("model", f"{path}: the file is missing")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for any malformed file
        raise InvalidRequest("model", f"{path}: cannot be read: {error}") from error


def _read_config(path: Path) -> dict[str, Any]:
    """The settings beside the vocabulary; a folder may have none."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidRequest("model", f"{path}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRequest("model", f"{path}: holds no JSON object")
    return value


def _content(token: object) -> str | None:
    """A token is written as its text, or as an object that holds it."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The file beside the settings wins over the field in them; of several templates the one named `default` is taken."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InvalidRequest("model", f"{path}: cannot be read: {error}") from error
    found = config.get("chat_template")
    if isinstance(found, list):
        entries = (entry for entry in found if isinstance(entry, dict) and entry.get("name") == "default")
        found = next((entry.get("template") for entry in entries), None)
    return found if isinstance(found, str) else None
