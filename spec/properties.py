"""What must hold, each as a sentence with a modality and its judges. S: safety, T: on every move, L: liveness, W: witnesses.

Where a property can be said in the guard language it is (`when`, `then`); the rest is judged by the run-time monitor or by tests.
The proofs of the whole set for any number of requests belong to `proofs/`; the monitor and the tests judge the engine today.
"""

from __future__ import annotations

from quiesce.spec.language import Judge, Modality, Property

MODEL, PROOF, MONITOR, TEST = Judge.model, Judge.any_n_proof, Judge.monitor, Judge.test
A, M, L, W = Modality.always, Modality.on_every_move, Modality.eventually, Modality.sometimes

PROPERTIES = (
    Property("S1_residency", A, "No step is launched or in flight unless every tag is mapped and the weights are whole.", (MODEL, PROOF, MONITOR),
             when="not any_step(each.state in (launched, landed)) or engine.state == failed or (all_resident and weights.state == stable)"),
    Property("S2_running_is_open", A, "While the engine runs no token is held, every tag is resident and none chosen, and the weights are stable.",
             (MODEL, PROOF, MONITOR),
             when="not engine.state == running or (no_token and all_resident and all_tags(each.policy == none) and weights.state == stable)"),
    Property("S3_quiesce_before_mutate", A, "While a tag is in transit or the weights are being committed no step is planned or in flight.",
             (MODEL, PROOF, MONITOR), when="not (tag_in_transit or weights.state == committing) or quiet"),
    Property("S4_exactly_one_terminal", M, "A request leaves its live states by exactly one terminal, and none follows.", (MODEL, TEST)),
    Property("S5_identity", A, "A call addresses one incarnation: an id that is free again names nothing old.", (TEST,)),
    Property("S6_conservation", A, "Blocks: total = free + cached + held + fenced, and an ended request holds none.", (PROOF, MONITOR, TEST)),
    Property("S7_no_free_under_a_writer", M, "Blocks come back only from requests that no step in flight names.", (MODEL, PROOF, MONITOR),
             machine="request"),
    Property("S8_no_double_free", M, "A block is freed once: by `reap` or by `retracted`.", (MODEL, TEST)),
    Property("S9_version_coherence", A, "A request that may run has no KV of an older version unless it was kept.", (MODEL, PROOF, TEST)),
    Property("S11_ownership", M, "A token is freed only by its own release, by stop or by failure, and never weakens.", (MODEL, PROOF, TEST)),
    Property("S12_granted_is_still", M, "Once a pause is granted nothing is planned or launched until `reopen`.", (MODEL, PROOF)),
    Property("S14_output_integrity", A, "Tokens delivered are the tokens generated: in order, none invented, none lost.", (TEST,)),
    Property("S15_balance", A, "accepted = live + finished by reason, at every snapshot.", (MONITOR, TEST)),
    Property("S16_truthful_status", A, "Health, readiness, metrics and the status are projections of the machines.", (TEST,)),
    Property("S17_validate_before_effect", A, "A refused call has changed nothing, and no client input ends the engine.", (TEST,)),
    Property("drained_means_drained", A, "A paused engine has nothing in flight.", (MODEL, PROOF, MONITOR),
             when="not engine.state in (paused, partially_awake, sleeping, stopped) or quiet"),
    Property("stopped_is_empty", A, "A stopped engine owns nothing.", (MODEL, PROOF, MONITOR),
             when="not engine.state == stopped or (everybody_ended and no_token)"),
    Property("failed_answers_everybody", A, "A failed engine has no step slot in use and no token held.", (MODEL, PROOF, MONITOR),
             when="not engine.state == failed or (quiet and no_token)"),
    Property("goal_only_while_draining", A, "A goal is set exactly while the engine drains.", (MODEL, PROOF, MONITOR),
             when="(engine.state == draining and engine.goal != none) or (engine.state != draining and engine.goal == none)"),
    Property("T4_steps_through_the_gate", M, "Steps are planned and launched only through an open gate.", (MODEL, PROOF, MONITOR)),
    Property("R1_boundary_first", M, "No step is launched while boundary work is pending.", (MONITOR,)),
    Property("L1_answered", L, "An accepted request is answered, unless the engine stops running first: a gate held for ever holds it for ever.",
             (MODEL, TEST), machine="request", when="live and engine.state == running", then="not live or engine.state != running"),
    Property("L1c_answered_at_the_end", L, "An accepted request is answered once the engine stops or fails.", (MODEL, TEST),
             machine="request", when="live and engine.state in (stopping, failed)", then="not live"),
    Property("L2_abort_takes_effect", L, "An abort is answered from every state.", (MODEL, TEST), machine="request", when="abort_mark",
             then="not live"),
    Property("L2b_blocks_come_home", L, "A draining request ends.", (MODEL, TEST), machine="request", when="state == draining", then="state == ended"),
    Property("L3_drains_end", L, "A drain ends.", (MODEL, TEST), when="engine.state == draining", then="not engine.state == draining"),
    Property("L5_gate_reopens", L, "With no token held and everything in place a paused engine runs again.", (MODEL,),
             when="engine.state == paused and no_token and weights.state == stable and all_resident", then="not engine.state == paused"),
    Property("L8_shutdown_ends", L, "A shutdown ends in stopped.", (MODEL, TEST), when="engine.state == stopping",
             then="engine.state in (stopped, failed)"),
    Property("W1_two_steps_in_flight", W, "Two steps are launched at once.", (MODEL, TEST), when="all_steps(each.state == launched)"),
    Property("W2_waits_for_the_fence", W, "A request is answered while a step still names it.", (MODEL, TEST),
             when="any_request(each.state == draining and each.in_flight)"),
    Property("W3_retracting_finishes", W, "A retracting request reaches its end.", (MODEL,), when="any_request(each.state == retracting and each.eos_mark)"),
)
