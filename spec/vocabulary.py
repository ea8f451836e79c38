"""Every word of the lifecycles, once: states, events, and the values of the variables beside them.

Names equal values, so that a word is spelled the same in the tables, in the engine, in a trace and in a diagram.
"""

from __future__ import annotations

from enum import StrEnum, auto


class Mode(StrEnum):
    """How strongly a held pause token holds; abort > wait > keep."""

    keep = auto()
    wait = auto()
    abort = auto()


class Goal(StrEnum):
    """What a draining engine drains for."""

    none = auto()
    pause = auto()
    sleep = auto()
    update = auto()
    stop = auto()


class Policy(StrEnum):
    """What becomes of a tag's content while its memory is away; none = the tag is not selected."""

    none = auto()
    offload = auto()
    discard = auto()


class Tag(StrEnum):
    """What can be put to sleep."""

    weights = auto()
    kv_cache = auto()


class TokenOwner(StrEnum):
    """Reserved owners of pause tokens; any other name is a caller's own."""

    caller = auto()
    sleep = auto()
    update = auto()
    shutdown = auto()
    clear = auto()


class FinishReason(StrEnum):
    """Why a request ended."""

    stop = auto()
    length = auto()
    abort = auto()
    error = auto()


class EngineState(StrEnum):
    starting = auto()
    running = auto()
    draining = auto()
    paused = auto()
    partially_awake = auto()
    sleeping = auto()
    stopping = auto()
    stopped = auto()
    failed = auto()


class EngineEvent(StrEnum):
    ready = auto()
    ready_empty = auto()
    pause = auto()
    resume = auto()
    undrain = auto()
    drained_pause = auto()
    drained_sleep = auto()
    drained_update = auto()
    drained_stop = auto()
    reopen = auto()
    sleep = auto()
    withdraw_sleep = auto()
    wake_up = auto()
    settle_sleeping = auto()
    settle_paused = auto()
    clear = auto()
    cleared = auto()
    withdraw_clear = auto()
    begin_update = auto()
    withdraw_update = auto()
    shutdown = auto()
    shutdown_deadline = auto()
    stop = auto()
    fail = auto()


class TokenState(StrEnum):
    """`free`, or held in the mode it is named after."""

    free = auto()
    keep = auto()
    wait = auto()
    abort = auto()


class TokenEvent(StrEnum):
    hold = auto()
    release = auto()


class OperationKind(StrEnum):
    """What was called; the names of the public calls."""

    pause = auto()
    resume = auto()
    sleep = auto()
    wake_up = auto()
    update_weights = auto()
    begin_weight_update = auto()
    load_weights = auto()
    finish_weight_update = auto()
    abort_weight_update = auto()
    weights_checksum = auto()
    reset_prefix_cache = auto()
    shutdown = auto()


class OperationState(StrEnum):
    queued = auto()
    draining = auto()
    acting = auto()
    done = auto()
    failed = auto()
    superseded = auto()


class OperationEvent(StrEnum):
    take = auto()
    act = auto()
    deliver = auto()
    complete = auto()
    give_up = auto()
    supersede = auto()
    expire = auto()
    detach = auto()


class MemoryState(StrEnum):
    resident = auto()
    releasing = auto()
    released = auto()
    restoring = auto()
    undefined = auto()


class MemoryEvent(StrEnum):
    select = auto()
    deselect = auto()
    release = auto()
    released = auto()
    release_failed = auto()
    restore = auto()
    restored = auto()
    restore_failed = auto()
    kv_ready = auto()
    content_valid = auto()
    lose = auto()


class WeightsState(StrEnum):
    stable = auto()
    updating = auto()
    committing = auto()
    undefined = auto()


class WeightsEvent(StrEnum):
    begin = auto()
    begin_in_place = auto()
    load = auto()
    commit = auto()
    commit_keep = auto()
    committed = auto()
    rollback = auto()
    load_failed = auto()
    lose = auto()


class RequestState(StrEnum):
    absent = auto()
    received = auto()
    admitted = auto()
    running = auto()
    retracting = auto()
    draining = auto()
    ended = auto()


class RequestEvent(StrEnum):
    submit = auto()
    admit = auto()
    start = auto()
    preempt = auto()
    retract = auto()
    retracted = auto()
    abort = auto()
    aborted = auto()
    sweep = auto()
    eos = auto()
    finish = auto()
    fail = auto()
    device_fault = auto()
    fault = auto()
    reap = auto()


class StepState(StrEnum):
    empty = auto()
    planned = auto()
    launched = auto()
    landed = auto()
    retired = auto()
    dropped = auto()


class StepEvent(StrEnum):
    plan = auto()
    strip_members = auto()
    launch = auto()
    land = auto()
    retire = auto()
    drop = auto()
    void = auto()


class StreamState(StrEnum):
    closed = auto()
    opening = auto()
    open = auto()
    closing = auto()


class StreamEvent(StrEnum):
    call = auto()
    gone = auto()
    abort = auto()
    ack = auto()
    nak = auto()
    terminal = auto()
    fail = auto()


class SessionState(StrEnum):
    absent = auto()
    idle = auto()
    active = auto()
    closing = auto()


class SessionEvent(StrEnum):
    open = auto()
    turn = auto()
    stream_closed = auto()
    request_ended = auto()
    turn_over = auto()
    close = auto()
    closed = auto()


class LinkState(StrEnum):
    connecting = auto()
    up = auto()
    lost = auto()
    restarting = auto()
    down = auto()


class LinkEvent(StrEnum):
    connect = auto()
    crash = auto()
    detect = auto()
    lose = auto()
    kill = auto()
    restart = auto()
    give_up = auto()


class Place(StrEnum):
    """Which of the two step slots a step is in."""

    older = auto()
    newer = auto()


class Presence(StrEnum):
    """Whether the client of a stream, or the caller of an operation, still waits."""

    present = auto()
    gone = auto()
