"""The body of the report: properties, rules, mutants and fairness, each with what was found of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby

from quiesce.proofs.document import Block, Bullets, Folded, Section, Text, table
from quiesce.proofs.evidence import Evidence, Judgement, Mutant
from quiesce.proofs.report_verdict import NOT_RUN, counted, plain, told
from quiesce.spec import MACHINES, PROPERTIES
from quiesce.spec.language import Fairness, Modality, Property
from quiesce.statemachine.markdown import code

HEADINGS = {
    Modality.always: "Always",
    Modality.on_every_move: "On every move",
    Modality.eventually: "Eventually",
    Modality.sometimes: "Sometimes",
}
"""Modality -> the title of its properties."""


# ---- properties -------------------------------------------------------------------------------------------------------------


def properties(evidence: Evidence) -> Section:
    """Each property: what it says, where it was judged and by whom, what it rests on, what it noticed."""
    sections = []
    for modality, title in HEADINGS.items():
        items = tuple(
            (f"**{prop.name}**: {prop.sentence}", tuple(_found(prop, evidence)))
            for prop in PROPERTIES
            if prop.modality is modality
        )
        sections.append(Section(title, (Bullets(items),)))
    declared = {prop.name for prop in PROPERTIES}
    others = sorted({plain(one.property) for one in evidence.judgements} - declared)
    if others:
        sections.append(Section("Not in the declaration", (Text(f"Judged as well: {', '.join(map(code, others))}."),)))
    return Section("Properties", (), tuple(sections))


def _found(prop: Property, evidence: Evidence) -> Iterator[str]:
    if prop.when:
        yield f"says: {code(prop.when)}" + (f" leads to {code(prop.then)}" if prop.then else "")
    mine = [one for one in evidence.judgements if plain(one.property) == prop.name]
    if mine:
        yield f"verdict: {'; '.join(_verdicts(mine, 'holds', '**does not hold**'))}"
    seen = [one for one in evidence.witnesses if plain(one.property) == prop.name]
    if seen:
        yield f"witness: {'; '.join(_verdicts(seen, 'happens', '**never happens**'))}"
        stories = [one.story for one in seen if one.holds]
        if stories:
            shortest = min(stories, key=len)
            yield f"shortest: {told(shortest)}"
    proofs = [one for one in evidence.proofs if plain(one.property) == prop.name]
    if proofs:
        count, unmet = sum(one.num_obligations for one in proofs), sum(one.num_unmet for one in proofs)
        solvers = ", ".join(sorted({str(one.by) for one in proofs}))
        yield f"any number of requests: {'proved' if not unmet else '**not proved**'}, {count} obligations, {unmet} not met ({solvers})"
    if prop.modality is Modality.eventually and evidence.fairness:
        rests = sorted(event for event, names in evidence.fairness.items() if prop.name in map(plain, names))
        yield f"rests on the fairness of: {', '.join(map(code, rests)) or 'no single event'}"
    if evidence.mutants:
        yield _killed(prop.name, evidence.mutants)
    if not (mine or seen or proofs):
        yield f"judges: {', '.join(prop.judges)}; {NOT_RUN}"


def _verdicts(judgements: Iterable[Judgement], good: str, bad: str) -> Iterator[str]:
    """One phrase for each world, size and semantics, with the judges that said so."""

    def where(one: Judgement) -> tuple[str, str, str, bool]:
        return one.world, one.size, one.semantics, one.holds

    for (world, size, semantics, holds), group in groupby(sorted(judgements, key=where), key=where):
        judges = ", ".join(sorted({str(one.by) for one in group}))
        yield f"{good if holds else bad} in {world} {size}, {semantics} ({judges})"


def _killed(name: str, found: list[Mutant]) -> str:
    """How many mutants it noticed, how many of them nobody else did, and, where there is none of those, who was there as well."""
    killers = [{plain(one) for one in mutant.killed_by} for mutant in found]
    mine = [names for names in killers if name in names]
    alone = sum(names == {name} for names in mine)
    text = f"mutants killed: {len(mine)}, alone: {alone}"
    if not mine:
        return f"{text}; no mutant of this sample breaks it"
    if alone:
        return text
    (partner, count), *_ = Counter(other for names in mine for other in sorted(names - {name})).most_common(1)
    return f"{text}; never alone, because another sentence says part of the same: {code(partner)} noticed {count} of them"


# ---- rules ------------------------------------------------------------------------------------------------------------------


def rules(evidence: Evidence) -> Section:
    """What breaks without each rule of the design, and without what closes each seed's hole."""
    if not evidence.rules:
        return Section("Rules and seeds", (Text(f"Rules taken away one at a time: {NOT_RUN}."),))
    items = []
    for rule in evidence.rules:
        lines = [f"taken away: {rule.removed}"]
        lines.append(f"breaks: {', '.join(map(code, rule.broken)) or 'nothing'}")
        lines += [f"shortest: {told(rule.story)}"] if rule.story else []
        lines.append(f"on the real engine: {rule.on_the_engine or 'not driven'}")
        items.append((f"**{rule.name}**: {rule.sentence}", tuple(lines)))
    return Section(
        "Rules and seeds", (Text(f"{counted(len(items), 'rule')}, each taken away by itself."), Bullets(tuple(items)))
    )


# ---- mutants ----------------------------------------------------------------------------------------------------------------


def mutants(evidence: Evidence) -> Section:
    """The tables with one thing changed: by kind, then who survived and why, then everybody."""
    found = evidence.mutants
    if not found:
        return Section("Mutants", (Text(f"Mutants of the tables: {NOT_RUN}."),))
    blocks: list[Block] = [_by_kind(found), *_killers(found)]
    certified = [one for one in found if not one.killed_by and one.certificate]
    still_open = tuple(
        (code(one.name) + (f", up to {one.size}" if one.size else ""), ())
        for one in found
        if not one.killed_by and not one.certificate
    )
    if still_open:
        blocks += [
            Text("**Open**: no property notices, and no certificate says that there is nothing to notice."),
            Bullets(still_open),
        ]
    for machine in sorted({one.machine for one in found}):
        killed = [
            f"{code(one.name)}: {', '.join(sorted(set(map(plain, one.killed_by))))}"
            for one in found
            if one.machine == machine and one.killed_by
        ]
        same = [f"{code(one.name)}: {one.certificate}" for one in certified if one.machine == machine]
        blocks += _listed(f"Killed in {machine}", killed)
        blocks += _listed(f"Not different in {machine}, each with its certificate", same)
    return Section("Mutants", tuple(blocks))


def _listed(title: str, lines: list[str]) -> list[Block]:
    return [Folded(f"{title} ({len(lines)})", (Text("<br>".join(lines)),))] if lines else []


def _by_kind(found: list[Mutant]) -> Block:
    def counts(mine: list[Mutant]) -> tuple[str, ...]:
        killed = sum(bool(one.killed_by) for one in mine)
        same = sum(not one.killed_by and bool(one.certificate) for one in mine)
        return str(len(mine)), str(killed), str(same), str(len(mine) - killed - same)

    rows = [(kind, *counts([one for one in found if one.kind == kind])) for kind in sorted({one.kind for one in found})]
    return table(("kind", "mutants", "killed", "not different", "open"), [*rows, ("all", *counts(found))])


def _killers(found: list[Mutant]) -> Iterator[Block]:
    """How many each property killed, and how many only it did."""
    killers = [sorted({plain(name) for name in one.killed_by}) for one in found]
    every = Counter(name for names in killers for name in names)
    alone = Counter(names[0] for names in killers if len(names) == 1)
    rows = [(code(name), str(count), str(alone[name])) for name, count in sorted(every.items())]
    yield Folded("By property", (table(("property", "killed", "killed alone"), rows),))


# ---- fairness ---------------------------------------------------------------------------------------------------------------


def fairness(evidence: Evidence) -> Section:
    """What is promised of each event, what provides it, and which leads-to do not hold without the mark."""
    rows = [
        (
            code(f"{machine.name}.{event.name}"),
            str(event.fairness),
            event.mechanism,
            _without(f"{machine.name}.{event.name}", evidence),
        )
        for machine in MACHINES
        for event in machine.events
        if event.fairness is not Fairness.none
    ]
    note = "weak: what is enabled for good happens. strong: what is enabled again and again happens. No property needs fairness of a client."
    return Section("Fairness", (Text(note), table(("event", "fairness", "what provides it", "does not hold without it"), rows)))


def _without(event: str, evidence: Evidence) -> str:
    if event not in evidence.fairness:
        return NOT_RUN
    return ", ".join(code(name) for name in sorted(set(map(plain, evidence.fairness[event])))) or "everything still holds"
