"""What was found, by whom, in which world: plain data, kept as JSON. Reports are made from this and from nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path


class By(StrEnum):
    """Who judged."""

    explorer = "our explorer (C)"
    search = "our search (Python)"
    spin = "SPIN"
    rumur = "Rumur"
    z3 = "z3"
    cvc5 = "cvc5"


class Semantics(StrEnum):
    """When clients and operators may act: at any time, or only when the core's boundary work is done (rule R1)."""

    interleaved = "interleaved"
    one_pass = "one pass"


@dataclass(frozen=True, slots=True)
class Run:
    """One exhaustive search of one world."""

    world: str
    """`engine`, `link`, `session`, `operation`."""
    size: str
    """`N=2`; further bounds and what was left out follow: `N=3, K=2, without engine.clear`."""
    semantics: Semantics
    by: By
    num_states: int
    num_edges: int
    seconds: float
    megabytes: float = 0.0
    depth: int = 0
    num_dead: int = 0
    """States without any way on."""
    is_symmetric: bool = False
    """Requests that differ only in their number counted once."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """One property in one world, by one judge."""

    property: str
    world: str
    size: str
    semantics: Semantics
    by: By
    holds: bool
    story: tuple[str, ...] = ()
    """Names of actions: the shortest way to break it, or, of a witness, to reach it."""


@dataclass(frozen=True, slots=True)
class Proof:
    """One property for any number of requests: the obligations that stand for it, and how many were not met."""

    property: str
    by: By
    num_obligations: int
    num_unmet: int
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Mutant:
    """The tables with one thing changed, and what noticed."""

    name: str
    """`request.reap[22] when: drop "not in_flight"`."""
    machine: str
    kind: str
    """`drop conjunct`, `negate conjunct`, `drop update`, `retarget update`, `drop row`, `drop fairness` ..."""
    killed_by: tuple[str, ...] = ()
    """Names of properties that do not hold any more; empty for a survivor."""
    story: tuple[str, ...] = ()
    size: str = ""
    """Where it was killed, or the largest scope in which it was not."""
    certificate: str = ""
    """Of a survivor: why it is none. `same graph at N=1 and N=2`, `z3: the guard is implied by ...`."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of the design, what breaks without it in the model, and what then goes wrong on the real engine."""

    name: str
    """`R15`, or the name of a seed."""
    sentence: str
    removed: str
    """What was taken out of which table."""
    broken: tuple[str, ...]
    story: tuple[str, ...]
    on_the_engine: str = ""
    """What the real engine did when it was driven along the story; empty if it was not."""


@dataclass(slots=True)
class Evidence:
    """Everything one run of `quiesce prove` found."""

    spec: str
    """`spec_hash()` of the tables that were judged."""
    profile: str
    runs: list[Run] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)
    proofs: list[Proof] = field(default_factory=list)
    witnesses: list[Judgement] = field(default_factory=list)
    mutants: list[Mutant] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    fairness: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Fair event -> leads-to that do not hold without its mark."""

    @property
    def broken(self) -> list[Judgement]:
        return [found for found in self.judgements if not found.holds] + [found for found in self.witnesses if not found.holds]

    def absorb(self, other: Evidence) -> None:
        """Takes in what another part of the work found."""
        for name in ("runs", "judgements", "proofs", "witnesses", "mutants", "rules"):
            getattr(self, name).extend(getattr(other, name))
        for event, names in other.fairness.items():
            self.fairness[event] = tuple(sorted({*self.fairness.get(event, ()), *names}))

    def put_in_order(self) -> None:
        """However its parts ended one after the other, the same findings are kept in the same order."""
        self.runs.sort(key=lambda run: (run.world, run.size, run.semantics, run.by, run.is_symmetric))
        for found in (self.judgements, self.witnesses):
            found.sort(key=lambda one: (one.world, one.size, one.semantics, one.by))
        self.proofs.sort(key=lambda proof: (proof.by, proof.property))
        self.fairness = dict(sorted(self.fairness.items()))

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def read(path: Path) -> Evidence:
        """What `write` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        kinds = {
            "runs": Run,
            "judgements": Judgement,
            "proofs": Proof,
            "witnesses": Judgement,
            "mutants": Mutant,
            "rules": Rule,
        }
        for name, kind in kinds.items():
            data[name] = [kind(**{key: _frozen(key, value) for key, value in one.items()}) for one in data[name]]
        data["fairness"] = {event: tuple(names) for event, names in data["fairness"].items()}
        return Evidence(**data)


def _frozen(key: str, value: object) -> object:
    if isinstance(value, list):
        return tuple(value)
    if key == "by":
        return By(str(value))
    return Semantics(str(value)) if key == "semantics" else value
