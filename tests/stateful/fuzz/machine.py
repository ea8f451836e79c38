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
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from quiesce.stateful.choices import POS, DelayBounded, Drawn, RandomWalk, Strategy
from quiesce.stateful.driver import ledger_checkpoint
from quiesce.stateful.fuzz.alphabet import CALLS, CONFIG, IDS, SCHEDULE, VERBS, Action, Nouns, Values
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


def control_call(verb: str) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    ids: Values = {} if verb in ("weights_checksum", "shutdown") else {"operation_id": IDS}
    return st.tuples(st.just(verb), among({**VERBS[verb], **ids}))


ORDER = st.lists(st.integers(0, MAX_OPTIONS - 1), max_size=12)
"""What happens next, again and again; past its end, whatever came first."""


class EngineMachine(RuleBasedStateMachine):
    """Plays on one engine; `teardown` turns the world fair and judges."""

    clients: Bundle[str] = Bundle("clients")
    sessions: Bundle[str] = Bundle("sessions")
    calls: Bundle[str] = Bundle("calls")
    coverage = Coverage()
    """Of all examples of this process."""

    def __init__(self) -> None:
        super().__init__()
        self._nouns = Nouns()
        self._order: Iterable[int] = iter(())
        self._production: Production | None = None

    @initialize(
        config=among(CONFIG),
        schedule=among(SCHEDULE),
        strategy=st.sampled_from(("drawn", "drawn", "pos", "random", "delay")),
        seed=st.integers(0, 2**16),
    )
    def begin(self, config: dict[str, Any], schedule: dict[str, Any], strategy: str, seed: int) -> None:
        strategies: dict[str, Strategy] = {"pos": POS(seed), "random": RandomWalk(seed), "delay": DelayBounded(seed)}
        chosen = strategies.get(strategy) or Drawn(lambda num_options: next(iter(self._order), 0) % num_options)
        self._production = Production(checkpoint(), Schedule((), (), config, **schedule), chosen, coverage=self.coverage)

    def _act(self, verb: str, given: dict[str, Any], **nouns: str) -> None:
        if self._production is not None:
            self._production.act(Action(verb, {**given, **nouns}))

    # ---- clients --------------------------------------------------------------------------------------------------------------

    @rule(target=clients, given=among(VERBS["connect"]))
    def connect(self, given: dict[str, Any]) -> str:
        name = self._nouns.new("client")
        self._act("connect", given, name=name)
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

    @rule(given=among(VERBS["abort_unknown"]))
    def abort_unknown(self, given: dict[str, Any]) -> None:
        self._act("abort_unknown", given)

    @rule()
    def abort_all(self) -> None:
        self._act("abort_all", {})

    @rule(target=sessions)
    def open_session(self) -> str:
        name = self._nouns.new("session")
        self._act("open_session", {}, name=name)
        return name

    @rule(session=sessions)
    def close_session(self, session: str) -> None:
        self._act("close_session", {}, session=session)

    # ---- operators ------------------------------------------------------------------------------------------------------------

    @rule(target=calls, call=st.one_of(*(control_call(verb) for verb in CALLS)))
    def call(self, call: tuple[str, dict[str, Any]]) -> str:
        name = self._nouns.new("call")
        self._act(*call, name=name)
        return name

    @rule(call=calls)
    def hang_up(self, call: str) -> None:
        self._act("hang_up", {}, call=call)

    @rule(given=among(VERBS["mistake"]))
    def mistake(self, given: dict[str, Any]) -> None:
        self._act("mistake", given)

    # ---- the world ------------------------------------------------------------------------------------------------------------

    @rule(given=among(VERBS["fail"]))
    def fail(self, given: dict[str, Any]) -> None:
        self._act("fail", given)

    @rule()
    def stall(self) -> None:
        self._act("stall", {})

    @rule()
    def go_on(self) -> None:
        self._act("go_on", {})

    @rule(given=among(VERBS["advance"]), order=ORDER)
    def advance(self, given: dict[str, Any], order: list[int]) -> None:
        self._order = iter(order)
        self._act("advance", given)

    @rule(order=ORDER)
    def settle(self, order: list[int]) -> None:
        self._order = iter(order)
        self._act("settle", {})

    @rule(given=among(VERBS["pass_time"]), order=ORDER)
    def pass_time(self, given: dict[str, Any], order: list[int]) -> None:
        self._order = iter(order)
        self._act("pass_time", given)

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
