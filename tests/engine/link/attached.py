"""A further front end in a process of its own: `python -m ... ADDRESS LEASE_S` streams without end, and says when it began."""

from __future__ import annotations

import asyncio
import sys

from quiesce.engine.api import AsyncEngine
from tests.engine.link.cores import PROMPT, asks, config


async def main(address: str, lease_s: float) -> None:
    async with AsyncEngine(config(connect=address, heartbeat_timeout_s=lease_s)) as engine:
        async for _ in engine.generate(PROMPT, asks(1900), request_id="theirs"):
            print("streaming", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
