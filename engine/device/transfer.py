"""Tensors from another process: a group of `torch.distributed` (gloo) in which rank 0 broadcasts.

The group is made as SGLang's `init_custom_process_group` makes it, so that trainers that speak to SGLang can speak to this engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, distributed_c10d
from torch.distributed.rendezvous import rendezvous

from quiesce.engine.errors import InvalidRequest, Unavailable

SENDER = 0
"""The rank that has the weights."""


class TransferGroup:
    """One process's place in a group.

    Args:
        rank: of this process, 0 sends.
        timeout_s: seconds after which a partner that does not answer is given up.

    Raises:
        Unavailable: the others did not come.
    """

    def __init__(self, name: str, address: str, port: int, rank: int, world_size: int, timeout_s: float) -> None:
        self.name, self.rank = name, rank
        timeout = timedelta(seconds=timeout_s)
        try:
            store, _, _ = next(rendezvous(f"tcp://{address}:{port}", rank, world_size, timeout=timeout))
            store.set_timeout(timeout)
            made, _ = distributed_c10d._new_process_group_helper(
                world_size, rank, [], distributed_c10d.Backend("gloo"), distributed_c10d.PrefixStore(name, store),
                group_name=distributed_c10d.GroupName(name), timeout=timeout,
            )  # fmt: skip
        except (RuntimeError, ValueError) as error:
            raise Unavailable("without the group's partners", f"{address}:{port}: {error}") from error
        self._group: ProcessGroup = made

    def broadcast(self, tensor: Tensor) -> None:
        """Sends the tensor from rank 0 to every other rank's, in place. All ranks call it with the same shape and dtype.

        Raises:
            Unavailable: a partner is gone.
        """
        try:
            self._group.broadcast(tensor, SENDER).wait()
        except RuntimeError as error:
            raise Unavailable("without the group's partners", str(error)) from error

    def receive(self, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """The tensors that rank 0 broadcasts, in this order.

        Raises:
            InvalidRequest: a dtype is none of torch's.
            Unavailable: a partner is gone.
        """
        found = {
            name: torch.empty(tuple(shape), dtype=_dtype(dtype))
            for name, dtype, shape in zip(names, dtypes, shapes, strict=True)
        }
        for tensor in found.values():
            self.broadcast(tensor)
        return found


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise InvalidRequest("dtypes", f"{name!r} is no dtype of torch")
    return found
