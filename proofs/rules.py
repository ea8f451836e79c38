"""The rules of the design, and the holes of five bug reports, each with what is taken out of the tables and what then goes wrong.

Every rule is there because something breaks without it; here that is said so that it can be run (`proofs/without.py`): the tables are
edited, the world is explored, and the shortest story ends in a property by name. `R1` to `R38` are numbered as the comments of `spec/`
number them; a letter tells several ways of missing one rule apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from quiesce.proofs.edits import Edit, fact_edit
from quiesce.proofs.expr import FALSE, TRUE, Expr, In, conj
from quiesce.proofs.model import Model
from quiesce.proofs.world import World

ChangeModel = Callable[[Model], Model]


def unchanged(model: Model) -> Model:
    return model


def fair_to_rows(model: Model) -> Model:
    """Each row is owed its turn by itself, not the event of which it is one row."""
    return replace(model, actions=[
        replace(action, event=replace(action.event, name=f"{action.event.name}/{action.row}")) for action in model.actions])  # fmt: skip


def oldest_is_first(model: Model) -> Model:
    """Request 0 is the oldest throughout: it never yields, and request 1 yields to it alone."""
    place = model.place["request[0].state"]
    runs = In(place, frozenset({model.variables[place].values.index("running")}))
    yields: dict[str, Expr] = {"request[0].preempt": FALSE, "request[1].preempt": runs}
    return replace(model, actions=[
        replace(action, guard=conj([action.guard, yields.get(action.name, TRUE)])) for action in model.actions])  # fmt: skip


ENGINE = World.engine(1, callers=())
"""One request, and the calls that hold tokens of their own."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A world, and a property that breaks in it, for a story that the real engine can go."""

    world: World
    breaks: str = ""
    story: tuple[str, ...] = ()
    """Not the shortest, but one at whose end somebody notices."""


@dataclass(frozen=True, slots=True)
class Without:
    """A rule, and the tables without it."""

    rule: str
    sentence: str
    edits: tuple[Edit, ...] = ()
    breaks: str = ""
    """The property that does not hold any more."""
    world: World = ENGINE
    one_pass: bool = True
    """Whether calls wait for boundary work in this world, with the rule."""
    in_order: bool = True
    """Whether they still do so without the rule."""
    base: ChangeModel = unchanged
    """What is so of this world, with the rule."""
    change: ChangeModel | None = None
    """What is so without it; None: the same."""
    said: str = ""
    """What is taken away beside rows, in words."""
    stage: Stage | None = None
    """Where the real engine can show it, if not in `world`."""

    @property
    def removed(self) -> str:
        return "; ".join(filter(None, [*map(str, self.edits), self.said]))


SERVING = World.engine(2, callers=(), without={
    "engine.sleep", "engine.begin_update", "engine.clear", "engine.shutdown", "engine.fail", "engine.ready_empty", "request.device_fault"})  # fmt: skip
"""Two requests and an engine that does nothing but serve."""
PAIR = World.engine(2, without={
    "engine.sleep", "engine.begin_update", "engine.clear", "engine.shutdown", "engine.fail", "engine.ready_empty", "request.device_fault"})  # fmt: skip
"""Two requests of which the younger may yield to the older, and pauses."""
CALLERS = World.engine(1, without={"engine.begin_update", "engine.clear"})
PAUSES = World.engine(1, without={"engine.sleep", "engine.begin_update", "engine.clear"})
LINK, SESSION = World.link(1), World.session(1)
NO_FAULTS = World.engine(1, callers=(), without={"request.device_fault"})
BOTH_RUN = (
    "engine.ready", "request[0].submit", "request[0].admit", "request[1].submit", "request[1].admit", "request[0].start", "request[1].start",
)  # fmt: skip
NAMED = ("step[0].plan(requests=0)", "step[0].plan(requests=1)")
YIELDS_AT_ITS_END = (
    "engine.pause(owner=caller, mode=wait)", "step[0].plan(requests=1)", "step[0].launch", "request[1].preempt", "step[0].land",
    "request[1].eos", "step[0].retire",
)  # fmt: skip
ASKED_AGAIN = (
    "engine.ready", "request[0].submit", "request[0].admit", "request[0].start", "step[0].plan(requests=0)", "step[0].launch",
    "step[0].land", "step[0].retire", "request[0].abort", "request[0].aborted", "request[0].reap",
    "engine.sleep(mode=keep, weights=none, kv_cache=discard)", "engine.drained_sleep", "memory[kv_cache].release",
    "memory[kv_cache].released", "engine.wake_up(tags=kv_cache)", "memory[kv_cache].restored", "memory[kv_cache].kv_ready",
    "engine.settle_paused", "engine.reopen", "request[0].submit",
)  # fmt: skip
"""The same is asked before and after the KV is thrown away."""

edit = Edit
WAIT_CAN_RISE = "(event.mode != wait or not granted or not begun_left)"
NOTHING_MOVES = ("not tag_in_transit and not any_tag(each.state in (resident, undefined) and each.policy != none)"
                 " and memory[kv_cache].state != undefined")  # fmt: skip
NOBODY_HOLDS = "not any_request(each.state in (running, retracting))"
ORDER = (
    Without("R1", "Boundary work is finished before the next call is taken.", breaks="L3_drains_end", world=CALLERS, in_order=False,
            said="calls and timers may come between any two boundary rows"),
    Without("R2", "Fairness belongs to the event of one instance, not to a row.", breaks="L2b_blocks_come_home[0]", one_pass=False,
            change=fair_to_rows, said="each row is fair by itself"),
    Without("R2b", "A batch that is planned is launched in the same pass.", (edit("step", "launch", "fairness", "weak"),),
            "L1_answered[0]", SERVING, base=oldest_is_first),
)  # fmt: skip
DRAINS = (
    Without("R3", "Once a pause is granted, wait cannot rise over frozen requests, and nothing runs.",
            (edit("engine", "*", "when", WAIT_CAN_RISE), fact_edit("request", "gate_open", "not engine.granted"),
             fact_edit("step", "gate_open", "not engine.granted")), "S12_granted_is_still"),
    Without("R3b", "Once a pause is granted, wait cannot rise over frozen requests.", (edit("engine", "*", "when", WAIT_CAN_RISE),),
            "L3_drains_end"),
    Without("R4", "A shutdown that would wait for frozen requests aborts them.",
            (edit("engine", "shutdown", "when", "not granted"),
             edit("engine", "shutdown", "when", "(event.mode == abort or (granted and goal != stop))", "event.mode == abort")),
            "nothing_begun_waits", one_pass=False),
    Without("R5", "A drain that came from paused goes back there.", (edit("engine", "undrain", "when", "not granted"),), "S2_running_is_open",
            one_pass=False),
    Without("R6", "Withdrawing a sleep frees its token and its choices in one move.",
            (edit("engine", "withdraw_sleep", "also", "memory[*].deselect"),), "S2_running_is_open"),
    Without("R7", "A resume frees its token and writes nothing else: `reopen` looks at everything.",
            (edit("engine", "resume", "target", "running", leaving="paused"),), "S2_running_is_open", PAUSES),
    Without("R7b", "The gate reopens only when nobody holds it.", (edit("engine", "reopen", "when", "no_token"),), "T9_opens_for_nobody_held"),
    Without("R8", "A call that joins is as exclusive as a fresh one.", (edit("engine", "begin_update", "when", "not update_open", leaving="paused"),),
            "L3_drains_end"),
    Without("R9", "Launch looks at the gate again.", (edit("step", "launch", "when", "gate_open"),), "T4_steps_through_the_gate",
            one_pass=False, in_order=False),
    Without("R9b", "What is planned when the gate closes is dropped.", (edit("step", "drop", "when", "not gate_open"),), "L3_drains_end"),
    Without("R10", "A drain ends when every due terminal is handed over.",
            (fact_edit("engine", "drained", "not any_request(each.state in (draining, retracting) or each.eos_mark)"),), "T1_handed_over"),
    Without("R10b", "A wait drain ends when nothing begun is left.", (fact_edit("engine", "drained", "(not holds_wait or not begun_left)"),),
            "T1_wait_is_kept"),
    Without("R11", "A wait drain restarts what had begun.", (edit("request", "start", "when", "begun"),), "L3_drains_end",
            stage=Stage(PAIR, "L3_drains_end")),
    Without("R11b", "A wait drain starts nothing that had not begun.", (edit("request", "start", "when", "(engine.state == running or begun)"),),
            "T6_starts_only_what_may[0]", one_pass=False, in_order=False, stage=Stage(PAIR, "T6_starts_only_what_may[1]")),
    Without("R12", "Requests are admitted only while the engine runs.", (edit("request", "admit", "when", "engine.state == running"),),
            "T6_admitted_only_while_running[0]"),
    Without("R13", "An abort token sweeps whatever is live, in every gated state.", (edit("request", "sweep", "when", "holds_abort"),), "L3_drains_end"),
    Without("R14", "An abort is served in every state of the engine, never through the gate.",
            (edit("request", "aborted", "when", "abort_mark", "abort_mark and gate_open"),), "L2_abort_takes_effect[0]"),
)  # fmt: skip
BLOCKS = (
    Without("R15", "Blocks wait for the fences of both steps.", (edit("request", "reap", "when", "not in_flight", "not member[0]"),),
            "S7_no_free_under_a_writer[1]", SERVING),
    Without("R15b", "Blocks wait for the fences of steps.", (edit("request", "reap", "when", "not in_flight"),), "S7_no_free_under_a_writer[0]"),
    Without("R16", "Who yields keeps its blocks until no step names it.", (edit("request", "retracted", "when", "not in_flight"),),
            "S7_no_free_under_a_writer[0]", stage=Stage(SERVING, "S7_no_free_under_a_writer[1]")),
    Without("R17", "An abort never frees blocks by itself.",
            (edit("request", "aborted", "effects", "", "free_blocks(drop)", "running"), edit("request", "aborted", "target", "ended", leaving="running")),
            "S7_no_free_under_a_writer[0]"),
    Without("R18", "A copy of the KV is a fence.", (edit("request", "reap", "when", "not kv_copy"),), "S7_no_free_under_a_writer[0]"),
    Without("R19", "No copy of the KV begins while blocks are about to come back.",
            (edit("memory", "release", "when", "not any_request(each.state in (draining, retracting))"),), "discarded_is_held_by_nobody"),
    Without("R20", "KV is thrown away only when nobody holds any.",
            (edit("memory", "release", "when", "(policy == offload or not any_request(each.state == running))"),), "discarded_is_held_by_nobody"),
    Without("R20b", "The core itself retracts whoever holds KV that must go.", (edit("request", "retract", "row"),), "L5b_chosen_leaves[kv_cache]"),
    Without("R21", "An update in place and a copy of the KV exclude each other.",
            (edit("weights", "begin_in_place", "when", NOTHING_MOVES), edit("request", "retracted", "when", "not kv_copy")),
            "S7_no_free_under_a_writer[0]"),
    Without("R22", "Who may not run any more is stripped from a planned batch.", (edit("step", "strip_members", "row"),), "L1_answered[0]",
            stage=Stage(SERVING, story=(*BOTH_RUN, *NAMED, "request[1].abort", "request[1].aborted"))),
    Without("R22b", "A planned batch is not dropped for one member's sake.",
            (edit("step", "strip_members", "row"), edit("step", "drop", "when", "any_member(true)", "all_members(each.runnable)")),
            "L1_answered[0]", SERVING, base=oldest_is_first),
    Without("R23", "The oldest running request is never the one that yields.", breaks="L1_answered[0]", world=SERVING,
            base=oldest_is_first, change=unchanged, said="request.preempt: also of the oldest"),
    Without("R24", "Who is about to yield can still reach its end.", (edit("request", "finish", "source", "-retracting"),), "L3_drains_end",
            stage=Stage(PAIR, story=(*BOTH_RUN, *YIELDS_AT_ITS_END))),
    Without("R25", "Failure empties both step slots in its own move.", (edit("engine", "fail", "also", "step[*].void"),), "failed_answers_everybody"),
)  # fmt: skip
MEMORY = (
    Without("R26", "Only what is given back is woken.", (edit("memory", "restore", "source", "+releasing"),), "T3_returns_untouched[weights]"),
    Without("R27", "A failed restore rolls back.", (edit("memory", "restore_failed", "target", "undefined"),),
            "T3_in_transit_the_device_speaks[weights]"),
    Without("R28", "The policy travels with the tag: a discard loses the content.", (edit("memory", "released", "when", "policy == offload"),),
            "T7_content_is_lost_for_a_reason"),
    Without("R28b", "With discarded KV the prefix index is dropped, in one move.", (edit("memory", "released", "effects", "drop_prefix_index"),),
            "T7_prefix_goes_with_its_kv", stage=Stage(ENGINE, story=ASKED_AGAIN)),
    Without("R29", "The engine is paused again only when the KV is valid.",
            (edit("engine", "settle_paused", "when", "all_resident", "all_tags(each.state in (resident, undefined))"),), "a_drain_is_mapped"),
    Without("R29b", "The core makes returned KV valid by itself.", (edit("memory", "kv_ready", "row"),), "L5d_kv_becomes_valid"),
    Without("R30", "A commit waits until what was kept has given its blocks back.", (edit("weights", "committed", "when", NOBODY_HOLDS),),
            "S9_version_coherence[0]"),
    Without("R30b", "With a new version the prefix index is dropped, in one move.", (edit("weights", "committed", "effects", "drop_prefix_index"),),
            "T7_a_new_version_is_one_move"),
    Without("R31", "Blocks enter the prefix cache under the version that computed them, or not at all.", (edit("request", "reap", "when", "not stale"),),
            "T7_only_current_blocks_are_cached[0]", NO_FAULTS),
    Without("R32", "A rollback is clean only if not one byte was written to whole weights.", (edit("weights", "rollback", "when", "base_intact"),),
            "T7_clean_rollback"),
    Without("R33", "Nothing is woken while an update is open.", (edit("memory", "restore", "when", "not update_open"),),
            "T3_returns_untouched[kv_cache]"),
    Without("R33b", "Nothing is put to sleep while an update is open.",
            (edit("engine", "sleep", "when", "not update_open", leaving="partially_awake"), edit("memory", "release", "when", "not update_open")),
            "T3_leaves_unused[weights]"),
    Without("R34", "An engine stops when everybody is answered.", (edit("engine", "stop", "when", "everybody_ended"),), "stopped_is_empty"),
    Without("R34b", "An engine stops when no memory is on its way.", (edit("engine", "stop", "when", "not tag_in_transit"),),
            "T3_in_transit_the_device_speaks[weights]"),
)  # fmt: skip
FRONT = (
    Without("R35", "A new core starts when the old one is dead.", (edit("link", "restart", "when", "core == dead"),), "S13_one_core", LINK, False),
    Without("R35b", "A new core starts when every stream of the old one is answered.",
            (edit("link", "restart", "when", "all_streams(each.state == closed)"),), "S13_one_core", LINK, False),
    Without("R35c", "A new core starts when every call of the old one is answered.", (edit("link", "restart", "when", "control == idle"),),
            "S13_one_core", LINK, False),
    Without("R35d", "The messages of a lost core are dropped.", (edit("link", "lose", "effects", "drop_mailboxes"),), "a_new_core_hears_nothing_old[0]",
            LINK, False),
    Without("R35e", "A loss is final, also of a core that lives.", (edit("link", "lose", "target", "up", leaving="up"),),
            "S4b_answers_are_expected[0]", LINK, False),
    Without("R36", "A cancel in the opening is acted on with its outcome.", (edit("stream", "ack", "when", "not cancel"),),
            "S13b_no_cancel_is_forgotten[0]", LINK, False),
    Without("R36b", "An opening closes with its outcome, not before.", (edit("stream", "gone", "target", "closed", leaving="opening"),),
            "S6b_no_orphan[0]", LINK, False),
    Without("R37", "An opening that is refused closes its stream.", (edit("stream", "nak", "row"),), "L4_openings_are_answered[0]", LINK, False),
    Without("R37b", "An opening that is accepted and not wanted any more ends, too.", (edit("stream", "ack", "row", "up and cancel"),),
            "L4_openings_are_answered[0]", LINK, False),
    Without("R38", "A turn is over when its request has ended, not only its stream.", (edit("session", "turn_over", "when", "turn_request_ended"),),
            "S18_nothing_between_turns[0]", SESSION, False),
    Without("R38b", "A session that closes tells its turn to end.", (edit("session", "close", "effects", "abort_turn"),), "L4g_sessions_close[0]",
            SESSION, False),
)  # fmt: skip
SEEDS = (
    Without("LMDeploy #4541, asleep", "Memory leaves only when nothing is on its way and everybody is answered.",
            (edit("engine", "drained_sleep", "when", "drained"),), "S3_unmap_when_quiet"),
    Without("LMDeploy #4541, let in", "Nobody is let in by a gate that refuses.", (edit("request", "submit", "when", "accepting"),),
            "T6_accepted_only_when_accepting[0]"),
    Without("LMDeploy #4541, prefetched", "A batch planned before the sleep is not launched in it.",
            (edit("step", "drop", "when", "not gate_open"), edit("step", "launch", "when", "gate_open")), "T4_steps_through_the_gate"),
    Without("LMDeploy #4541, half awake", "A wake of one tag does not open the gate.",
            (edit("engine", "settle_paused", "when", "all_resident", "any_tag(each.state == resident)"),
             edit("engine", "settle_paused", "when", "all_tags(each.policy == none)"), edit("engine", "reopen", "when", "all_resident")),
            "S2_running_is_open"),
    Without("LMDeploy #4655, death", "Whoever waits for an engine that has failed is told.", (edit("request", "fail", "row"),),
            "L1c_answered_at_the_end[0]"),
    Without("LMDeploy #4545", "A close never waits for a turn that nobody has told to end.", (edit("session", "close", "effects", "abort_turn"),),
            "L4g_sessions_close[0]", SESSION, False),
    Without("LMDeploy #4655, opening", "A client that leaves before its call is accepted leaves nothing behind.",
            (edit("stream", "abort", "row", leaving="opening"),), "L4g_sessions_close[0]", SESSION, False),
    Without("FastDeploy #7753", "A pause does not freeze what is to do the aborting.",
            (edit("request", "aborted", "when", "abort_mark", "abort_mark and gate_open"), edit("request", "sweep", "when", "holds_abort")),
            "L3_drains_end"),
    Without("vLLM #32351", "New weights never read KV that the old ones computed.",
            (edit("request", "retract", "when", "weights.state == committing"), edit("weights", "committed", "when", NOBODY_HOLDS)),
            "S9_version_coherence[0]"),
)  # fmt: skip
RULES: tuple[Without, ...] = (*ORDER, *DRAINS, *BLOCKS, *MEMORY, *FRONT, *SEEDS)

HIDDEN = "the engine's own order of the pass comes first: "
ONE_INSTANT = (
    "the engine's own order of a loss comes first: everybody is answered and the old core is killed before it looks for another"
)
UNSEEN = {
    "R1": "the engine settles its boundary work before it takes the next call; no table can have it otherwise",
    "R2": "fairness is not in the tables that the engine follows, but in its scheduler",
    "R2b": "fairness is not in the tables that the engine follows, but in its scheduler, which launches what it has planned",
    "R4": HIDDEN + "a drain that begins at paused has ended before a shutdown is taken",
    "R5": HIDDEN + "a drain that begins at paused has ended before it can be withdrawn",
    "R9": HIDDEN + "what is planned is dropped in the pass in which the gate closes",
    "R10": HIDDEN + "who drains is reaped before the engine looks whether it is drained",
    "R12": "the engine looks for admissions only while it runs, and asks the table then",
    "R19": HIDDEN + "what yields has given its blocks back before memory is released",
    "R20": HIDDEN + "what holds KV that must go has given it back before memory is released",
    "R22b": "it takes a client who comes and goes for ever, and the scheduler would let the other's batch go in between",
    "R23": "the scheduler knows the age of requests, and never asks the oldest to yield",
    "R26": "the queue of operations holds the wake-up back until the sleep has ended",
    "R30": HIDDEN + "what was kept has given its blocks back before the commit is looked at",
    "R30b": "the version is part of every key of the prefix index: what is left of the old one is never found",
    "R34": HIDDEN + "everybody is swept before the engine looks whether it can stop",
    "R35": ONE_INSTANT,
    "R35b": ONE_INSTANT,
    "R35c": ONE_INSTANT,
}
"""Rules whose lack the real engine does not show: something else stands in the way, and what."""
