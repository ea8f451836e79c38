"""The engine as a Hypothesis state machine: rules are verbs, bundles nouns, and the model is the declaration itself.

Each rule plays one action of the alphabet on the real engine. Rules that let the world move carry the order in which it does, so that
Hypothesis searches schedules and programs together, and shrinks both. A failure is the same file as the native explorer's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from quiesce.stateful.choices import POS, DelayBounded, Drawn, RandomWalk, Strategy
from quiesce.stateful.driver import ledger_checkpoint
from quiesce.stateful.fuzz.alphabet import CONFIG, IDS, SCHEDULE, VERBS, Action, Nouns, Values
from quiesce.stateful.fuzz.coverage import Coverage
from quiesce.stateful.fuzz.runs import Production
from quiesce.stateful.fuzz.schedule import Schedule

MAX_OPTIONS = 8
"""A drawn number picks among so many options at most; what a choice offers beyond is left to the other strategies."""


@cache
def checkpoint() -> Path:
    """The ledger device's checkpoint, one for the process."""
    return ledger_checkpoint(Path(tempfile.mkdtemp(prefix="quiesce-ledger-")))


def among(values: Values) -> st.SearchStrategy[dict[str, Any]]:
    """One of the values for each name; the ordinary one is the simplest."""
    return st.fixed_dictionaries({name: st.sampled_from(options) for name, options in values.items()})


ORDER = st.lists(st.integers(0, MAX_OPTIONS - 1), max_size=12)
"""What happens next, again and again; past its end, whatever came first."""

THEN = st.sampled_from((1, 3, 0, 8))
"""Turns that the world takes right after."""


CALLED: Bundle[str] = Bundle("calls")


def operator(verb: str) -> Any:
    """The rule of a control call."""
    ids: Values = {} if verb == "weights_checksum" else {"operation_id": IDS}

    def call(self: EngineMachine, given: dict[str, Any], then: int, order: list[int]) -> str:
        return self.begin_call(verb, given, then, order)

    call.__name__ = call.__qualname__ = verb
    return rule(target=CALLED, given=among({**VERBS[verb], **ids}), then=THEN, order=ORDER)(call)


class EngineMachine(RuleBasedStateMachine):
    """Plays on one engine; `teardown` turns the world fair and judges."""

    clients: Bundle[str] = Bundle("clients")
    sessions: Bundle[str] = Bundle("sessions")
    calls = CALLED
    coverage = Coverage()
    """Of all examples of this process."""

    def __init__(self) -> None:
        super().__init__()
        self._nouns = Nouns()
        self._order: Iterable[int] = iter(())
        self._production: Production | None = None
        self._perils: tuple[str, ...] = ()
        """Rules after which little can happen any more: not in every example."""

    @initialize(
        target=clients,
        config=among(CONFIG),
        schedule=among(SCHEDULE),
        strategy=st.sampled_from(("drawn", "drawn", "pos", "random", "delay")),
        seed=st.integers(0, 2**16),
        loaded=st.sampled_from((True, True, True, False)),
        perils=st.sampled_from(((), (), ("fail",), ("shutdown",), ("fail", "shutdown"))),
        guests=st.lists(among(VERBS["connect"]), min_size=1, max_size=4),
        order=ORDER,
    )
    def begin(
        self, config: dict[str, Any], schedule: dict[str, Any], strategy: str, seed: int, loaded: bool, perils: tuple[str, ...],
        guests: list[dict[str, Any]], order: list[int],
    ) -> Any:  # fmt: skip
        strategies: dict[str, Strategy] = {"pos": POS(seed), "random": RandomWalk(seed), "delay": DelayBounded(seed)}
        chosen = strategies.get(strategy) or Drawn(lambda num_options: next(iter(self._order), 0) % num_options)
        self._production = Production(
            checkpoint(), Schedule((), (), config, **schedule), chosen, coverage=self.coverage, follow=seed % 5 == 0
        )
        self._perils = perils
        if loaded:
            self._act("settle", {})
        names = [self._nouns.new("client") for _ in guests]
        for name, given in zip(names, guests, strict=True):
            self._act("connect", given, name=name)
        self._advance(1, order)
        return multiple(*names)

    def _act(self, verb: str, given: dict[str, Any], **nouns: str) -> None:
        if self._production is not None:
            self._production.act(Action(verb, {**given, **nouns}))

    def _advance(self, turns: int, order: list[int]) -> None:
        if turns:
            self._order = iter(order)
            self._act("advance", {"turns": turns})

    # ---- clients --------------------------------------------------------------------------------------------------------------

    @rule(target=clients, given=among(VERBS["connect"]), awake=st.booleans(), then=THEN, order=ORDER)
    def connect(self, given: dict[str, Any], awake: bool, then: int, order: list[int]) -> str:
        if awake:  # or most examples would fall asleep and stay so
            self._order = iter(order)
            self._act("recover", {})
            self._act("settle", {})
        name = self._nouns.new("client")
        self._act("connect", given, name=name)
        self._advance(then, order)
        return name

    @rule(target=clients, client=clients, given=among(VERBS["connect_again"]))
    def connect_again(self, client: str, given: dict[str, Any]) -> str:
        name = self._nouns.new("client")
        self._act("connect_again", given, name=name, client=client)
        return name

    @rule(target=clients, session=sessions, given=among(VERBS["turn"]))
    def turn(self, session: str, given: dict[str, Any]) -> str:
        name = self._nouns.new("client")
        self._act("turn", given, name=name, session=session)
        return name

    @rule(client=clients, given=among(VERBS["read"]))
    def read(self, client: str, given: dict[str, Any]) -> None:
        self._act("read", given, client=client)

    @rule(client=clients)
    def leave(self, client: str) -> None:
        self._act("leave", {}, client=client)

    @rule(client=clients, given=among(VERBS["abort"]))
    def abort(self, client: str, given: dict[str, Any]) -> None:
        self._act("abort", given, client=client)

    @rule(target=sessions)
    def open_session(self) -> str:
        name = self._nouns.new("session")
        self._act("open_session", {}, name=name)
        return name

    @rule(session=sessions)
    def close_session(self, session: str) -> None:
        self._act("close_session", {}, session=session)

    # ---- operators ------------------------------------------------------------------------------------------------------------

    pause, resume = operator("pause"), operator("resume")
    sleep, sleep_tags, wake_up = operator("sleep"), operator("sleep_tags"), operator("wake_up")
    update_weights, begin_weight_update = operator("update_weights"), operator("begin_weight_update")
    load_weights, finish_weight_update = operator("load_weights"), operator("finish_weight_update")
    abort_weight_update, weights_checksum = operator("abort_weight_update"), operator("weights_checksum")
    reset_prefix_cache = operator("reset_prefix_cache")

    @precondition(lambda self: "shutdown" in self._perils)
    @rule(target=calls, given=among(VERBS["shutdown"]))
    def shutdown(self, given: dict[str, Any]) -> str:
        return self.begin_call("shutdown", given, 0, [])

    def begin_call(self, verb: str, given: dict[str, Any], then: int, order: list[int]) -> str:
        name = self._nouns.new("call")
        self._act(verb, given, name=name)
        self._advance(then, order)
        return name

    @rule(call=calls)
    def hang_up(self, call: str) -> None:
        self._act("hang_up", {}, call=call)

    @rule(
        what=st.one_of(
            *(st.tuples(st.just(verb), among(VERBS[verb])) for verb in ("mistake", "abort_all", "abort_unknown", "stray"))
        )
    )
    def bother(self, what: tuple[str, dict[str, Any]]) -> None:
        self._act(*what)

    # ---- the world ------------------------------------------------------------------------------------------------------------

    @precondition(lambda self: "fail" in self._perils)
    @rule(given=among(VERBS["fail"]))
    def fail(self, given: dict[str, Any]) -> None:
        self._act("fail", given)

    @rule(what=st.one_of(*(st.tuples(st.just(verb), among(VERBS[verb])) for verb in ("stall", "go_on"))))
    def hold_the_device(self, what: tuple[str, dict[str, Any]]) -> None:
        self._act(*what)

    @rule(given=among(VERBS["advance"]), order=ORDER)
    def advance(self, given: dict[str, Any], order: list[int]) -> None:
        self._order = iter(order)
        self._act("advance", given)

    @rule(what=st.one_of(*(st.tuples(st.just(verb), among(VERBS[verb])) for verb in ("settle", "pass_time"))), order=ORDER)
    def let_be(self, what: tuple[str, dict[str, Any]], order: list[int]) -> None:
        self._order = iter(order)
        self._act(*what)

    @invariant()
    def nobody_has_found_anything(self) -> None:
        if self._production is not None:
            assert not self._production.oracles.problems, self._production.oracles.problems[0]

    def teardown(self) -> None:
        if self._production is None:
            return
        self._order = iter(())
        outcome = self._production.finish()
        if outcome.problem is not None:
            raise AssertionError(f"{outcome.problem.oracle}: {outcome.problem.text}\n{outcome.schedule.to_json()}")
