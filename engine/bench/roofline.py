"""The least time that a model's steps can take on a machine: bytes that must cross its memory once, and operations that must be done.

Weights are read once a step, keys and values of each context once; activations stay in the caches and norms are too small to count.
A multiply-add is two operations. Causal attention sees half of a square.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from quiesce.engine.checkpoint import ModelInfo


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine was seen to reach."""

    bytes_per_s: float
    """Of its memory, read and written."""
    flops_per_s: float
    """Of matrix products in the weights' type."""


@dataclass(frozen=True, slots=True)
class Roofline:
    """One model on one machine."""

    info: ModelInfo
    machine: Machine
    itemsize: int = 2
    """Bytes of an element of weights and KV."""

    @property
    def layer_weights(self) -> int:
        """Elements of all layers' matrices."""
        info = self.info
        attention = (2 * info.num_heads + 2 * info.num_kv_heads) * info.head_dim * info.hidden_size
        return info.num_layers * (attention + 3 * info.hidden_size * info.intermediate_size)

    @property
    def head_weights(self) -> int:
        """Elements of the last matrix, from hidden state to logits."""
        return self.info.vocab_size * self.info.hidden_size

    @property
    def weight_bytes(self) -> int:
        """What a step reads of the weights."""
        return (self.layer_weights + self.head_weights) * self.itemsize

    @property
    def kv_bytes_per_token(self) -> int:
        info = self.info
        return 2 * info.num_layers * info.num_kv_heads * info.head_dim * self.itemsize

    @property
    def pair_flops(self) -> int:
        """Operations of one query with one key and its value, over all heads and layers."""
        return 4 * self.info.num_heads * self.info.head_dim * self.info.num_layers

    def decode_s(self, contexts: Sequence[int]) -> float:
        """Least seconds of a step in which each row computes one token and sees `contexts` tokens."""
        seen = sum(contexts)
        moved = self.weight_bytes + seen * self.kv_bytes_per_token
        done = 2 * (self.layer_weights + self.head_weights) * len(contexts) + self.pair_flops * seen
        return max(moved / self.machine.bytes_per_s, done / self.machine.flops_per_s)

    def prefill_flops(self, length: int) -> float:
        """Operations over a prompt of `length` tokens; logits of its last token are not counted."""
        return 2 * self.layer_weights * length + self.pair_flops * length * (length + 1) / 2

    def prefill_s(self, lengths: Sequence[int]) -> float:
        """Least seconds over these prompts together."""
        return sum(map(self.prefill_flops, lengths)) / self.machine.flops_per_s

    def workload_s(self, workload: Workload) -> float:
        """Least seconds in which the prompts can be computed and then all sequences be decoded together.

        The first token of an answer comes from the prompt's step; token n+1 is computed over prompt and n tokens.
        """
        decode_s = 0.0
        for count in range(1, max(workload.output_lens)):
            contexts = [
                length + count
                for length, wanted in zip(workload.prompt_lens, workload.output_lens, strict=True)
                if wanted > count
            ]
            decode_s += self.decode_s(contexts)
        return decode_s + self.prefill_s(workload.prompt_lens)


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests that come all at once."""

    prompts: tuple[tuple[int, ...], ...]
    output_lens: tuple[int, ...]

    @property
    def prompt_lens(self) -> list[int]:
        return [len(prompt) for prompt in self.prompts]

    @staticmethod
    def nano_vllm(count: int = 256, shortest: int = 100, longest: int = 1024, vocab_size: int = 10_001) -> Workload:
        """That of nano-vllm's bench.py, token by token: seed 0, prompts and answers of 100 to 1,024 tokens."""
        rng = random.Random(0)
        prompts = tuple(
            tuple(rng.randint(0, vocab_size - 1) for _ in range(rng.randint(shortest, longest))) for _ in range(count)
        )
        return Workload(prompts, tuple(rng.randint(shortest, longest) for _ in range(count)))
