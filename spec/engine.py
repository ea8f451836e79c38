"""The engine: whether it serves, what it drains for, and how it ends.

`goal` is what the acting operation wants while `draining`; `granted` says that some caller has been told "paused" and the engine has
not run since. Nothing but `reopen` leads back to `running` after a grant.
"""

from __future__ import annotations

from quiesce.spec.language import BIT, ELSEWHERE, Error, Event, Fairness, Ignored, Machine, Owner, Refused, Row
from quiesce.spec.vocabulary import EngineEvent as E
from quiesce.spec.vocabulary import EngineState as S
from quiesce.spec.vocabulary import Goal

PASS = "the pass runs its boundary rows to a fixpoint before it takes the next call"
GATED = (S.starting, S.draining, S.paused, S.sleeping, S.partially_awake)
CALLS = (E.pause, E.resume, E.sleep, E.wake_up, E.clear, E.begin_update)
"""What is asked of an engine that serves or will serve again; whatever else ends it."""
WAIT_CAN_RISE = "(event.mode != wait or not granted or not begun_left)"
NOT_CLEARING = "pause_token[clear].state == free"
LEVEL_0 = "event.weights == none and event.kv_cache == none"
HOLD_SLEEP = "pause_token[sleep].hold(mode=event.mode)"
SELECT = (HOLD_SLEEP, "memory[weights].select(policy=event.weights)", "memory[kv_cache].select(policy=event.kv_cache)")
NAMES_ALL = ("(event.tags == both or (event.tags == weights and memory[kv_cache].policy == none)"
             " or (event.tags == kv_cache and memory[weights].policy == none))")
OTHER_POLICY = ("((event.weights == offload and memory[weights].policy == discard) or (event.weights == discard and memory[weights].policy == offload)"
                " or (event.kv_cache == offload and memory[kv_cache].policy == discard)"
                " or (event.kv_cache == discard and memory[kv_cache].policy == offload))")
WITHDRAW_SLEEP = ("pause_token[sleep].release", "memory[*].deselect")
NEW_ENGINE = "start a new engine"
SHUTS_DOWN = f"it is shutting down: {NEW_ENGINE}"
RESUME_OWNERS = "resume the listed owners, or use abort or keep"
FINISH_UPDATE = "finish_weight_update or abort_weight_update"

MACHINE = Machine(
    name="engine",
    file="spec/engine.py",
    purpose="The gate in front of all work.",
    states=S,
    initial=S.starting,
    terminal=(S.stopped,),
    meanings={
        S.starting: "loading; calls are queued",
        S.running: "serving",
        S.draining: "the gate is closed; what must end ends, what is frozen freezes",
        S.paused: "nothing in flight, every terminal handed over, everything mapped",
        S.partially_awake: "some tag is chosen for sleep, on its way, away or not valid",
        S.sleeping: "every tag is away",
        S.stopping: "the last requests are answered, the last copies end",
        S.stopped: "over",
        S.failed: "the device is not to be trusted; everybody is answered, nothing hangs",
    },
    variables={"goal": tuple(Goal), "granted": BIT},
    events=(
        Event(E.ready, Owner.device, Fairness.weak, "the loader ends or fails"),
        Event(E.ready_empty, Owner.device, Fairness.weak, "the loader ends or fails"),
        Event(E.pause, Owner.operator, takes=("owner", "mode")),
        Event(E.resume, Owner.operator, takes=("owner",)),
        Event(E.undrain, Owner.core, Fairness.weak, PASS, boundary=True),
        Event(E.drained_pause, Owner.core, Fairness.weak, PASS, boundary=True),
        Event(E.drained_sleep, Owner.core, Fairness.weak, PASS, boundary=True),
        Event(E.drained_update, Owner.core, Fairness.weak, PASS, boundary=True),
        Event(E.drained_stop, Owner.core, Fairness.weak, PASS, boundary=True),
        Event(E.reopen, Owner.core, Fairness.weak, PASS, boundary=True),
        Event(E.sleep, Owner.operator, takes=("mode", "weights", "kv_cache")),
        Event(E.withdraw_sleep, Owner.timer),
        Event(E.wake_up, Owner.operator, takes=("tags",)),
        Event(E.settle_sleeping, Owner.core, Fairness.weak, PASS, boundary=True),
        Event(E.settle_paused, Owner.core, Fairness.weak, PASS, boundary=True),
        Event(E.clear, Owner.operator),
        Event(E.cleared, Owner.core, Fairness.weak, PASS, boundary=True),
        Event(E.withdraw_clear, Owner.timer),
        Event(E.begin_update, Owner.operator, takes=("mode",)),
        Event(E.withdraw_update, Owner.timer),
        Event(E.shutdown, Owner.operator, takes=("mode",)),
        Event(E.shutdown_deadline, Owner.timer, Fairness.strong, "each pass looks at the clock once what is due is done"),
        Event(E.stop, Owner.core, Fairness.weak, PASS, boundary=True),
        Event(E.fail, Owner.environment)),
    rows=(
        Row(E.ready, (S.starting,), S.running, "loaded; the gate opens", when="no_token"),
        Row(E.ready, (S.starting,), S.paused, "a pause during loading is honoured, not lost", when="not no_token",
            sets=("granted := yes",)),
        Row(E.ready_empty, (S.starting,), S.paused, "gated and alive, waits for an update", sets=("granted := yes",),
            also=("weights.lose",)),
        Row(E.pause, (S.running,), S.draining, "the gate closes first", sets=("goal := pause",),
            also=("pause_token[event.owner].hold(mode=event.mode)",)),
        Row(E.pause, GATED, None, "another owner, or a stronger mode; wait cannot rise over frozen requests (R3)",
            when=f"goal != stop and {WAIT_CAN_RISE}", also=("pause_token[event.owner].hold(mode=event.mode)",)),
        Row(E.resume, GATED, None, "frees its own token and writes nothing else (R7)", when="goal != stop",
            also=("pause_token[event.owner].release",)),
        Row(E.undrain, (S.draining,), S.running, "the last token was withdrawn before the drain ended",
            when="goal == pause and no_token and not granted", sets=("goal := none",)),
        Row(E.undrain, (S.draining,), S.paused, "the drain came from paused and goes back there (R5)",
            when="goal == pause and no_token and granted and quiet", sets=("goal := none",)),
        Row(E.drained_pause, (S.draining,), S.paused, "the device is idle and every terminal is handed over",
            when="goal == pause and not no_token and drained", sets=("goal := none", "granted := yes")),
        Row(E.drained_sleep, (S.draining,), S.partially_awake, "now the memory rows may start", when="goal == sleep and drained",
            sets=("goal := none", "granted := yes")),
        Row(E.drained_update, (S.draining,), S.paused, "the update is open", when="goal == update and drained",
            sets=("goal := none", "granted := yes"), also=("weights.begin",)),
        Row(E.drained_stop, (S.draining,), S.stopping, "everybody is answered and the device is idle",
            when="goal == stop and quiet and everybody_ended", sets=("goal := none",)),
        Row(E.reopen, (S.paused,), S.running, "no token, whole weights, every tag mapped: look for runnable work (R7)",
            when="no_token and weights.state == stable and all_resident", sets=("granted := no",)),
        Row(E.sleep, (S.running,), S.draining, "level 0 is a pause under the name `sleep`", when=LEVEL_0, sets=("goal := pause",), also=(HOLD_SLEEP,)),
        Row(E.sleep, (S.running,), S.draining, "the gate closes first", sets=("goal := sleep",), also=SELECT),
        Row(E.sleep, (S.draining, S.paused, S.partially_awake), None, "level 0 takes the token and chooses nothing",
            when=f"goal != stop and {LEVEL_0} and {WAIT_CAN_RISE}", also=(HOLD_SLEEP,)),
        Row(E.sleep, (S.draining,), None, "joins a pending pause, or adds to the pending sleep (R8)",
            when=f"goal in (pause, sleep) and not update_open and {NOT_CLEARING} and {WAIT_CAN_RISE}", sets=("goal := sleep",), also=SELECT),
        Row(E.sleep, (S.paused,), S.draining, "the drain is judged again, in one place",
            when=f"not update_open and {NOT_CLEARING} and {WAIT_CAN_RISE}", sets=("goal := sleep",), also=SELECT),
        Row(E.sleep, (S.partially_awake,), None, "more tags; the token is kept", when=f"not update_open and {WAIT_CAN_RISE}", also=SELECT),
        Row(E.withdraw_sleep, (S.draining,), None, "the deadline passed: token and choices go in one move (R6)", when="goal == sleep",
            sets=("goal := pause",), also=WITHDRAW_SLEEP),
        Row(E.wake_up, (S.draining,), None, "withdraws a sleep that still drains, if it names all that is chosen (R6)", when=f"goal == sleep and {NAMES_ALL}", sets=("goal := pause",),
            also=WITHDRAW_SLEEP),
        Row(E.wake_up, (S.draining, S.paused), None, "ends a level-0 sleep", when="not goal in (stop, sleep) and pause_token[sleep].state != free",
            also=("pause_token[sleep].release",)),
        Row(E.wake_up, (S.sleeping, S.partially_awake), S.partially_awake, "the weights come back", when="event.tags == weights",
            also=("memory[weights].restore",)),
        Row(E.wake_up, (S.sleeping, S.partially_awake), S.partially_awake, "the KV comes back", when="event.tags == kv_cache",
            also=("memory[kv_cache].restore",)),
        Row(E.wake_up, (S.sleeping, S.partially_awake), S.partially_awake, "everything comes back", when="event.tags == both",
            also=("memory[weights].restore", "memory[kv_cache].restore")),
        Row(E.settle_sleeping, (S.partially_awake,), S.sleeping, "every tag is away", when="all_tags(each.state == released)"),
        Row(E.settle_paused, (S.partially_awake,), S.paused, "every tag is back and none is chosen; the sleep's own token is freed, no other",
            when="all_resident and all_tags(each.policy == none)", also=("pause_token[sleep].release",)),
        Row(E.clear, (S.running,), S.draining, "the gate closes first", sets=("goal := pause",), also=("pause_token[clear].hold(mode=keep)",)),
        Row(E.clear, (S.draining, S.paused), None, "what holds blocks is retracted once the engine is paused", when="goal in (none, pause)",
            also=("pause_token[clear].hold(mode=keep)",)),
        Row(E.cleared, (S.paused,), None, "nobody holds a block", when="pause_token[clear].state == keep and not any_request(each.state in (running, retracting))",
            also=("pause_token[clear].release",), effects=("drop_prefix_index",)),
        Row(E.withdraw_clear, (S.draining,), None, "the deadline passed", when="pause_token[clear].state != free", also=("pause_token[clear].release",)),
        Row(E.begin_update, (S.running,), S.draining, "the gate closes first", sets=("goal := update",), also=("pause_token[update].hold(mode=event.mode)",)),
        Row(E.begin_update, (S.draining,), None, "joins a pending pause (R8)", when=f"goal == pause and not update_open and {WAIT_CAN_RISE}",
            sets=("goal := update",), also=("pause_token[update].hold(mode=event.mode)",)),
        Row(E.begin_update, (S.paused,), S.draining, "the drain is judged again, in one place", when=f"not update_open and {WAIT_CAN_RISE}",
            sets=("goal := update",), also=("pause_token[update].hold(mode=event.mode)",)),
        Row(E.begin_update, (S.partially_awake,), None, "already drained by a sleep", when=f"not update_open and {WAIT_CAN_RISE}",
            also=("weights.begin_in_place(mode=event.mode)",)),
        Row(E.withdraw_update, (S.draining,), None, "the deadline passed", when="goal == update", sets=("goal := pause",),
            also=("pause_token[update].release",)),
        Row(E.shutdown, (S.running,), S.draining, "no new work; what runs has until the deadline", sets=("goal := stop",),
            also=("pause_token[shutdown].hold(mode=event.mode)",)),
        Row(E.shutdown, (S.draining,), None, "takes the place of the pending operation", when="goal != stop and not granted and event.mode == wait",
            sets=("goal := stop",), also=("pause_token[shutdown].hold(mode=wait)", "pause_token[update].release", *WITHDRAW_SLEEP)),
        Row(E.shutdown, (S.draining,), None, "aborts what is left; frozen requests cannot run any more (R4)",
            when="pause_token[shutdown].state != abort and (event.mode == abort or (granted and goal != stop))",
            sets=("goal := stop",), also=("pause_token[shutdown].hold(mode=abort)", "pause_token[update].release", *WITHDRAW_SLEEP)),
        Row(E.shutdown, (S.starting, S.paused, S.sleeping, S.partially_awake), S.stopping, "never straight to stopped (R34)",
            also=("pause_token[shutdown].hold(mode=abort)",)),
        Row(E.shutdown, (S.failed,), S.stopped, "everybody is answered", when="everybody_ended", effects=("release_everything",)),
        Row(E.shutdown_deadline, (S.draining,), None, "time is up: the rest is aborted", when="goal == stop and pause_token[shutdown].state == wait",
            also=("pause_token[shutdown].hold(mode=abort)",)),
        Row(E.stop, (S.stopping,), S.stopped, "no teardown under a copy", when="quiet and everybody_ended and not tag_in_transit",
            also=("pause_token[*].release", "memory[*].lose", "weights.lose"),
            effects=("drop_prefix_index", "release_everything")),
        Row(E.fail, tuple(state for state in S if state not in (S.stopped, S.failed)), S.failed, "the device's fences are void; everybody is answered",
            sets=("goal := none", "granted := no", "request[*].eos_mark := false"),
            also=("step[*].void", "memory[*].lose", "weights.lose", "pause_token[*].release"), effects=("drop_prefix_index",))),
    ignored=(
        Ignored(E.ready, (S.stopping, S.stopped, S.failed), "a completion of a dead epoch"),
        Ignored(E.ready_empty, (S.stopping, S.stopped, S.failed), "a completion of a dead epoch"),
        Ignored(E.resume, (S.running,), "nobody holds the engine"),
        Ignored(E.sleep, (S.sleeping,), "every tag is away"),
        Ignored(E.withdraw_sleep, ELSEWHERE, "lost race: the operation is answered"),
        Ignored(E.wake_up, (S.running, S.draining, S.paused), "nothing is away"),
        Ignored(E.withdraw_clear, ELSEWHERE, "lost race: the operation is answered"),
        Ignored(E.withdraw_update, ELSEWHERE, "lost race: the operation is answered"),
        Ignored(E.shutdown, (S.draining, S.stopping, S.stopped), "already going"),
        Ignored(E.shutdown_deadline, ELSEWHERE, "lost race: the shutdown is answered"),
        Ignored(E.fail, (S.stopped, S.failed), "over already")),
    refused=(
        Refused(E.ready, ELSEWHERE, Error.defect, "loading ends once"),
        Refused(E.ready_empty, ELSEWHERE, Error.defect, "loading ends once"),
        Refused(E.pause, GATED, Error.Unavailable, SHUTS_DOWN, when="goal == stop"),
        Refused(E.pause, GATED, Error.TransitionConflict, RESUME_OWNERS),
        Refused(E.resume, GATED, Error.Unavailable, SHUTS_DOWN),
        Refused(E.sleep, (S.draining, S.paused, S.partially_awake), Error.Unavailable, SHUTS_DOWN, when="goal == stop"),
        Refused(E.sleep, (S.draining, S.paused, S.partially_awake), Error.TransitionConflict, FINISH_UPDATE, when="update_open or goal == update"),
        Refused(E.sleep, (S.draining, S.paused), Error.TransitionConflict, "await the clear", when=f"not {NOT_CLEARING} and not ({LEVEL_0})"),
        Refused(E.sleep, (S.draining, S.paused, S.partially_awake), Error.TransitionConflict, RESUME_OWNERS),
        Refused(E.sleep, (S.sleeping,), Error.TransitionConflict, "wake_up first: what is away left under another policy", when=OTHER_POLICY),
        Refused(E.sleep, (S.starting,), Error.Unavailable, "await ready"),
        Refused(E.wake_up, (S.starting,), Error.Unavailable, "await ready"),
        Refused(E.wake_up, (S.draining,), Error.Unavailable, SHUTS_DOWN, when="goal == stop"),
        Refused(E.wake_up, (S.draining,), Error.TransitionConflict, "await the sleep, or wake all that it chose", when=f"goal == sleep and not {NAMES_ALL}"),
        Refused(E.wake_up, (S.sleeping, S.partially_awake), Error.InvalidRequest, "name weights, kv_cache or both"),
        Refused(E.clear, (S.draining,), Error.Unavailable, SHUTS_DOWN, when="goal == stop"),
        Refused(E.clear, (S.draining, S.paused), Error.TransitionConflict, "await the operation that drains"),
        Refused(E.clear, (S.starting,), Error.Unavailable, "await ready"),
        Refused(E.clear, (S.partially_awake, S.sleeping), Error.TransitionConflict, "wake_up"),
        Refused(E.begin_update, (S.starting,), Error.Unavailable, "await ready"),
        Refused(E.begin_update, (S.draining,), Error.Unavailable, SHUTS_DOWN, when="goal == stop"),
        Refused(E.begin_update, (S.draining,), Error.TransitionConflict, "await or withdraw the sleep", when="goal == sleep"),
        Refused(E.begin_update, (S.draining, S.paused, S.partially_awake), Error.TransitionConflict, FINISH_UPDATE, when="update_open or goal == update"),
        Refused(E.begin_update, (S.draining, S.paused, S.partially_awake), Error.TransitionConflict, RESUME_OWNERS),
        Refused(E.begin_update, (S.sleeping,), Error.TransitionConflict, "wake_up(['weights'])"),
        *(
            refused
            for call in CALLS
            for refused in (
                Refused(call, (S.stopping,), Error.Unavailable, SHUTS_DOWN),
                Refused(call, (S.stopped,), Error.EngineDead, NEW_ENGINE),
                Refused(call, (S.failed,), Error.EngineDead, "shutdown, then start a new engine"),
            )
        ),
        Refused(E.shutdown, (S.failed,), Error.defect, "the pass in which the engine failed has answered everybody"),
        *(
            Refused(event, ELSEWHERE, Error.defect, "the core looks for it only where it can be")
            for event in (E.undrain, E.drained_pause, E.drained_sleep, E.drained_update, E.drained_stop, E.reopen,
                          E.settle_sleeping, E.settle_paused, E.cleared, E.stop)
        )),
)
