"""Short words for tests of control calls: the same engine, clients and loop as in `scenario`, and an operator beside them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from quiesce.engine.tensor_files import expected_tensors
from quiesce.stateful.scenario import Client, World, prompt_of

T = TypeVar("T")


async def begun(world: World, call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Makes the call, and lets happen whatever can."""
    task = asyncio.ensure_future(call)
    await world.loop.wait_settled()
    return task


async def streaming(world: World, *clients: Client, step: int) -> list[asyncio.Task[Client]]:
    """Lets clients stream until this step is launched, which is held: `world.loop.release(f"step {step}")` goes on."""
    world.loop.hold(f"step {step}")
    tasks = [asyncio.ensure_future(world.ask(client)) for client in clients]
    await world.loop.wait_settled()
    return tasks


def some_clients(count: int, max_tokens: int = 8, first: int = 0) -> list[Client]:
    return [Client(f"r{number}", prompt_of(number, 5 + number), max_tokens) for number in range(first, first + count)]


def weights_of(world: World, value: float = 0.5) -> dict[str, NDArray[np.float32]]:
    """Every tensor of the model, filled with a number."""
    return {name: np.full(shape, value, np.float32) for name, shape in expected_tensors(world.engine.model.info).items()}


def facts(world: World) -> tuple[str, dict[str, str], dict[str, str], tuple[int | str, str]]:
    """Engine, held tokens, memory and weights, as the status tells."""
    status = world.engine.status()
    return status.engine, dict(status.pause_owners), dict(status.memory), status.weights
