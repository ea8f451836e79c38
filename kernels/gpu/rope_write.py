"""What stands between the QKV product and attention, in one pass: norms of queries and keys, rotation, and the write to the KV cache."""

from __future__ import annotations

import torch
from torch import Tensor

from quiesce.kernels.gpu.cost import Cost
from quiesce.kernels.gpu.language import jit, jit_for_any, power_of_two, require_contiguous, tl


@jit
def _rotated(a, b, norm, cos, sin, eps, NORM: tl.constexpr, DIM: tl.constexpr):
    """Two halves [heads, DIM / 2] float32, normed and rotated."""
    if NORM:
        half = tl.arange(0, DIM // 2)
        scale = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / DIM + eps)[:, None]
        a = a * scale * tl.load(norm + half).to(tl.float32)[None, :]
        b = b * scale * tl.load(norm + DIM // 2 + half).to(tl.float32)[None, :]
    return a * cos - b * sin, b * cos + a * sin


@jit_for_any("positions", "slots")
def rope_write_kernel(
    qkv, positions, slots, cos, sin, q_norm, k_norm, eps, q_out, k_cache, v_cache,
    NORM: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_BLOCK: tl.constexpr, DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """One program to a token and KV head: the group's queries, one key, one value."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    HALF: tl.constexpr = DIM // 2
    half = tl.arange(0, HALF)[None, :]
    position = tl.load(positions + token)
    c = tl.load(cos + position * DIM + half).to(tl.float32)
    s = tl.load(sin + position * DIM + HALF + half).to(tl.float32)  # the second half has the sine's own sign

    row = qkv + token * (KV_HEADS * (GROUP + 2) * DIM)
    member = tl.arange(0, GROUP_BLOCK)[:, None]
    inside = member < GROUP
    place = (head * GROUP + member) * DIM + half
    a = tl.load(row + place, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(row + place + HALF, mask=inside, other=0.0).to(tl.float32)
    a, b = _rotated(a, b, q_norm, c, s, eps, NORM, DIM)
    written = q_out + token * (KV_HEADS * GROUP * DIM) + place
    tl.store(written, a.to(q_out.dtype.element_ty), mask=inside)
    tl.store(written + HALF, b.to(q_out.dtype.element_ty), mask=inside)

    slot = tl.load(slots + token)
    if slot >= 0:
        key = row + (KV_HEADS * GROUP + head) * DIM + half
        k_a, k_b = _rotated(tl.load(key).to(tl.float32), tl.load(key + HALF).to(tl.float32), k_norm, c, s, eps, NORM, DIM)
        kept = ((slot // BLOCK_SIZE * KV_HEADS + head) * BLOCK_SIZE + slot % BLOCK_SIZE) * DIM + half
        tl.store(k_cache + kept, k_a.to(k_cache.dtype.element_ty))
        tl.store(k_cache + kept + HALF, k_b.to(k_cache.dtype.element_ty))
        value = key + KV_HEADS * DIM
        tl.store(v_cache + kept, tl.load(value).to(v_cache.dtype.element_ty))
        tl.store(v_cache + kept + HALF, tl.load(value + HALF).to(v_cache.dtype.element_ty))


def configuration(heads: int, kv_heads: int, dim: int, block_size: int) -> dict[str, int]:
    """Compile-time parameters of a model's shape."""
    group = heads // kv_heads
    block = power_of_two(group)
    return {
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "GROUP_BLOCK": block,
        "DIM": dim,
        "BLOCK_SIZE": block_size,
        "num_warps": min(4, max(1, block * dim // 512)),
    }


def rope_write(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    q_out: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
) -> None:
    """In float32, rounded once at the end. Heads' dimension: a power of two.

    Args:
        qkv: [tokens, (heads + 2 · kv_heads) · dim], queries, keys, values.
        positions: [tokens] int64, rows of `cos` and `sin`; in range for padding tokens, too.
        slots: [tokens] int64, block · block_size + offset; below 0 no key and value is written.
        cos, sin: [positions, dim] as `kernels.rope.rope_table` makes them: halves alike, the sine's first half negated.
        q_norm, k_norm: [dim] weights of the norm over each head; both None: no norm.
        eps: added to the mean square.
        q_out: [tokens, heads, dim], written for every token.
        k_cache, v_cache: [num_blocks + 1, kv_heads, block_size, dim], written at `slots`.
    """
    require_contiguous(
        qkv=qkv, positions=positions, slots=slots, cos=cos, sin=sin, q_out=q_out, k_cache=k_cache, v_cache=v_cache
    )
    tokens, heads, dim = q_out.shape
    kv_heads, block_size = k_cache.shape[1:3]
    rope_write_kernel[(tokens, kv_heads)](
        qkv, positions, slots, cos, sin, cos if q_norm is None else q_norm, cos if k_norm is None else k_norm, eps, q_out,
        k_cache, v_cache, NORM=q_norm is not None, **configuration(heads, kv_heads, dim, block_size),
    )  # fmt: skip


def rope_write_truth(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    q_out: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
) -> None:
    """The same in plain torch."""
    tokens, heads, dim = q_out.shape
    kv_heads, block_size = k_cache.shape[1:3]
    wide = qkv.view(tokens, heads + 2 * kv_heads, dim).float()
    c, s = cos[positions].float().unsqueeze(1), sin[positions].float().unsqueeze(1)

    def turned(x: Tensor, norm: Tensor | None) -> Tensor:
        if norm is not None:
            x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * norm.float()
        return x * c + torch.roll(x, dim // 2, -1) * s

    q_out.copy_(turned(wide[:, :heads], q_norm))
    kept = slots >= 0
    block, offset = slots[kept] // block_size, slots[kept] % block_size
    k_cache[block, :, offset] = turned(wide[:, heads : heads + kv_heads], k_norm)[kept].to(k_cache.dtype)
    v_cache[block, :, offset] = wide[kept, heads + kv_heads :].to(v_cache.dtype)


def cost(tokens: int, heads: int, kv_heads: int, dim: int, itemsize: int) -> Cost:
    """Reads the packed row, writes as much; the rotary table is small and stays in the L2 cache."""
    return Cost(2 * tokens * (heads + 2 * kv_heads) * dim * itemsize, 9 * tokens * (heads + kv_heads) * dim)
