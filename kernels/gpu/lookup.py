"""Token ids that never leave the device: what a row sampled in one step is its input in the next."""

from __future__ import annotations

from torch import Tensor

from quiesce.kernels.gpu.cost import Cost
from quiesce.kernels.gpu.language import ceil_div, jit_for_any, require_contiguous, tl

FROM_DEVICE = -1
"""In `host_ids`: the row's sampled token. As `engine.messages.FROM_DEVICE`."""
BLOCK = 256


@jit_for_any("host_ids", "rows", "next_token", "out", "lost", "count")
def input_ids_kernel(host_ids, rows, next_token, out, lost, count, FROM_DEVICE: tl.constexpr, BLOCK: tl.constexpr):
    """One program to BLOCK tokens."""
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = token < count
    host = tl.load(host_ids + token, mask=inside, other=0)
    chained = inside & (host == FROM_DEVICE)
    row = tl.load(rows + token, mask=chained, other=0)
    taken = tl.load(next_token + row, mask=chained, other=0)
    ids = tl.where(chained, taken, host)
    tl.store(out + token, tl.maximum(ids, 0), mask=inside)
    tl.store(lost + token, (chained & (taken < 0)).to(tl.int32), mask=inside)


@jit_for_any("sampled", "rows", "next_token", "count")
def keep_sampled_kernel(sampled, rows, next_token, count, BLOCK: tl.constexpr):
    """One program to BLOCK samples."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows + index, mask=index < count, other=-1)
    tl.store(next_token + row, tl.load(sampled + index, mask=index < count, other=0), mask=row >= 0)


def input_ids(host_ids: Tensor, rows: Tensor, next_token: Tensor, out: Tensor, lost: Tensor) -> None:
    """Replaces each `FROM_DEVICE` by its row's sampled token.

    Args:
        host_ids: [tokens] int64, `FROM_DEVICE` where the row's last sampled token is meant.
        rows: [tokens] int32, batch row of each token; read only where its id comes from the device.
        next_token: [max_num_seqs] int64, the last sampled token of each batch row, -1 where there is none.
        out: [tokens] int64, written: ids >= 0.
        lost: [tokens] int32, written: 1 where the id was to come from the device and there is none (`out` is 0 there), else 0.
    """
    require_contiguous(host_ids=host_ids, rows=rows, next_token=next_token, out=out, lost=lost)
    count = out.shape[0]
    input_ids_kernel[(ceil_div(count, BLOCK),)](
        host_ids, rows, next_token, out, lost, count, FROM_DEVICE=FROM_DEVICE, BLOCK=BLOCK, num_warps=4
    )


def keep_sampled(sampled: Tensor, rows: Tensor, next_token: Tensor) -> None:
    """Stores what was sampled, -1 included, for the step that follows.

    Args:
        sampled: [samples] int64.
        rows: [samples] int32, distinct batch rows; below 0 (padding) nothing is stored.
        next_token: [max_num_seqs] int64, written at `rows`.
    """
    require_contiguous(sampled=sampled, rows=rows, next_token=next_token)
    count = sampled.shape[0]
    keep_sampled_kernel[(ceil_div(count, BLOCK),)](sampled, rows, next_token, count, BLOCK=BLOCK, num_warps=4)


def input_ids_truth(host_ids: Tensor, rows: Tensor, next_token: Tensor, out: Tensor, lost: Tensor) -> None:
    """The same in plain torch."""
    chained = host_ids == FROM_DEVICE
    taken = next_token[rows.long().where(chained, 0)]
    ids = taken.where(chained, host_ids)
    out.copy_(ids.clamp(min=0))
    lost.copy_(chained & (taken < 0))


def keep_sampled_truth(sampled: Tensor, rows: Tensor, next_token: Tensor) -> None:
    """The same in plain torch."""
    kept = rows >= 0
    next_token[rows[kept].long()] = sampled[kept]


def cost(tokens: int, samples: int) -> Cost:
    """Both directions: ids, rows and flags of a step's tokens, and its samples."""
    return Cost(tokens * (8 + 4 + 8 + 8 + 4) + samples * (8 + 4 + 8), 0)
