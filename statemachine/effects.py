"""What a transition asks for, as values. Only the gate can make one.

A device step, the release of blocks and an admission are reachable only through a value of this file: the function that does the
work takes the effect as its argument, and the effect's constructor takes a key that only the gate holds. So `mypy --strict` refuses
a path that does not come from a declared transition, and a forged effect fails at construction.

`subject` is the key of the record whose transition minted the effect (a request's key, a step's number); `detail` is the word in
brackets in the row, `terminal(abort)`.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import Final

from quiesce.spec import MACHINES
from quiesce.spec.guards import parse_effect
from quiesce.spec.language import SpecError


class MintKey:
    """The right to make effects. One instance exists; `statemachine.gate` takes it, and nothing else may."""

    __slots__ = ()


_KEY: Final = MintKey()
_taken = False


def take_mint_key() -> MintKey:
    """Hands out the key, once. `statemachine.gate` takes it at import.

    Raises:
        PermissionError: somebody asks a second time.
    """
    global _taken
    if _taken:
        raise PermissionError("the mint key belongs to statemachine.gate; effects come from gate.fire")
    _taken = True
    return _KEY


@dataclass(frozen=True, slots=True)
class Effect:
    """Base of all effects."""

    subject: int
    key: InitVar[MintKey]
    """Shown at construction and not kept: whoever holds an effect cannot make another."""
    detail: str = ""

    def __post_init__(self, key: MintKey) -> None:
        if key is not _KEY:
            raise PermissionError(f"{type(self).__name__} was not minted by the gate")


class Accept(Effect):
    """The request is accepted: it counts, and its stream is told."""

    __slots__ = ()


class AllocateBlocks(Effect):
    """The request may take blocks and a batch row."""

    __slots__ = ()


class FreeBlocks(Effect):
    """The request's blocks and batch row come back. `detail`: `cache` keeps what it computed in the prefix cache, `drop` does not."""

    __slots__ = ()


class Terminal(Effect):
    """The request's client gets its one terminal. `detail`: `abort`, `error`, or `finish` (the request knows: stop or length)."""

    __slots__ = ()


class LaunchStep(Effect):
    """Run the planned step on the device. `subject` is the step's number."""

    __slots__ = ()


class RetireStep(Effect):
    """The step's fences fall."""

    __slots__ = ()


class DropStep(Effect):
    """The planned step is forgotten."""

    __slots__ = ()


class DropPrefixIndex(Effect):
    """Nothing cached may be found any more."""

    __slots__ = ()


class ReleaseEverything(Effect):
    """The device and its memory are given back."""

    __slots__ = ()


class Unmap(Effect):
    """The tag's memory leaves, under its policy."""

    __slots__ = ()


class Map(Effect):
    """The tag's memory comes back, under its policy."""

    __slots__ = ()


class LoadWeights(Effect):
    """A chunk of new weights is written."""

    __slots__ = ()


class NewVersion(Effect):
    """The weights have a new version."""

    __slots__ = ()


class SendAdd(Effect):
    """The call goes to the core."""

    __slots__ = ()


class SendAbort(Effect):
    """An abort goes to the core."""

    __slots__ = ()


class DeliverRefusal(Effect):
    """Whoever waits is told why the call was refused."""

    __slots__ = ()


class DeliverTerminal(Effect):
    """Whoever waits gets the terminal."""

    __slots__ = ()


class DeliverError(Effect):
    """Whoever waits gets an error with the tokens so far."""

    __slots__ = ()


class AbortTurn(Effect):
    """The session's turn is told to end."""

    __slots__ = ()


class Answer(Effect):
    """The operation's caller is answered."""

    __slots__ = ()


class DropMailboxes(Effect):
    """Every message of the lost core's epoch is dropped."""

    __slots__ = ()


class KillCore(Effect):
    """The core's process is killed."""

    __slots__ = ()


class StartCore(Effect):
    """A new core is started."""

    __slots__ = ()


def word_of(kind: type[Effect]) -> str:
    """The word by which rows name this effect: `FreeBlocks` is `free_blocks`."""
    return "".join("_" + letter.lower() if letter.isupper() else letter for letter in kind.__name__).lstrip("_")


BY_WORD: dict[str, type[Effect]] = {word_of(kind): kind for kind in Effect.__subclasses__()}

_named = {parse_effect(text).name for machine in MACHINES for row in machine.rows for text in row.effects}
if _named != set(BY_WORD):
    raise SpecError(f"statemachine/effects.py and the rows differ in effects: {sorted(_named ^ set(BY_WORD))}")
