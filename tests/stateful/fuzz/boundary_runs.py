"""The fuzzer's programs through the boundary of a core process: the same alphabet and oracles, and the faults of a link besides.

After a loss every call and stream is resolved once, with `EngineDead` or an `error` terminal that carries true tokens and says whether it
is worth asking again; there is never more than one core; and where restarts are left the next one serves.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from quiesce.engine import errors
from quiesce.engine.answers import Reply
from quiesce.engine.api import AsyncEngine
from quiesce.engine.config import EngineConfig
from quiesce.engine.core import Core
from quiesce.engine.link import codec
from quiesce.engine.link.letters import News
from quiesce.engine.outputs import CompletionOutput
from quiesce.engine.stream import FrontEnd
from quiesce.stateful.driver import ledger_config
from quiesce.stateful.fuzz.alphabet import Action
from quiesce.stateful.fuzz.boundary import TO_CORE, TO_FRONT, BoundaryLink, LoopedCore
from quiesce.stateful.fuzz.clients import Client, Truth, ledger_truth
from quiesce.stateful.fuzz.rig import Rig
from quiesce.stateful.fuzz.runs import Production
from quiesce.stateful.fuzz.schedule import Schedule
from quiesce.stateful.fuzz.stock import check_balance, check_clients, check_engine, check_nothing_left
from quiesce.stateful.ledger_device import LedgerDevice
from quiesce.stateful.loop import DeterministicLoop
from quiesce.statemachine.trace import Trace

LEASE_S: Final = 1e6
"""Of a front end's signs of life: beyond all times that pass; a link that is cut is found silent by itself."""


def _replies(core: LoopedCore) -> bool:
    letters = [codec.for_front(data).letter for data in core.under_way if data is not None]
    return any(isinstance(letter, News) and any(isinstance(one, Reply) for one in letter.answers) for letter in letters)


def _memory(core: LoopedCore) -> set[str]:
    return {str(tag.state) for tag in core.core.world.memory.values()}


POINTS: Final[Mapping[str, Callable[[LoopedCore], bool]]] = {
    "at once": lambda core: True,
    "connecting": lambda core: not core.number,
    "mid-reply": _replies,
    "mid-stream": lambda core: bool(core.core.world.by_state["running"]) and bool(core.under_way),
    "mid-drain": lambda core: core.core.world.engine.state in ("draining", "stopping"),
    "mid-wake": lambda core: "restoring" in _memory(core),
    "mid-sleep": lambda core: "releasing" in _memory(core),
    "mid-update": lambda core: core.core.world.weights.state in ("updating", "committing"),
    "with letters that it has not read": lambda core: core.inbound.poll() > 0,
}
"""Protocol points at which a core is killed."""
CONFIG: Final[Mapping[str, tuple[Any, ...]]] = {"max_restarts": (1, 0, 2, 5), "reorders": (False, True)}
TAGS, MOVES, DELAYS = ("kv_cache", "weights"), ("restored", "released", "zeroed"), (0, 1, 3)


def with_losses(schedule: Schedule, rng: random.Random) -> Schedule:
    """The schedule with restarts, and with cores that are killed and connections that drop."""
    actions = list(schedule.actions)
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        given = {"what": rng.choice(("core", "core", "core", "hang")), "tag": rng.choice(TAGS), "to": rng.choice(MOVES), "after": rng.choice(DELAYS)}  # fmt: skip
        actions.insert(rng.randint(0, len(actions)), Action("fail", given))
    drawn = {name: rng.choice(values) for name, values in CONFIG.items()}
    return replace(schedule, actions=tuple(actions), config={**schedule.config, **drawn})


class BoundaryEngine(AsyncEngine):
    """`AsyncEngine` whose core process is one of the deterministic loop."""

    def __init__(self, loop: DeterministicLoop, config: EngineConfig, reorders: bool) -> None:
        self._looped, self._reorders = loop, reorders
        super().__init__(config)

    def _in_a_process(self) -> FrontEnd:
        trace = Trace(None)
        self.link = BoundaryLink(self._looped, self.config, self.model, trace, self._made, self._reorders)
        self._link = self.link
        self.stand_in(self.link.core)
        front = FrontEnd(self.link, trace, self._looped.time, 0.0, self.config, self.link)
        self.link.bind(front.connection, self._gone)
        return front

    def _made(self) -> tuple[Core, LedgerDevice]:
        config, model, loop = self.config, self.model, self._looped
        device = LedgerDevice(
            model.num_blocks,
            config.block_size,
            model.info.vocab_size,
            lambda name, work: loop.offer(name, work, channel="device"),
        )
        return Core(config, model.info, device, max_model_len=model.max_model_len, tokenizer=model.tokenizer), device

    def stand_in(self, core: LoopedCore) -> None:
        """Whoever looks into the engine sees this core."""
        self._core = core.core


class BoundaryRig(Rig):
    """An engine over the ledger device, in a process that the loop plays."""

    engine: BoundaryEngine

    def _make(self, folder: Path, settings: Mapping[str, Any]) -> AsyncEngine:
        given = {"backend": "process", "heartbeat_timeout_s": LEASE_S, **settings}
        reorders = given.pop("reorders", False)
        engine = BoundaryEngine(self.loop, ledger_config(folder, **given), reorders)
        self.link = engine.link
        self.device = self.link.core.device
        self._truths: list[Truth] = []
        return engine

    def follow(self, core: Core) -> None:
        """Another core counts its versions anew: tokens are true if they are so under one core's."""
        self.numbers = {0: 0}
        super().follow(core)
        self.device = self.link.core.device
        self._truths.append(ledger_truth(self.numbers))
        self.truth = self._true_of_one

    def _true_of_one(self, client: Client, child: CompletionOutput) -> None:
        for truth in self._truths[:-1]:
            with suppress(AssertionError, KeyError):
                return truth(client, child)
        return self._truths[-1](client, child)

    @property
    def core_is_dead(self) -> bool:
        """Nobody is there who could be asked, now or for good."""
        return not self.engine._front.connection.is_up

    @core_is_dead.setter
    def core_is_dead(self, value: bool) -> None:
        """The link says it."""

    def fail(self, what: str, tag: str, to: str, after: int) -> None:
        self.faulty = True
        if what == "core":
            self._kill_at(tuple(POINTS)[(TAGS.index(tag) * 9 + MOVES.index(to) * 3 + DELAYS.index(after)) % len(POINTS)])
        elif what == "hang":
            self.link.cut(self.link.core)
        else:
            super().fail(what, tag, to, after)

    def _kill_at(self, point: str) -> None:
        if point == "at once":
            self.link.kill(self.link.core)
        else:
            self.link.dies_when = POINTS[point]

    def stall(self, what: str = "step") -> None:
        """Letters are late as well, one way or the other."""
        super().stall(what)
        name = (TO_CORE, TO_FRONT)[what == "move"]
        self._held.append(name)
        self.loop.hold(name)

    def heal(self) -> None:
        self.link.dies_when = None
        super().heal()


class BoundaryProduction(Production):
    """One run through the boundary."""

    rig: BoundaryRig

    def __init__(self, folder: Path, schedule: Schedule, strategy: Any, **options: Any) -> None:
        super().__init__(folder, schedule, strategy, **{**options, "follow": False})
        self.link = self.rig.link
        self.link.when_started = self._started
        self.rig.engine._core.lifecycle.__dict__.pop("plan")  # an abort is a letter, and letters take their time
        mistake, front = self.player.do_mistake, self.rig.engine._front
        self.player.do_mistake = lambda which: mistake(which) if front.connection.is_up else None  # type: ignore[method-assign]

    def _started(self, core: LoopedCore) -> None:
        """Another core is watched as the first was."""
        self.rig.engine.stand_in(core)
        self.rig.follow(core.core)
        self.oracles.watch_core(core.core, lambda: self.rig.places, lambda: self.rig.launched)

    async def _end(self) -> None:
        player, oracles, rig = self.player, self.oracles, self.rig
        await player.turn_fair()
        check_clients(player, rig, oracles)
        if not self.link.num_losses:
            check_balance(player, rig, oracles)
        check_engine(player, rig, oracles)
        self._check_losses()
        if not rig.core_is_dead:
            oracles.expect(
                "balance",
                self.link.is_up_to_date,
                f"the front end says {rig.engine.status()}, the core {rig.engine._core.status}",
            )
        check_nothing_left(player, rig, oracles)
        with suppress(errors.EngineError):
            await rig.engine.shutdown(timeout=0)
        check_nothing_left(player, rig, oracles)
        for problem in self.link.problems:
            oracles.found("left", problem)
        alive = [core.epoch for core in self.link.cores if core.is_alive and not core.is_over]
        oracles.expect("left", not alive, f"cores outlive the engine: {alive}")

    def _check_losses(self) -> None:
        """Who lost a core is told whether to ask again, and where restarts are left the next core serves."""
        engine, oracles, losses = self.rig.engine, self.oracles, self.link.num_losses
        most = engine.config.max_restarts
        restarted = losses <= most and not self.player.shut_down and not self.link.has_final_loss
        if losses and restarted and not self.rig.fatal:
            oracles.expect(
                "hang", engine.status().engine == "running", f"restarts are left, and it is {engine.status().engine}"
            )
        for client in self.player.clients.values():
            if client.last is None or not (client.last.error or "").startswith("the core ended"):
                continue
            if most == 0:
                oracles.expect("answer", not client.last.retryable, f"{client.name} may ask again, and no core will come")
            elif restarted:
                oracles.expect("answer", client.last.retryable, f"{client.name} is not told that it may ask again")
        oracles.expect("left", len(self.link.cores) <= most + 1, f"{len(self.link.cores)} cores; {most} restarts")
