"""What else is always so: sentences about the engine on which the proof for any number of requests leans.

The promises of `spec/properties.py` alone do not carry themselves: from states that keep them, but in which the engine never is, one
action would break them. These sentences say why it is never there. They are proved together with the promises, each from all of them,
and judged by the explorers, too. Most carry another (`tests/proofs/test_induction.py` takes them away one by one); the rest are proved
because they are worth knowing.
"""

from __future__ import annotations

from quiesce.spec.language import Judge, Modality, Property

GATED = "engine.state in (paused, partially_awake, sleeping)"


def _always(name: str, sentence: str, when: str) -> Property:
    return Property(name, Modality.always, sentence, (Judge.model, Judge.any_n_proof), when=when)


LEMMAS = (
    # ---- the gate and its tokens
    _always("a_goal_holds_its_token", "A drain for a sleep, an update or the end goes on only while its own token is held.",
            "(engine.goal != sleep or pause_token[sleep].state != free) and (engine.goal != update or pause_token[update].state != free)"
            " and (engine.goal != stop or pause_token[shutdown].state in (wait, abort))"),
    _always("gated_means_granted", "An engine that is paused, partially awake or asleep has granted a pause.",
            f"not {GATED} or engine.granted"),
    _always("open_means_not_granted", "An engine that loads, runs or has failed has granted nothing.",
            "not engine.state in (starting, running, failed) or not engine.granted"),
    _always("own_tokens_only_under_a_gate", "While the engine loads it is held by callers alone.",
            "not engine.state == starting or (pause_token[sleep].state == free and pause_token[update].state == free"
            " and pause_token[clear].state == free and pause_token[shutdown].state == free)"),
    _always("nothing_begun_waits", "Once a pause is granted no wait token stands over work that has begun.",
            "not (engine.granted and any_token(each.state == wait)) or not begun_left"),
    _always("nothing_begins_while_loading", "While the engine loads nothing has begun.", "not engine.state == starting or not any_request(each.begun)"),
    # ---- memory and weights
    _always("whole_until_granted", "Until its first grant an engine that loads or drains has stable weights.",
            "not (engine.state in (starting, draining) and not engine.granted) or weights.state == stable"),
    _always("a_drain_is_mapped", "An engine that loads, drains or is paused has every tag mapped and valid.",
            "not engine.state in (starting, draining, paused) or all_resident"),
    _always("chosen_by_a_sleep", "A tag is chosen only while a sleep drains, or while the engine is partially awake, asleep or on its way out.",
            "not (engine.state in (starting, running, paused, stopped, failed) or (engine.state == draining and engine.goal != sleep))"
            " or all_tags(each.policy == none)"),
    _always("away_means_chosen", "What is away, or on its way, was chosen.",
            "all_tags(each.state in (resident, undefined) or each.policy != none)"),
    _always("no_drain_over_an_update", "A drain never overlaps an open update.", "not engine.state == draining or not update_open"),
    _always("an_update_holds_its_token", "An open update holds its token.",
            "not update_open or pause_token[update].state != free"),
    _always("no_sleep_over_an_update", "Under an open update nothing is chosen that is still there, or on its way.",
            "not update_open or all_tags(each.policy == none or each.state == released)"),
    _always("asleep_means_away", "While the engine sleeps every tag is away.", "not engine.state == sleeping or all_tags(each.state == released)"),
    # ---- steps and requests
    _always("steps_in_order", "The newer step is there only while the older one is on the device, and lands behind it.",
            "(step[1].state in (empty, retired, dropped) or step[0].state in (launched, landed))"
            " and (not step[1].state == landed or step[0].state == landed)"),
    _always("an_empty_slot_names_nobody", "An empty slot names nobody.",
            "(step[0].state != empty or not any_request(each.member[0])) and (step[1].state != empty or not any_request(each.member[1]))"),
    _always("named_means_holding", "A step names only requests that hold blocks.",
            "all_requests(not each.in_flight or each.state in (running, retracting, draining))"),
    _always("eos_means_holding", "Only a request that holds blocks has met its end.",
            "all_requests(not each.eos_mark or each.state in (running, retracting, draining))"),
    _always("holding_means_begun", "What holds blocks has begun.",
            "all_requests(not each.state in (running, retracting, draining) or each.begun)"),
    _always("stale_means_holding_or_faulty", "Only what holds blocks, or is about to be ended for a fault, has KV that is not current.",
            "all_requests(not each.stale or each.state in (running, retracting, draining) or each.fault_mark)"),
    _always("absent_is_clean", "A request that is not there has no marks.",
            "all_requests(each.state != absent or not (each.begun or each.marked or each.stale or each.in_flight))"),
    _always("steps_only_where_work_is", "Steps are on their way only while the engine runs or drains.",
            "engine.state in (running, draining) or quiet"),
    _always("failed_is_wiped", "A failed engine has no memory, no weights and no token left.",
            "not engine.state == failed or (quiet and no_token and all_tags(each.state == undefined and each.policy == none)"
            " and weights.state == undefined and not any_request(each.eos_mark or each.in_flight))"),
)  # fmt: skip
