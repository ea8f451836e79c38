"""Letters as bytes and back: msgpack with a schema, built once from the annotations of the dataclasses. No pickle, no sockets.

    encode(epoch, front, letter)                  -> bytes
    for_core(data), for_front(data)               -> Envelope

A dataclass is an array `[name, field, ...]`, an array of numbers its bytes, an error its class's name with what it was made of. What
the schema does not name is neither written nor read: bytes are a letter of this schema or `WireError`, whoever made them.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import StrEnum
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Final, Literal, NamedTuple, Union, cast, get_args, get_origin, get_type_hints

import msgspec
import numpy as np
from msgspec.msgpack import Decoder, Encoder, Ext

from quiesce.engine import errors
from quiesce.engine.answers import Ack, Tokens
from quiesce.engine.histogram import Counts
from quiesce.engine.inbox import Control, Submit
from quiesce.engine.link.letters import Envelope, Feed, Files, ToCore, ToFront
from quiesce.engine.measures import HISTOGRAMS, Measured
from quiesce.engine.outputs import Status, Transition
from quiesce.engine.sampling_params import SamplingParams

BIG_INTEGER: Final = 1
"""Extension type of an integer beyond 64 bits: its bytes in two's complement, little-endian."""
BIG: Final = {
    (SamplingParams, "seed"), (SamplingParams, "max_tokens"), (SamplingParams, "min_tokens"), (Submit, "priority"), (Control, "version"),
    (Ack, "seed"), (Tokens, "version"), (Status, "weights"),
}  # fmt: skip
"""Fields in which callers may have integers of any size."""
LEFT_OUT: Final = {(Status, "measured")}
"""Fields that do not travel: `News` has them beside."""
ERRORS: Final[Mapping[str, tuple[type[errors.EngineError], tuple[str, ...]]]] = MappingProxyType({
    kind.__name__: (kind, attributes)
    for kind, attributes in (
        (errors.EngineError, ()),
        (errors.InvalidRequest, ("field", "reason")),
        (errors.DuplicateRequest, ("request_id",)),
        (errors.TransitionConflict, ("state", "event", "allowed", "how_to", "superseded_by")),
        (errors.QueueFull, ()),
        (errors.DeadlineExceeded, ()),
        (errors.Unavailable, ("state", "retry_after")),
        (errors.EngineDead, ("state", "retry_after")),
    )
})  # fmt: skip
"""Errors that callers know, with their attributes. Others travel as their builtin class, or as a RuntimeError that names theirs."""

Convert = Callable[[Any], Any]


class WireError(ValueError):
    """Bytes that are no letter, or a letter that has no bytes."""


class Shape(NamedTuple):
    """How values of one annotation travel."""

    wire: Any
    """The annotation by which msgspec judges what arrives."""
    pack: Convert | None = None
    """None: as they are."""
    unpack: Convert | None = None


# ---- shapes of annotations --------------------------------------------------------------------------------------------------------


def _shape(kind: Any, big: bool = False) -> Shape:
    if kind is int and big:
        return Shape(int | Ext, _packed_integer, _integer)
    if kind in (int, str, bool, float, NoneType) or get_origin(kind) is Literal:
        return Shape(kind)
    if kind is Any:  # an entry of the trace
        return Shape(str | int | float | dict[str, str | list[int]] | None)
    if kind is object:  # the value of a reply
        return _union((Transition, bool, str, NoneType), big)
    if kind is Exception:
        return Shape(tuple[str, str, list[Any], dict[str, Any]], _packed_error, _error)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return Shape(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        return _record(kind)
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _union(parts, big)
    if origin is np.ndarray:
        return _array(np.dtype(get_args(parts[1])[0]))
    return _container(origin, parts, big)


def _container(origin: Any, parts: tuple[Any, ...], big: bool) -> Shape:
    if origin is tuple and parts[-1] is not ...:
        shapes = [_shape(part, big) for part in parts]
        return Shape(tuple[tuple(shape.wire for shape in shapes)], _each_own(shapes, 1), _each_own(shapes, 2))  # type: ignore[misc]  # built here
    if origin in (tuple, list, Sequence):
        item, make = _shape(parts[0], big), list if origin is list else tuple
        wire = list[item.wire] if origin is list else tuple[item.wire, ...]  # type: ignore[name-defined]  # as above
        return Shape(wire, _each(item.pack, list), _each(item.unpack, make) if item.unpack else None)
    key, value = (_shape(part, big) for part in parts)  # a Mapping, dict or MappingProxyType
    unpack = _each_value(value.unpack)
    if origin is MappingProxyType:
        inner, unpack = unpack, lambda found: MappingProxyType(inner(found) if inner else found)
    return Shape(dict[key.wire, value.wire], _each_value(value.pack) or dict, unpack)  # type: ignore[name-defined]  # as above


def _each(convert: Convert | None, make: Callable[[Any], Any]) -> Convert | None:
    return None if convert is None else lambda found: make([convert(one) for one in found])


def _each_value(convert: Convert | None) -> Convert | None:
    return None if convert is None else lambda found: {key: convert(value) for key, value in found.items()}


def _each_own(shapes: Sequence[Shape], which: int) -> Convert | None:
    converts = [cast("Convert | None", shape[which]) for shape in shapes]
    if not any(converts):
        return None
    return lambda found: tuple([one if convert is None else convert(one) for one, convert in zip(found, converts, strict=True)])


def _union(parts: Sequence[Any], big: bool) -> Shape:
    """Dataclasses are told apart by their names, the rest by what msgpack itself tells apart."""
    if any(get_origin(part) is Iterator for part in parts):  # a source of weights: whoever sends it says instead where it is
        parts = (Files, Feed, NoneType)
    shapes = [_shape(part, big) for part in parts]
    by_type = {part: shape.pack for part, shape in zip(parts, shapes, strict=True) if isinstance(part, type)}
    by_wire = {shape.wire: shape.unpack for shape in shapes if isinstance(shape.wire, type)}
    error = next((shape for part, shape in zip(parts, shapes, strict=True) if part is Exception), None)
    several = next((shape for shape in shapes if get_origin(shape.wire) in (tuple, dict)), None)
    if int in by_type and big:
        by_wire |= {Ext: _integer}

    def pack(value: Any) -> Any:
        if error is not None and isinstance(value, Exception):
            return _packed_error(value)
        convert = by_type.get(type(value), several.pack if several is not None and not isinstance(value, str) else None)
        return value if convert is None or value is None else convert(value)

    def unpack(value: Any) -> Any:
        if isinstance(value, (tuple, dict)):
            convert = several.unpack if several is not None else None
        else:
            convert = by_wire.get(type(value))
        return value if convert is None else convert(value)

    return Shape(Union[tuple(shape.wire for shape in shapes)], pack, unpack)  # noqa: UP007  of parts that are known only here


def _array(dtype: np.dtype[Any]) -> Shape:
    def pack(array: Any) -> bytes:
        if array.ndim != 1 or not np.can_cast(array.dtype, dtype):
            raise WireError(f"an array of {array.dtype} and {array.ndim} dimensions instead of {dtype} and one")
        return cast("bytes", array.astype(dtype, copy=False).tobytes())

    return Shape(bytes, pack, lambda data: np.frombuffer(data, dtype))


_records: dict[type, Shape] = {}


def _record(kind: type) -> Shape:
    """A dataclass, as an array that begins with its name."""
    if kind in _records:
        return _records[kind]
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind) if (kind, field.name) not in LEFT_OUT]
    shapes = [
        HISTOGRAM_SHAPE if (kind, name) == (Measured, "histograms") else _shape(hints[name], (kind, name) in BIG)
        for name in names
    ]
    wire = msgspec.defstruct(
        kind.__name__, [(name, shape.wire) for name, shape in zip(names, shapes, strict=True)],
        tag=kind.__name__, array_like=True, forbid_unknown_fields=True, frozen=True,
    )  # fmt: skip
    packs, unpacks = [shape.pack for shape in shapes], [shape.unpack for shape in shapes]
    get = operator.attrgetter(*names, "__class__") if names else None  # of two or more names, which makes it a tuple
    by_name = bool(fields(kind)) and all(field.kw_only for field in fields(kind))
    check = CHECKS.get(kind)

    def pack(value: Any) -> list[Any]:
        if type(value) is not kind:
            raise WireError(f"a {type(value).__name__} instead of a {kind.__name__}")
        packed: list[Any] = [kind.__name__]
        if get is not None:
            packed += [one if convert is None else convert(one) for one, convert in zip(get(value), packs, strict=False)]
        return packed

    def unpack(found: Any) -> Any:
        values = [
            one if convert is None else convert(one)
            for one, convert in zip(msgspec.structs.astuple(found), unpacks, strict=True)
        ]
        made = kind(**dict(zip(names, values, strict=True))) if by_name else kind(*values)
        if check is not None:
            check(made)
        return made

    _records[kind] = Shape(wire, pack, unpack)
    return _records[kind]


def _check_tokens(tokens: Tokens) -> None:
    count = len(tokens.streams)
    if (
        len(tokens.children) != count
        or len(tokens.token_ids) != count
        or not all(0 <= place < count for place in tokens.logprobs)
    ):
        raise WireError("tokens, streams and children of different numbers")


CHECKS: Final[Mapping[type, Callable[[Any], None]]] = MappingProxyType({Tokens: _check_tokens})
"""What no annotation says."""


# ---- integers, histograms, errors -------------------------------------------------------------------------------------------------


def _packed_integer(value: int) -> int | Ext:
    if -(2**63) <= value < 2**64:
        return value
    return Ext(BIG_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))


def _integer(found: int | Ext) -> int:
    if isinstance(found, int):
        return found
    if found.code != BIG_INTEGER:
        raise WireError(f"an extension of type {found.code}")
    return int.from_bytes(found.data, "little", signed=True)


def _packed_histograms(histograms: Mapping[str, Counts]) -> list[tuple[tuple[int, ...], float]]:
    return [(histograms[name].by_bound, histograms[name].total) for name in HISTOGRAMS]


def _histograms(found: Sequence[tuple[tuple[int, ...], float]]) -> Mapping[str, Counts]:
    made = {
        name: Counts(bounds, by_bound, total)
        for (name, (bounds, _)), (by_bound, total) in zip(HISTOGRAMS.items(), found, strict=True)
    }
    if any(len(counts.by_bound) != len(counts.bounds) + 1 for counts in made.values()):
        raise WireError("a histogram with other bounds")
    return MappingProxyType(made)


HISTOGRAM_SHAPE: Final = Shape(list[tuple[tuple[int, ...], float]], _packed_histograms, _histograms)
"""Counts without their bounds, which both ends know, in the order of `HISTOGRAMS`."""


def _packed_error(error: Exception) -> tuple[str, str, list[Any], dict[str, Any]]:
    name = type(error).__name__
    attributes = ERRORS[name][1] if name in ERRORS else ()
    return (name, str(error), [_plain(one) for one in error.args], {each: _plain(getattr(error, each)) for each in attributes})


def _plain(value: object) -> Any:
    if isinstance(value, bool) or value is None or isinstance(value, float):
        return value
    if isinstance(value, int):
        return _packed_integer(int(value))
    if isinstance(value, (tuple, list)):
        return [_plain(one) for one in value]
    return str(value)


def _unplain(found: Any) -> Any:
    if isinstance(found, list):
        return tuple([_unplain(one) for one in found])
    if isinstance(found, Ext):
        return _integer(found)
    if isinstance(found, (str, int, float, NoneType)):
        return found
    raise WireError(f"a {type(found).__name__} in an error")


def _error(found: tuple[str, str, list[Any], dict[str, Any]]) -> Exception:
    name, text, args, attributes = found[0], found[1], _unplain(found[2]), found[3]
    if name in ERRORS:
        kind, expected = ERRORS[name]
        if set(attributes) != set(expected):
            raise WireError(f"{name} with {', '.join(sorted(attributes)) or 'no attributes'}")
        error = kind.__new__(kind)
        error.args = args
        error.__dict__.update({each: _unplain(value) for each, value in attributes.items()})
        return error
    known = getattr(builtins, name, None)
    if isinstance(known, type) and issubclass(known, Exception):
        try:
            return known(*args)
        except TypeError:  # it is made of other things than it keeps
            pass
    return RuntimeError(f"{name}: {text}")


# ---- letters ----------------------------------------------------------------------------------------------------------------------

_LETTERS: Final = {kind: _record(kind) for kind in (*get_args(ToCore), *get_args(ToFront))}


def _subclass(value: Any) -> Any:
    """Numbers and strings of other libraries, as what they are."""
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, np.generic):
        return value.item()
    raise WireError(f"a {type(value).__name__} does not travel")


_encoder: Final = Encoder(enc_hook=_subclass)


def _decoder(letters: Any) -> Decoder[Any]:
    kinds: Any = Union[tuple(_LETTERS[kind].wire for kind in get_args(letters))]  # noqa: UP007  of parts that are known only here
    return Decoder(tuple[int, int, kinds])


_to_core, _to_front = _decoder(ToCore), _decoder(ToFront)


def encode(epoch: int, front: int, letter: ToCore | ToFront) -> bytes:
    """A letter in its envelope.

    A string that is no text (a lone surrogate) is refused on its way to a core; what a core says of it arrives escaped.

    Raises:
        InvalidRequest: it holds such a string.
        WireError: it holds something that does not travel.
    """
    try:
        packed = (epoch, front, _LETTERS[type(letter)].pack(letter))  # type: ignore[misc]  # every letter is a record
        try:
            return _encoder.encode(packed)
        except UnicodeEncodeError:
            if not isinstance(letter, get_args(ToFront)):
                raise
            return _encoder.encode(_escaped(packed))
    except UnicodeEncodeError as error:
        raise errors.InvalidRequest("text", f"{errors.shown(error.object)} cannot be written as UTF-8") from None
    except (TypeError, KeyError, OverflowError, AttributeError) as error:
        raise WireError(f"{type(letter).__name__}: {error}") from error


def _escaped(packed: Any) -> Any:
    """The same with every string as text."""
    if isinstance(packed, str):
        return packed.encode("utf-8", "backslashreplace").decode()
    if isinstance(packed, (list, tuple)):
        return [_escaped(one) for one in packed]
    if isinstance(packed, dict):
        return {_escaped(key): _escaped(value) for key, value in packed.items()}
    return packed


def for_core(data: bytes) -> Envelope:
    """What a front end sent. Raises WireError: anything else."""
    return _decode(_to_core, data)


def for_front(data: bytes) -> Envelope:
    """What a core sent. Raises WireError: anything else."""
    return _decode(_to_front, data)


_BY_NAME: Final = {kind.__name__: shape for kind, shape in _LETTERS.items()}


def _decode(decoder: Decoder[Any], data: bytes) -> Envelope:
    try:
        epoch, front, found = decoder.decode(data)
        unpack = _BY_NAME[type(found).__name__].unpack
        return Envelope(epoch, front, unpack(found))  # type: ignore[misc]  # as above
    except (msgspec.DecodeError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise WireError(f"no letter: {error}") from error
