"""The groups of processes from which weights come over HTTP's control routes; what blocks runs on a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from quiesce.engine.errors import InvalidRequest, TransitionConflict, shown

if TYPE_CHECKING:
    from quiesce.engine.device.transfer import TransferGroup


class Transfers:
    """Groups by name. Raises Unavailable where partners do not come within `timeout_s` seconds."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._groups: dict[str, TransferGroup] = {}
        self._joining: set[str] = set()

    async def join(self, name: str, address: str, port: int, rank: int, world_size: int) -> None:
        """Joins a group; returns when all are there. Raises TransitionConflict: it is joined already, or is being joined."""
        if name in self._groups or name in self._joining:
            raise TransitionConflict("joined", "init_weights_update_group", (), f"destroy_weights_update_group({name!r}) first")
        if not 0 < rank < world_size:
            raise InvalidRequest("rank_offset", f"must be 1 to {world_size - 1}: rank 0 sends, not {shown(rank)}")
        from quiesce.engine.device.transfer import TransferGroup  # torch.distributed: only who joins a group pays for it

        self._joining.add(name)  # before the await: of two calls for one name the second is refused
        try:
            self._groups[name] = await asyncio.to_thread(TransferGroup, name, address, port, rank, world_size, self._timeout_s)
        finally:
            self._joining.discard(name)

    async def receive(self, name: str | None, names: Sequence[str], dtypes: Sequence[str], shapes: Any) -> Mapping[str, Any]:
        """What rank 0 sends. Raises TransitionConflict: no group is joined."""
        group = self._groups.get(name) if name is not None else next(iter(self._groups.values()), None)
        if group is None:
            raise TransitionConflict(
                "without a group", "update_weights_from_distributed", (), "init_weights_update_group first"
            )
        return await asyncio.to_thread(group.receive, names, dtypes, shapes)

    def leave(self) -> None:
        """Leaves every group."""
        self._groups.clear()
