"""What scenarios play on: the real CPU device with places to wait and ways to fail, weights to load, and what a quiet engine says."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import mmap
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quiesce.engine.api import AsyncEngine
from quiesce.engine.config import EngineConfig
from quiesce.engine.device.cpu import CpuDevice
from quiesce.engine.messages import Moved
from quiesce.engine.model import Model
from quiesce.engine.sampling_params import SamplingParams
from quiesce.engine.tiny import checkpoint_folder
from quiesce.spec.vocabulary import Policy, Tag

NORM = "model.norm.weight"
"""The one tensor in which `other` weights differ: negated, every logit is."""
LIBC = ctypes.CDLL(None, use_errno=True)
LEAD = 32
"""Tokens are asked of a quiet engine in multiples of this, so that a longer story about the same prompt finds them."""


def small_engine(**changes: Any) -> EngineConfig:
    """A small engine of which every request is bit-identical whatever happens around it."""
    settings: dict[str, Any] = {
        "model": str(checkpoint_folder("small")), "num_threads": 1, "dtype": "float32", "max_model_len": 256, "num_kv_blocks": 64,
        "max_num_seqs": 8, "max_num_batched_tokens": 64, "poison_freed_blocks": True, "batch_invariant": True, "step_timeout_s": 600,
    }  # fmt: skip
    return EngineConfig(**(settings | changes))


class Barrier:
    """Where the device's thread waits while it is held; the steps of a story, not the clock, say for how long."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.is_held = False
        self._to_pass = 0
        self.somebody_waits = False

    def hold(self, after: int = 0) -> None:
        with self._changed:
            self.is_held, self._to_pass = True, after
            self.somebody_waits &= after == 0
            self._changed.notify_all()

    def release(self) -> None:
        with self._changed:
            self.is_held = False
            self._changed.notify_all()

    def __call__(self) -> None:
        with self._changed:
            self.somebody_waits = self.is_held and self._to_pass == 0
            released = self._changed.wait_for(lambda: not self.is_held or self._to_pass > 0, 60)
            self.somebody_waits = False
            if self.is_held:
                self._to_pass -= 1
        if not released:
            raise TimeoutError("a held device was never released")


class StageDevice(CpuDevice):
    """The real device. Where it begins to load, to compute or to move memory a story may hold it, or have it fail."""

    def __init__(self, config: EngineConfig, model: Model, barriers: dict[str, Barrier]) -> None:
        super().__init__(config, model.info, model.num_blocks, before_step=self._before, progress=False)
        self._barriers = barriers
        self.broken: set[str] = set()
        self._is_moving = False
        self._locked: list[tuple[int, int]] = []

    def _before(self, step: int) -> None:
        self._barriers["steps"]()
        if "steps" in self.broken:
            raise RuntimeError("the device broke")

    def _load(self) -> Any:
        self._barriers["loading"]()
        return super()._load()

    def _unmap(self, tag: Tag, policy: Policy, blocks: Any) -> Moved:
        self._barriers["moves"]()
        with self._moving():
            return super()._unmap(tag, policy, blocks)

    def _map(self, tag: Tag, policy: Policy) -> Moved:
        self._barriers["moves"]()
        with self._moving():
            return super()._map(tag, policy)

    @contextmanager
    def _moving(self) -> Iterator[None]:
        self._is_moving = True
        try:
            yield
        finally:
            self._is_moving = False

    def _go_on(self) -> None:
        super()._go_on()
        if self._is_moving and "copies" in self.broken:
            raise OSError(errno.EIO, "Input/output error")

    def break_(self, what: str) -> None:
        self.broken.add(what)
        if what == "pages":  # of a locked page the system does not let go
            for tag in Tag:
                page = self._address(tag) // mmap.PAGESIZE * mmap.PAGESIZE
                if LIBC.mlock(ctypes.c_void_p(page), ctypes.c_size_t(1)) != 0:
                    raise OSError(ctypes.get_errno(), "a page could not be locked")
                self._locked.append((page, 1))

    def mend(self, what: str) -> None:
        self.broken.discard(what)
        if what == "pages":
            for page, length in self._locked:
                LIBC.munlock(ctypes.c_void_p(page), ctypes.c_size_t(length))
            self._locked.clear()

    def _address(self, tag: Tag) -> int:
        return self._residences[tag]._arena.view(0, (1,), torch.uint8).data_ptr()

    @property
    def is_loaded(self) -> bool:
        return bool(self._residences) and not self._closing

    def resident_bytes(self, tag: Tag) -> int:
        """Memory that a tag's arena takes now."""
        return self._residences[tag]._arena.resident_bytes()

    def to_be_freed(self, tag: Tag) -> tuple[int, int]:
        """What a sleep of the tag gives back at least and at most: all weights, and of the KV what was ever written."""
        size = self._residences[tag]._arena.num_bytes
        return (size if tag is Tag.weights else self.resident_bytes(tag)), size + mmap.PAGESIZE


class Weights:
    """What updates bring: the shipped weights, others, and some that must be refused."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._original = load_file(checkpoint_folder("small") / "model.safetensors")
        self._digests = {content: asyncio.run(self._sum_up(content)) for content in ("original", "other")}

    async def _sum_up(self, content: str) -> str:
        async with AsyncEngine(small_engine(model=str(self.checkpoint(content)))) as engine:
            return await engine.weights_checksum()

    def digest(self, content: str) -> str:
        """Of an engine that was started with them."""
        return self._digests[content]

    def tensors(self, content: str) -> dict[str, Tensor]:
        found = dict(self._original)
        flipped = {NORM: -found[NORM]}
        match content:
            case "original":
                return found
            case "other" | "failing":
                return found | flipped
            case "part":
                return flipped
            case "missing":
                return {name: value for name, value in (found | flipped).items() if name != NORM}
            case "misshapen":
                return found | {NORM: found[NORM][:-1]}
            case "unknown":
                return found | {"model.norm.wait": found[NORM]}
            case "integers":
                return found | {NORM: found[NORM].to(torch.int32)}
            case "infinite":
                return found | {NORM: torch.full_like(found[NORM], torch.nan)}
        return {}

    def checkpoint(self, content: str) -> Path:
        folder = self._folder / content
        if not folder.exists():
            shutil.copytree(checkpoint_folder("small"), folder)
            tensors = {name: tensor.contiguous().clone() for name, tensor in self.tensors(content).items()}
            save_file(tensors, folder / "model.safetensors")
        return folder

    def source(self, form: str, content: str, barrier: Barrier) -> object:
        """What a caller hands to `update_weights` or `load_weights`."""
        match form:
            case "folder":
                return self.checkpoint(content)
            case "file":
                return str(self.checkpoint(content) / "model.safetensors")
            case "mapping":
                return self.tensors(content)
            case "pairs":
                return self._pairs(content, barrier)
        return 7

    def _pairs(self, content: str, barrier: Barrier) -> Iterator[tuple[str, Tensor]]:
        for number, pair in enumerate(self.tensors(content).items()):
            barrier()
            if content == "failing" and number == 3:
                raise OSError(errno.EIO, "the trainer is gone")
            yield pair


@dataclass(frozen=True, slots=True)
class Claim:
    """That a quiet engine says these tokens. `content`: of its weights."""

    content: str
    prompt: tuple[int, ...]
    params: SamplingParams
    child: int
    tokens: tuple[int, ...]
    where: str


class Undisturbed:
    """What a quiet engine says: no pause, no cache, room for everybody. (That it says the same to one alone: test_on_cpu.py.)"""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._known: dict[tuple[Any, ...], list[tuple[int, ...]]] = {}

    def check(self, claims: Sequence[Claim]) -> None:
        for content in sorted({claim.content for claim in claims}):
            mine = [claim for claim in claims if claim.content == content and claim.tokens]
            asyncio.run(self._learn(content, [claim for claim in mine if len(self._said(claim)) < len(claim.tokens)]))
            for claim in mine:
                said = self._said(claim)[: len(claim.tokens)]
                if said != claim.tokens:
                    raise AssertionError(f"{claim.where} has {claim.tokens}; undisturbed it is {said}")

    def _key(self, claim: Claim) -> tuple[Any, ...]:
        return (claim.content, claim.prompt, claim.params.temperature, claim.params.seed, claim.params.n)

    def _said(self, claim: Claim) -> tuple[int, ...]:
        known = self._known.get(self._key(claim))
        return known[claim.child] if known else ()

    async def _learn(self, content: str, claims: Sequence[Claim]) -> None:
        if not claims:
            return
        wanted: dict[tuple[Any, ...], Claim] = {}
        for claim in claims:
            known = wanted.setdefault(self._key(claim), claim)
            if len(claim.tokens) > len(known.tokens):
                wanted[self._key(claim)] = claim
        model = str(self._weights.checkpoint(content))
        config = small_engine(model=model, enable_prefix_caching=False, max_model_len=512, max_num_batched_tokens=512)
        async with AsyncEngine(config) as engine:
            await asyncio.gather(*(self._ask(engine, claim) for claim in wanted.values()))

    async def _ask(self, engine: AsyncEngine, claim: Claim) -> None:
        params = replace(claim.params, max_tokens=-(-len(claim.tokens) // LEAD) * LEAD, ignore_eos=True)
        async for output in engine.generate(list(claim.prompt), params):
            if output.finished:
                self._known[self._key(claim)] = [child.token_ids for child in output.outputs]


def prompt_of(number: int, length: int, vocab_size: int) -> list[int]:
    """A prompt by its number; two of one number begin alike."""
    return [3 + (37 * number + 11 * place + number * place * place) % (vocab_size - 3) for place in range(length)]


def rss() -> int:
    """Memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
