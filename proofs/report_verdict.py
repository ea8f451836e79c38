"""The first page of the report: the verdict, what it rests on, and what was not looked at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

from quiesce.proofs.document import Block, Bullets, Section, Text, table
from quiesce.proofs.evidence import By, Evidence, Judgement, Run
from quiesce.proofs.world import World
from quiesce.spec import MACHINES, PROPERTIES
from quiesce.spec.language import Judge, Modality
from quiesce.statemachine.markdown import code
from quiesce.statemachine.trace import spec_hash

NOT_RUN = "not run in this profile"


def plain(name: str) -> str:
    """The property of a judgement, without the instance: `L1_answered[0]` is about `L1_answered`."""
    return name.partition("[")[0]


def counted(number: int, singular: str, plural: str = "") -> str:
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def machines_of(world: str) -> tuple[str, ...]:
    """The machines of the declaration that are in a world."""
    make = getattr(World, world, None)
    instances = make(1).instances if make else ()
    return tuple(machine.name for machine in MACHINES if machine.name in instances)


def verdict(evidence: Evidence, tools: Mapping[str, str], date: str) -> Section:
    """The first page."""
    about = [f"declaration {code(evidence.spec)}", f"profile {code(evidence.profile)}", *([date] if date else [])]
    judged_by = ", ".join(f"{name} {version}" for name, version in sorted(tools.items()))
    blocks: list[Block] = []
    if evidence.spec != spec_hash():
        blocks.append(
            Text(
                f"**The tables have changed since**: this evidence is of {code(evidence.spec)}, the tables below are {code(spec_hash())}."
            )
        )
    blocks += [
        Text(_in_one_paragraph(evidence)),
        *_broken(evidence),
        Text(f"{', '.join(about)}; tools: {judged_by or 'none named'}."),
    ]
    sections = (
        Section("Proved for any number of requests", tuple(_proved(evidence))),
        Section("Exhausted", tuple(_exhausted(evidence.runs))),
        Section("Held to by the monitor and by tests alone", tuple(_sampled())),
        Section("Never run", tuple(_never(evidence))),
    )
    return Section("Verdict", tuple(blocks), sections)


def _in_one_paragraph(evidence: Evidence) -> str:
    wrong = len(evidence.broken) + sum(proof.num_unmet > 0 for proof in evidence.proofs) + len(disagreements(evidence))
    cells = sum(len(machine.states) * len(machine.events) for machine in MACHINES)
    rows = sum(len(machine.rows) for machine in MACHINES)
    parts = [
        "**Everything that was judged holds.**"
        if not wrong
        else f"**{counted(wrong, 'finding')} against the declaration, listed below.**",
        f"The declaration has {len(MACHINES)} machines, {rows} rows and {cells} cells, each decided.",
        f"{counted(len({plain(one.property) for one in evidence.judgements}), 'property', 'properties')} judged in "
        f"{counted(len({(run.world, run.size, run.semantics) for run in evidence.runs}), 'exhausted world')}"
        f" ({counted(len(evidence.judgements), 'judgement')} by {counted(len({one.by for one in evidence.judgements}), 'judge')});",
        f"{counted(len(evidence.witnesses), 'witness', 'witnesses')} looked for;",
        f"for any number of requests {counted(sum(proof.num_obligations for proof in evidence.proofs), 'obligation')}"
        f" for {counted(len({plain(proof.property) for proof in evidence.proofs if proof.property}), 'sentence')};"
        if evidence.proofs
        else f"for any number of requests: {NOT_RUN};",
        _mutants_told(evidence),
        f"{sum(bool(rule.broken) for rule in evidence.rules)} of {counted(len(evidence.rules), 'rule')} shown to be needed."
        if evidence.rules
        else f"rules: {NOT_RUN}.",
    ]
    return " ".join(parts)


def _mutants_told(evidence: Evidence) -> str:
    if not evidence.mutants:
        return f"mutants of the tables: {NOT_RUN};"
    killed = sum(bool(one.killed_by) for one in evidence.mutants)
    certified = sum(not one.killed_by and bool(one.certificate) for one in evidence.mutants)
    return (
        f"{killed:,} of {counted(len(evidence.mutants), 'mutant')} of the tables killed by named properties, "
        f"{certified:,} shown to be none, {len(evidence.mutants) - killed - certified:,} open;"
    )


def _broken(evidence: Evidence) -> Iterator[Block]:
    """What does not hold, each with its story."""
    items: list[tuple[str, tuple[str, ...]]] = [
        (
            f"{code(one.property)} does not hold: {one.world} {one.size}, {one.semantics}, by {one.by}",
            (f"story: {told(one.story)}",),
        )
        for one in evidence.judgements
        if not one.holds
    ]
    items += [
        (f"{code(one.property)} never happens: {one.world} {one.size}, {one.semantics}, by {one.by}", ())
        for one in evidence.witnesses
        if not one.holds
    ]
    items += [
        (
            f"{code(proof.property or 'every action is possible')}: {proof.num_unmet} of {proof.num_obligations} obligations not met, by {proof.by}",
            (),
        )
        for proof in evidence.proofs
        if proof.num_unmet
    ]
    items += [(f"judges disagree: {text}", ()) for text in disagreements(evidence)]
    if items:
        yield Bullets(tuple(items))


def told(story: Iterable[str]) -> str:
    """A story in a line."""
    return " → ".join(map(code, story)) or "nothing happens"


def disagreements(evidence: Evidence) -> list[str]:
    """Where two judges of the same world found different graphs or different verdicts."""
    found = [
        f"{world} {size}, {semantics}{', symmetric' if symmetric else ''}: "
        + ", ".join(f"{run.by} {run.num_states:,} states, {run.num_edges:,} edges" for run in runs)
        for (world, size, semantics, symmetric), runs in _by_graph(evidence.runs)
        if len({(run.num_states, run.num_edges) for run in runs}) > 1
    ]
    judged = sorted(evidence.judgements, key=_where)
    for (name, world, size, semantics), group in groupby(judged, key=_where):
        verdicts = {one.by: one.holds for one in group}
        if len(set(verdicts.values())) > 1:
            said = ", ".join(f"{by} {'holds' if holds else 'does not'}" for by, holds in sorted(verdicts.items()))
            found.append(f"{code(name)} in {world} {size}, {semantics}: {said}")
    return found


def _where(one: Judgement) -> tuple[str, str, str, str]:
    return one.property, one.world, one.size, one.semantics


def _by_graph(runs: Iterable[Run]) -> list[tuple[tuple[str, str, str, bool], list[Run]]]:
    """Runs that searched the same graph, in the order of their sizes."""

    def graph(run: Run) -> tuple[str, str, str, bool]:
        return run.world, run.size, run.semantics, run.is_symmetric

    return [(key, list(group)) for key, group in groupby(sorted(runs, key=lambda run: (*graph(run), run.by)), key=graph)]


def _proved(evidence: Evidence) -> Iterator[Block]:
    """Sentences with their obligations; those of the declaration first, then the lemmas that carry them."""
    if not evidence.proofs:
        yield Text(f"The proof for any number of requests: {NOT_RUN}.")
        return
    solvers = sorted({str(proof.by) for proof in evidence.proofs})
    total, unmet = (sum(getattr(proof, name) for proof in evidence.proofs) for name in ("num_obligations", "num_unmet"))
    possible = any(not proof.property for proof in evidence.proofs)
    yield Text(
        f"By induction, whatever the number of requests: {counted(total, 'obligation')}, {unmet} not met; solvers: {', '.join(solvers)}. "
        + (
            "Every action was asked to be possible, too, or what is proved of it would be proved of nothing."
            if possible
            else "Whether every action is possible was not asked."
        )
    )
    names = sorted({plain(proof.property) for proof in evidence.proofs if proof.property})
    declared = {prop.name for prop in PROPERTIES}
    yield Text(f"Properties: {', '.join(code(name) for name in names if name in declared) or 'none'}.")
    yield Text(f"Lemmas: {', '.join(code(name) for name in names if name not in declared) or 'none'}.")


def _exhausted(runs: list[Run]) -> Iterator[Block]:
    """Every reachable state of each world, by each judge, side by side."""
    if not runs:
        yield Text(f"Exhaustive searches: {NOT_RUN}.")
        return
    rows = []
    for (world, size, semantics, symmetric), group in _by_graph(runs):
        agreed = len({(run.num_states, run.num_edges) for run in group}) == 1
        judges = len({run.by for run in group})  # one that was asked twice is one judge
        opinion = "**they disagree**" if not agreed else "one judge" if judges == 1 else f"{judges} judges agree"
        for place, run in enumerate(group):
            rows.append((
                *((world, f"{size}{', requests counted once' if symmetric else ''}", semantics) if not place else ("″", "″", "″")),
                str(run.by), f"{run.num_states:,}", f"{run.num_edges:,}", str(run.depth or ""), str(run.num_dead),
                f"{run.seconds:.1f}" if run.seconds else "", f"{run.megabytes:,.0f}" if run.megabytes else "", "" if place else opinion,
            ))  # fmt: skip
    columns = ("world", "size", "semantics", "judge", "states", "edges", "depth", "without a way on", "s", "MB", "agreement")
    yield table(columns, rows)
    yield Text(
        "interleaved: anybody may act at any time. one pass: clients, operators, timers and the environment wait for the core's boundary work, as in the engine."
    )


def _sampled() -> Iterator[Block]:
    """Properties that no model judges."""
    found = [prop for prop in PROPERTIES if not {Judge.model, Judge.any_n_proof} & set(prop.judges)]
    yield Text("These are not model-checked: the engine is held to them while it runs, and on the runs that tests make.")
    yield Bullets(tuple((f"{code(prop.name)}: {prop.sentence} ({', '.join(prop.judges)})", ()) for prop in found))


def _never(evidence: Evidence) -> Iterator[Block]:
    """What the declaration asks for and this run did not do."""
    explored = {name for run in evidence.runs for name in machines_of(run.world)}
    judged = {plain(one.property) for one in (*evidence.judgements, *evidence.witnesses)}
    proved = {plain(proof.property) for proof in evidence.proofs}
    heard = {*(one.by for one in evidence.runs), *(one.by for one in evidence.judgements), *(one.by for one in evidence.proofs)}
    missing = {
        "machines in no world that was explored": [machine.name for machine in MACHINES if machine.name not in explored],
        "properties that a model should judge and none did": [
            prop.name for prop in PROPERTIES if Judge.model in prop.judges and prop.name not in judged
        ],
        "properties to be proved for any number of requests that were not": [
            prop.name
            for prop in PROPERTIES
            if Judge.any_n_proof in prop.judges and prop.modality is not Modality.eventually and prop.name not in proved
        ],
    }
    items = [f"{what}: {', '.join(map(code, names))}" for what, names in missing.items() if names]
    silent = [str(by) for by in By if by not in heard]
    items += [f"judges that were not asked: {', '.join(silent)}"] if silent else []
    absent = {"mutants": evidence.mutants, "rules and seeds": evidence.rules, "fairness marks taken away": evidence.fairness}
    items += [f"{name}: {NOT_RUN}" for name, found in absent.items() if not found]
    yield Bullets(tuple((item, ()) for item in items)) if items else Text("Nothing that the declaration asks for.")
