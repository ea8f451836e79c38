"""Where new weights come from: a folder, a safetensors file, a mapping or an iterable of (name, tensor). No torch.

    pairs, names = open_source(source, info)    what can be known before a tensor is read is refused here
    check_pairs(chunk, info)                    the rest, before it is written
    check_complete(names, info)                 at the end, where nothing else says that the weights are whole

All refusals are `InvalidRequest("source", ...)`; they name the file, the tensor and what would be accepted.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from quiesce.engine.checkpoint import ModelInfo
from quiesce.engine.errors import InvalidRequest, shown
from quiesce.engine.tensor_files import check_files, expected_tensors, ignored, tensor_files

ACCEPTED: Final = "a folder, a safetensors file, a mapping or an iterable of (name, tensor)"
DTYPES: Final = ("float64", "float32", "float16", "bfloat16")
"""Element types that are accepted and converted, as torch and numpy call them: those of `tensor_files.ITEM_BYTES`."""


def refuse(reason: str) -> InvalidRequest:
    """The error for something wrong with a source."""
    return InvalidRequest("source", reason)


def open_source(source: object, info: ModelInfo) -> tuple[Iterator[tuple[str, Any]], frozenset[str] | None]:
    """Opens a source of weights. Files are judged by their headers and a mapping by its entries, all of which must be there.

    Returns:
        The pairs, to be pulled where torch may be imported, and the names among them that the model has a place for; None for an
        iterable, whose names show one by one.

    Raises:
        InvalidRequest: a file, name, shape or type does not fit, or a tensor is missing. Not one tensor has been read.
    """
    if isinstance(source, (str, os.PathLike)):
        files = _check_path(Path(os.fsdecode(source)), info)
        return FilePairs(files), frozenset(name for names in files.values() for name in names)
    if isinstance(source, Mapping):
        names = check_pairs(source.items(), info)
        check_complete(names, info)
        return ((name, source[name]) for name in sorted(names)), names
    if isinstance(source, Iterable):
        return _pairs(source), None
    raise refuse(f"must be {ACCEPTED}, not {shown(source)}")


def check_pair(item: object) -> tuple[str, Any]:
    """An item of an iterable as name and tensor.

    Raises:
        InvalidRequest: it is none.
    """
    if not isinstance(item, Sequence) or isinstance(item, str) or len(item) != 2:
        raise refuse(f"gave {shown(item)}; accepted: pairs of (name, tensor)")
    name, tensor = item
    if not isinstance(name, str):
        raise refuse(f"gave a tensor the name {shown(name)}; accepted: a string")
    if not isinstance(getattr(tensor, "shape", None), tuple) or not hasattr(tensor, "dtype"):
        raise refuse(f"gave tensor {name!r} as {shown(tensor)}; accepted: a torch tensor or a numpy array")
    return name, tensor


def check_pairs(pairs: Iterable[object], info: ModelInfo) -> frozenset[str]:
    """Checks name, shape and element type of each tensor; its values are the device's to judge.

    Returns:
        The names that the model has a place for.

    Raises:
        InvalidRequest: a tensor does not fit.
    """
    expected, names = expected_tensors(info), []
    for item in pairs:
        name, tensor = check_pair(item)
        if ignored(name, info):
            continue
        if name not in expected:
            near = difflib.get_close_matches(name, expected, 1, 0.0) or list(expected)
            raise refuse(
                f"tensor {name!r} has no place in this model; accepted: its {len(expected)} names, such as {near[0]!r}"
            )
        if tuple(tensor.shape) != expected[name]:
            raise refuse(f"tensor {name!r} has shape {list(tensor.shape)}; accepted: {list(expected[name])}")
        dtype = dtype_name(tensor)
        if dtype not in DTYPES:
            raise refuse(f"tensor {name!r} is {dtype}; accepted: {', '.join(DTYPES)}")
        names.append(name)
    return frozenset(names)


def check_complete(names: Iterable[str], info: ModelInfo) -> None:
    """Checks that every tensor of the model is among the names.

    Raises:
        InvalidRequest: one is missing; names the first.
    """
    expected, held = expected_tensors(info), frozenset(names)
    missing = [name for name in expected if name not in held]
    if missing:
        raise refuse(f"tensor {missing[0]!r} is missing ({len(missing)} of {len(expected)} are); accepted: all of them")


def dtype_name(tensor: Any) -> str:
    """`float32`, `bfloat16` and so on, for numpy and torch alike."""
    return str(getattr(tensor.dtype, "name", tensor.dtype)).removeprefix("torch.")


def _check_path(path: Path, info: ModelInfo) -> dict[Path, list[str]]:
    """The tensors to read from each file."""
    try:
        if path.is_dir():
            return check_files(path, tensor_files(path), info)
        if path.is_file():
            return check_files(path.parent, [path], info)
    except InvalidRequest as error:  # that of a checkpoint, which blames `model`
        raise refuse(error.reason) from None
    raise refuse(f"{path}: is neither a folder nor a file; accepted: {ACCEPTED}")


class FilePairs(Iterator[tuple[str, Any]]):
    """The named tensors of some files. Reads when it is pulled, which is done on the device's worker."""

    def __init__(self, files: Mapping[Path, list[str]]) -> None:
        self.files = files
        self._pairs: Iterator[tuple[str, Any]] | None = None

    def __next__(self) -> tuple[str, Any]:
        if self._pairs is None:
            from quiesce.engine.device.weight_update import read_files

            self._pairs = read_files(self.files)
        return next(self._pairs)


def _pairs(source: Iterable[Any]) -> Iterator[Any]:
    """The caller's own code, `__iter__` included, runs where it is pulled."""
    yield from source
