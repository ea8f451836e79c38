"""The proof for any number of requests: everything is shown, each rule and lemma is needed, and the solver's actions are the explorers'."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest
import z3

from quiesce.proofs import explorer, search
from quiesce.proofs.changes import CHANGES
from quiesce.proofs.edits import edited
from quiesce.proofs.induction import How, Kind, Proof, Prover, conjuncts, promises
from quiesce.proofs.lemmas import LEMMAS
from quiesce.proofs.model import Builder, Model
from quiesce.proofs.rules import RULES, Without
from quiesce.proofs.unbounded import State, Unbounded, UnboundedBuilder
from quiesce.proofs.world import World
from quiesce.spec import CATALOG, FACTS, MACHINES, PROPERTIES
from quiesce.spec.check import check
from quiesce.spec.language import Judge, Machine, Property, Row, SpecError
from tests.proofs.mutants import Mutate, mutated, without

ACTIONS, CONJUNCTS = 227, 31


@pytest.fixture(scope="module")
def proof() -> Proof:
    return Prover().run()


def test_every_obligation_is_met_for_any_number_of_requests(proof: Proof) -> None:
    assert [(one.kind, one.action, one.conjunct, one.how, one.counterexample) for one in proof.unmet] == []


def test_no_obligation_is_passed_over(proof: Proof) -> None:
    prover = Prover()
    assert (len(prover.world.model.actions), len(prover.invariant)) == (ACTIONS, CONJUNCTS)
    assert len(prover.invariant) == len(promises()) + len(LEMMAS)
    each = Counter(one.kind for one in proof.obligations)
    assert each[Kind.begins] == CONJUNCTS
    assert each[Kind.kept] == ACTIONS * CONJUNCTS
    assert each[Kind.changed] == ACTIONS * len(CHANGES)
    assert each[Kind.possible] == ACTIONS + len(list(prover.world.builder.own_rows()))
    spoken_of = [(number, move) for move in prover.moves for number in move.before]
    silent = {move.name.partition("[")[0] for move in prover.moves if not move.before}
    assert each[Kind.promised] == len(spoken_of) + sum(not move.before for move in prover.moves)
    assert silent == {"T9_granted_by_a_drain"}, "what it demands follows from what its actions write"
    shadowed = {one.action for one in proof.obligations if one.how is How.shadowed}
    assert all("weights=none, kv_cache=none" in name for name in shadowed), "a sleep of level 0 meets the rows of level 0"


def test_whatever_the_declaration_calls_proved_for_any_number_is_proved_here() -> None:
    prover = Prover()
    shown = {*prover.invariant, *(move.name.partition("[")[0] for move in prover.moves), *(change.name for change in CHANGES)}
    claimed = {prop.name for prop in PROPERTIES if Judge.any_n_proof in prop.judges}
    assert {name for name in claimed if not any(one == name or one.startswith(name) for one in shown)} == set()


def test_two_owners_of_tokens_change_nothing() -> None:
    assert Prover(callers=("caller", "another")).run().unmet == []


def test_lemmas_are_sentences_in_the_language_of_guards_and_true_wherever_one_request_can_be() -> None:
    check(MACHINES, FACTS, LEMMAS)
    builder = Builder(World.engine(1))
    lemmas = {lemma.name: builder.guard("engine", "", lemma.when) for lemma in LEMMAS}
    assert dict(explorer.explore(builder.build(), lemmas).stories) == {}


JUDGED = [rule for rule in RULES if rule.rule in ("R5", "R6", "R9", "R12", "R15b", "R16", "R18", "R25", "R34")]


# ---- the proof can fail -------------------------------------------------------------------------------------------------------------


def unmet(prover: Prover, *events: str) -> set[str]:
    """What is not shown, looking at these events only."""
    actions = [action for action in prover.world.model.actions if not events or action.event.name in events]
    assert actions
    return {one.conjunct for one in prover.run(actions).unmet}


def changed_events(machine: str, machines: Mapping[str, Machine]) -> set[str]:
    return {str(row.event) for row in set(CATALOG.machines[machine].rows) ^ set(machines[machine].rows)}


@pytest.mark.parametrize("rule", JUDGED, ids=lambda rule: rule.rule)
def test_without_the_rule_something_is_not_shown(rule: Without) -> None:
    machines = edited(rule.edits)
    assert unmet(Prover(machines), *changed_events(rule.edits[0].machine, machines)) - {""} != set()


def test_a_rule_that_no_promise_misses_in_the_world_of_one_request_is_missed_by_the_proof() -> None:
    machines = mutated("engine", without("(event.mode != wait or not granted or not begun_left)", "pause"))
    assert unmet(Prover(machines), "pause") == {"nothing_begun_waits"}


def dropping(event: str, effect: str) -> Mutate:
    def change(row: Row) -> Row:
        return replace(row, effects=tuple(text for text in row.effects if effect not in text)) if row.event == event else row

    return change


CHANGED: list[tuple[str, Mutate, str, tuple[str, ...]]] = [
    ("request", dropping("reap", "free_blocks"), "S6_conservation", ("reap",)),
    ("request", dropping("start", "allocate_blocks"), "S6_conservation", ("start",)),
    ("weights", lambda row: replace(row, sets=()) if row.event == "commit_keep" else row, "S9_version_coherence", ("commit_keep",)),
    ("pause_token", lambda row: replace(row, source=("free", "keep", "wait", "abort")) if row.target == "keep" else row,
     "S11_ownership", ("pause",)),
    ("engine", lambda row: replace(row, also=(*row.also, "pause_token[caller].release")) if row.event == "wake_up" else row,
     "S11_ownership", ("wake_up",)),
]  # fmt: skip


@pytest.mark.parametrize(("machine", "change", "breaks", "events"), CHANGED)
def test_a_promise_on_changes_sees_what_no_state_shows(
    machine: str, change: Mutate, breaks: str, events: tuple[str, ...]
) -> None:
    assert breaks in unmet(Prover(mutated(machine, change)), *events)


NEEDED = [
    ("a_goal_holds_its_token", "drained_update"),
    ("gated_means_granted", "begin_update"),
    ("open_means_not_granted", "pause"),
    ("nothing_begins_while_loading", "ready"),
    ("whole_until_granted", "undrain"),
    ("a_drain_is_mapped", "undrain"),
    ("chosen_by_a_sleep", "undrain"),
    ("no_drain_over_an_update", "withdraw_update"),
    ("an_empty_slot_names_nobody", "fail"),
    ("named_means_holding", "aborted"),
    ("holding_means_begun", "ready"),
    ("steps_only_where_work_is", "ready"),
    ("stale_means_holding_or_faulty", "start"),
]


@pytest.mark.parametrize(("name", "event"), NEEDED)
def test_without_the_lemma_the_proof_does_not_go_through(name: str, event: str) -> None:
    rest = [lemma for lemma in LEMMAS if lemma.name != name]
    assert len(rest) == len(LEMMAS) - 1
    assert unmet(Prover(lemmas=rest), event) != set()


def test_a_sentence_that_is_not_so_is_not_proved() -> None:
    wrong = Property("wrong", LEMMAS[0].modality, "Nobody ever runs.", (Judge.any_n_proof,),
                     when="not any_request(each.state == running)")  # fmt: skip
    assert unmet(Prover(lemmas=[*LEMMAS, wrong]), "start") == {"wrong"}


def test_a_quantifier_inside_another_is_refused() -> None:
    builder = UnboundedBuilder()
    world = Unbounded(builder)
    inner = builder.guard("engine", "", "any_request(each.live)")
    with pytest.raises(SpecError, match="quantifier"):
        world.formula(builder.every(inner), world.before)
    with pytest.raises(SpecError, match="binds"):
        world.formula(builder.guard("request", "each", "live"), world.before)


# ---- the shortcuts ------------------------------------------------------------------------------------------------------------------


def test_what_is_kept_because_it_is_untouched_is_the_same_formula_after_the_action() -> None:
    prover = Prover()
    world, untouched = prover.world, 0
    before = {name: world.formula(tree, world.before) for name, tree in prover.invariant.items()}
    for action in world.model.actions[::3]:
        after, writes = world.after(action), world.writes(action)
        for name, tree in prover.invariant.items():
            if not world.reads(tree) & writes:
                untouched += 1
                assert world.formula(tree, after).eq(before[name]), (action.name, name)
    assert untouched > 1000


def test_changes_that_do_not_concern_an_action_are_true_of_it() -> None:
    prover = Prover()
    world = prover.world
    pairs = [(action, change) for action in world.model.actions for change in CHANGES
             if not change.concerns(world, action, world.writes(action))]  # fmt: skip
    for action, change in random.Random(5).sample(pairs, 60):
        solver = z3.Solver()
        solver.add(world.formula(action.guard, world.before), z3.Not(change.claim(world, action, world.after(action))))
        assert solver.check() == z3.unsat, (action.name, change.name)


@pytest.mark.parametrize("bit", ["free > 0", "oldest"])
def test_the_invariant_may_not_speak_of_what_changes_without_being_written(bit: str) -> None:
    sentence = Property("wrong", LEMMAS[0].modality, "", (Judge.any_n_proof,), when=f"not live or {bit}", machine="request")
    with pytest.raises(SpecError, match=r"nothing is known|of no other"):
        Prover(lemmas=[*LEMMAS, sentence]).run([])


def test_an_action_that_an_earlier_row_does_not_stand_for_is_not_excused() -> None:
    """A row that can never be taken for a wait, though rows before it can."""

    def blocked(row: Row) -> Row:
        if row.event != "begin_update" or "paused" not in row.source:
            return row
        return replace(row, when=f"({row.when or 'true'}) and (event.mode != wait or engine.state == running)")

    prover = Prover(mutated("engine", blocked))
    actions = [action for action in prover.world.model.actions if action.event.name == "begin_update"]
    missing = [one for one in prover.run(actions).obligations if one.kind is Kind.possible and not one.is_met]
    assert {one.action.partition(",")[0] for one in missing} == {"engine.begin_update(mode=wait)"}
    assert {one.how for one in missing} == {How.failed}


# ---- the solver's actions are the explorers' ----------------------------------------------------------------------------------------


def walked(model: Model, length: int) -> list[search.State]:
    """States on a walk at random, seeded; it begins anew where there is no way on."""
    chance = random.Random(7)
    guards = [search.compile_guard(action.guard) for action in model.actions]
    applies = [search.compile_assigns(action.assigns) for action in model.actions]
    state, found = model.initial, []
    for _ in range(length):
        allowed = [number for number, guard in enumerate(guards) if guard(state)]
        quiet = [number for number in allowed if model.actions[number].event.name not in ("fail", "stop", "shutdown")]
        state = applies[chance.choice(quiet or allowed)](state) if allowed else model.initial
        found.append(state)
    return found


def placed(world: Unbounded, model: Model, state: search.State, requests: list[z3.ExprRef]) -> State:
    """A state of the finite world of two requests as the solver sees it."""

    def literal(full: str, like: z3.ExprRef) -> z3.ExprRef:
        value = state[model.place[full]]
        return z3.BoolVal(bool(value)) if z3.is_bool(like) else z3.BitVecVal(value, like.sort())

    terms = {place: literal(world.model.variables[place].name, term) for place, term in world.before.globals.items()}
    functions = {}
    for short, function in world.before.requests.items():
        one, two = (literal(f"request[{number}].{short}", function(requests[0])) for number in (0, 1))
        functions[short] = lambda request, one=one, two=two: z3.If(request == requests[0], one, two)
    return State(terms, functions)


def test_on_two_requests_the_solvers_actions_are_the_explorers() -> None:
    finite = Builder(World.engine(2)).build()
    guards = {(action.name, action.row): search.compile_guard(action.guard) for action in finite.actions}
    applies = {(action.name, action.row): search.compile_assigns(action.assigns) for action in finite.actions}
    sort, requests = z3.EnumSort("Two", ["first", "second"])
    world = Unbounded(UnboundedBuilder(), sort=sort)
    compared = taken = 0
    for state in walked(finite, 400)[::25]:
        world.before = here = placed(world, finite, state, requests)
        solver = z3.Solver()
        solver.add(z3.Bool("free"), z3.Not(z3.Bool("oldest")))  # two blocks: who waits always finds one
        differs = []
        for number, request in enumerate(requests):
            world.this = request
            for action in world.model.actions:
                if number and "this" not in action.name:
                    continue
                key = (action.name.replace("this", str(number)), action.row)
                allowed = key in guards and guards[key](state)
                compared += 1
                differs.append(world.formula(action.guard, here) != z3.BoolVal(allowed))
                if allowed:
                    taken += 1
                    reached, wanted = world.after(action), placed(world, finite, applies[key](state), requests)
                    differs += [reached.globals[place] != wanted.globals[place] for place in wanted.globals]
                    differs += [reached.requests[s](r) != wanted.requests[s](r) for s in wanted.requests for r in requests]
        solver.add(z3.Or(differs))
        assert solver.check() == z3.unsat, finite.show(state)
    assert compared > 4000
    assert taken > 100


def test_conjuncts_about_one_request_are_about_every_one() -> None:
    builder = UnboundedBuilder()
    sentence = Property("one", LEMMAS[0].modality, "", (Judge.any_n_proof,), when="live", machine="request")
    world = Unbounded(builder)
    (tree,) = conjuncts(builder, [sentence]).values()
    assert z3.is_quantifier(world.formula(tree, world.before))
