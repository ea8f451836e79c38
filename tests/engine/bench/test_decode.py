"""How the time of a decode step is taken from what clients see."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from quiesce.engine.api import AsyncEngine
from quiesce.engine.bench.decode import decode_s


class Answering:
    """An engine whose answers come in these pieces."""

    def __init__(self, *pieces: tuple[int, ...]) -> None:
        self._pieces = pieces

    async def generate(self, prompt: object, params: Any) -> AsyncIterator[Any]:
        for piece in self._pieces:
            yield SimpleNamespace(token_ids=piece)
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    "pieces", [((1, 2, 3),), ((1,), (2,), (3,)), ((), (1, 2), (3,))], ids=["whole", "one by one", "merged"]
)
def test_a_step_has_a_time_however_an_answer_is_cut(pieces: tuple[tuple[int, ...], ...]) -> None:
    wall_s, processor_s = asyncio.run(decode_s(cast(AsyncEngine, Answering(*pieces)), [[1], [2]], 3))
    assert 0 < wall_s < 1
    assert processor_s >= 0
