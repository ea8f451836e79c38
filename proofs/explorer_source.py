"""A model printed as a C header, `world.h`: how a state is packed into one number, and which ways lead on from it.

What makes the search fast is here. A state has two forms. Packed it is one number of 64 or 128 bits, in mixed radix over the values
that a variable can take in this world at all: what is never written costs nothing. Unpacked it is a set of bits, one for each variable
and value, so that a guard, negations pushed inward, is a few ANDs with constants. An action is a difference of packed numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from quiesce.proofs.expr import FALSE, All, Any, Const, Expr, Free, In, Neg, conj, disj
from quiesce.proofs.model import Assign, Model, is_patient

WORD = 64


def simplified(tree: Expr, values: Sequence[frozenset[int]], negated: bool = False) -> Expr:
    """The same truth where variable v has one of `values[v]`: negations stand at `Free` only."""
    match tree:
        case Const(value):
            return Const(value != negated)
        case In(variable, wanted):
            possible = values[variable]
            here = possible - wanted if negated else possible & wanted
            return Const(bool(here)) if here in (possible, frozenset()) else In(variable, here)
        case Free():
            return Neg(tree) if negated else tree
        case Neg(part):
            return simplified(part, values, not negated)
        case All(parts):
            inner = [simplified(part, values, negated) for part in parts]
            return disj(inner) if negated else conj(inner)
        case Any(parts):
            inner = [simplified(part, values, negated) for part in parts]
            return conj(inner) if negated else disj(inner)


def attainable(model: Model) -> list[frozenset[int]]:
    """Values that each variable can take, each looked at by itself: at least those of the states that can be reached."""
    found = [frozenset({value}) for value in model.initial]
    size = 0
    while size != sum(map(len, found)):
        size = sum(map(len, found))
        for action in model.actions:
            if simplified(action.guard, found) == FALSE:
                continue
            for one in action.assigns:
                if one.source is not None:  # both are coded alike, so that a copy is a copy
                    found[one.variable] = found[one.source] = found[one.variable] | found[one.source]
                elif one.value not in found[one.variable] and simplified(one.when, found) != FALSE:
                    found[one.variable] |= {one.value}
    return found


def needed(tree: Expr) -> dict[int, frozenset[int]]:
    """Variables of which a (simplified) guard needs certain values to hold."""
    match tree:
        case In(variable, values):
            return {variable: values}
        case All(parts):
            found: dict[int, frozenset[int]] = {}
            for part in parts:
                for variable, values in needed(part).items():
                    found[variable] = found.get(variable, values) & values
            return found
        case Any(parts):
            each = [needed(part) for part in parts]
            common = set(each[0]).intersection(*each[1:])
            return {variable: frozenset().union(*(one[variable] for one in each)) for variable in common}
    return {}


@dataclass(frozen=True)
class Layout:
    """Where the variables of a world are in the packed number and among the bits."""

    values: tuple[tuple[int, ...], ...]
    """The values a variable can take, in order; a value's code is its place here."""
    groups: tuple[tuple[int, ...], ...]
    """Variables that share a field of the packed number, highest field first; in mixed radix, the last variable lowest."""
    shifts: tuple[int, ...]
    """The lowest bit of each field."""
    columns: int
    """How many of the last fields may be exchanged with one another; 0 where nothing is."""

    @staticmethod
    def of(model: Model, columns: Sequence[Sequence[int]] = ()) -> Layout:
        """Packs the variables; each of `columns`, the variables of one request, gets a field of its own.

        Raises:
            ValueError: a state takes more than 128 bits.
        """
        values = tuple(tuple(sorted(each)) for each in attainable(model))
        apart = set(itertools.chain.from_iterable(columns))
        groups: list[list[int]] = [[]]
        for variable in range(len(values)):
            if variable not in apart:
                if math.prod(len(values[other]) for other in (*groups[-1], variable)) >= 1 << WORD:
                    groups.append([])
                groups[-1].append(variable)
        packed = (*map(tuple, groups), *map(tuple, columns))
        widths = [(math.prod(len(values[variable]) for variable in group) - 1).bit_length() for group in packed]
        if sum(widths) > 2 * WORD:
            raise ValueError(f"a state of this world takes {sum(widths)} bits; {2 * WORD} is the most")
        shifts = tuple(sum(widths[place + 1 :]) for place in range(len(widths)))
        return Layout(values, packed, shifts, len(columns))

    @cached_property
    def possible(self) -> list[frozenset[int]]:
        return [frozenset(values) for values in self.values]

    @cached_property
    def num_bits(self) -> int:
        width = math.prod(len(self.values[variable]) for variable in self.groups[0]) - 1
        return self.shifts[0] + width.bit_length()

    @cached_property
    def weights(self) -> dict[int, int]:
        """What one step of a variable's code adds to the packed number."""
        found = {}
        for group, shift in zip(self.groups, self.shifts, strict=True):
            for place, variable in enumerate(group):
                found[variable] = math.prod(len(self.values[other]) for other in group[place + 1 :]) << shift
        return found

    @cached_property
    def bits(self) -> dict[int, int]:
        """A variable's first bit; its codes follow, within one word."""
        found, free = {}, 0
        for variable, values in enumerate(self.values):
            if len(values) > 1:
                if free // WORD != (free + len(values) - 1) // WORD:
                    free = (free // WORD + 1) * WORD
                found[variable] = free
                free += len(values)
        return found

    def mask(self, variable: int, values: Collection[int]) -> tuple[int, int]:
        """The word in which a variable's bits are, and those of these values."""
        word, first = divmod(self.bits[variable], WORD)
        codes = (place for place, value in enumerate(self.values[variable]) if value in values)
        return word, sum(1 << first + code for code in codes)


class Printer:
    """C expressions over `w`, the bits of a state, `s`, its codes, and `c`, each code's share of the packed number."""

    def __init__(self, model: Model, layout: Layout) -> None:
        self.model, self.layout = model, layout

    def wide(self, number: int) -> str:
        """A constant of the packed type."""
        number %= 1 << (WORD if self.layout.num_bits <= WORD else 2 * WORD)
        return f"{number}ULL" if number < 1 << WORD else f"((K){number >> WORD}ULL<<{WORD}|{number % (1 << WORD)}ULL)"

    def truth(self, tree: Expr) -> str:
        """An expression that is not zero where the tree holds."""
        return self._truth(simplified(tree, self.layout.possible))

    def _truth(self, tree: Expr) -> str:
        match tree:
            case Const(value):
                return str(int(value))
            case In():
                return self._joined((tree,), any_of=True)
            case Free(states, holding, capacity):
                masks = self._masks(In(state, holding & self.layout.possible[state]) for state in states)
                held = "+".join(f"__builtin_popcountll(w[{word}]&{mask}ULL)" for word, mask in masks)
                return f"({held or '0'}<{capacity})"  # where nobody can hold a block nobody does
            case Neg(part):
                return f"!{self._truth(part)}"
            case All(parts):
                return self._joined(parts, any_of=False)
            case Any(parts):
                return self._joined(parts, any_of=True)

    def _joined(self, parts: Sequence[Expr], any_of: bool) -> str:
        """Tests of single variables become one AND for each word: some bit that is wanted is there, or none that is not."""
        tests = [part for part in parts if isinstance(part, In)]
        others = [self._truth(part) for part in parts if not isinstance(part, In)]
        if any_of:
            wanted = "||".join([*(f"(w[{word}]&{mask}ULL)" for word, mask in self._masks(tests)), *others])
            return f"({wanted or '0'})"
        unwanted = [In(test.variable, self.layout.possible[test.variable] - test.values) for test in tests]
        absent = "&&".join([*(f"!(w[{word}]&{mask}ULL)" for word, mask in self._masks(unwanted)), *others])
        return f"({absent or '1'})"

    def _masks(self, tests: Iterable[In]) -> list[tuple[int, int]]:
        found: dict[int, int] = {}
        for test in tests:
            if test.variable in self.layout.bits:
                word, mask = self.layout.mask(test.variable, test.values)
                found[word] = found.get(word, 0) | mask
        return sorted(found.items())

    def after(self, assigns: Sequence[Assign]) -> str:
        """The packed state after; of several assignments to a variable that apply the last counts."""
        constant, terms = 0, []
        written: dict[int, list[Assign]] = {}
        for one in assigns:
            written.setdefault(one.variable, []).append(one)
        for variable, ones in written.items():
            if len(self.layout.values[variable]) == 1:
                continue
            value: str | int = f"c[{variable}]"
            for one in ones:
                condition = self.truth(one.when)
                if condition == "0":
                    continue
                new = self._share(one)
                value = new if condition == "1" else f"({condition}?{self._text(new)}:{self._text(value)})"
            if value == f"c[{variable}]":
                continue
            terms.append(f"-c[{variable}]")
            if isinstance(value, int):
                constant += value
            else:
                terms.append(f"+{value}")
        return "k" + "".join(terms) + (f"+{self.wide(constant)}" if constant else "")

    def _share(self, one: Assign) -> str | int:
        weight = self.layout.weights[one.variable]
        if one.source is not None:
            if len(self.layout.values[one.source]) == 1:
                return self.layout.values[one.variable].index(self.model.initial[one.source]) * weight
            return f"(K)s[{one.source}]*{self.wide(weight)}"
        return self.layout.values[one.variable].index(one.value) * weight

    def _text(self, value: str | int) -> str:
        return value if isinstance(value, str) else f"(K){self.wide(value)}"

    def unpack(self) -> str:
        """Statements that fill `s`, `c` and `w` from `k`."""
        lines = []
        for place, (group, shift) in enumerate(zip(self.layout.groups, self.layout.shifts, strict=True)):
            sizes = [len(self.layout.values[variable]) for variable in group]
            width = (math.prod(sizes) - 1).bit_length()
            if not width:
                continue
            lines.append(f"g=(u64)(k>>{shift})" + ("" if place == 0 else f"&{(1 << width) - 1}ULL") + ";")
            for variable, size in reversed(list(zip(group, sizes, strict=True))):
                if size > 1:
                    lines.append(
                        f"s[{variable}]=g%{size};g/={size};c[{variable}]=(K)s[{variable}]*{self.wide(self.layout.weights[variable])};"
                    )
        for word in range(self.num_words):
            here = [(variable, first % WORD) for variable, first in self.layout.bits.items() if first // WORD == word]
            lines.append(f"w[{word}]=" + ("|".join(f"1ULL<<s[{variable}]<<{first}" for variable, first in here) or "0") + ";")
        return "\n  ".join(lines)

    @cached_property
    def num_words(self) -> int:
        return max(self.layout.bits.values(), default=0) // WORD + 1

    def canonical(self) -> str:
        """Statements that sort the exchangeable fields of `k` and say in `orbit` how many states that stands for."""
        shifts = self.layout.shifts[-self.layout.columns :]
        width = shifts[-2]
        taken = ",".join(f"(u64)(k>>{shift})&{(1 << width) - 1}ULL" for shift in shifts)
        back = "|".join(f"(K)f[{place}]<<{shift}" for place, shift in enumerate(shifts))
        return f"u64 f[]={{{taken}}};sort(f);k=k>>{width * len(shifts)}<<{width * len(shifts)}|{back};"

    def ways(self, one_pass: bool) -> str:
        """Statements that put at `o` each way on. In one pass, what clients do comes last, if no boundary work was found.

        Raises:
            ValueError: boundary work waits for boundary work.
        """
        possible = [(number, action) for number, action in enumerate(self.model.actions) if self.truth(action.guard) != "0"]
        if not one_pass:
            return self._grouped([number for number, _ in possible])
        urgent = [number for number, action in possible if action.event.boundary]
        patient = [number for number, action in possible if is_patient(action)]
        if both := set(urgent) & set(patient):
            raise ValueError(f"{self.model.actions[min(both)].name} waits for itself")
        others = [number for number, _ in possible if number not in {*urgent, *patient}]
        return f"{self._grouped(urgent)}busy=o!=out;\n{self._grouped(others)}if(!busy){{\n{self._grouped(patient)}}}"

    def _grouped(self, numbers: Sequence[int]) -> str:
        """Actions that need the same values of the variable that tells most of them apart are asked after one look at it."""
        guards = {number: simplified(self.model.actions[number].guard, self.layout.possible) for number in numbers}
        needs = {number: needed(guard) for number, guard in guards.items()}
        every = self.layout.possible

        def asked(variable: int) -> float:
            return sum(len(need.get(variable, every[variable])) for need in needs.values()) / len(every[variable])

        chosen = min(range(len(every)), key=asked)
        groups: dict[frozenset[int], list[str]] = {}
        for number, guard in guards.items():
            known = needs[number].get(chosen, every[chosen])
            left = self._truth(simplified(guard, [*every[:chosen], known, *every[chosen + 1 :]]))
            after = self.after(self.model.actions[number].assigns)
            groups.setdefault(known, []).append(f"if({left})*o++=(Way){{{after},from,{number}}};\n")
        return "".join(f"if({self.truth(In(chosen, known))}){{\n{''.join(lines)}}}\n" for known, lines in groups.items())


def _broken(printer: Printer, trees: Mapping[int, Expr]) -> str:
    """Statements that set a bit of `b` for each numbered tree that does not hold, and then `any`."""
    tests = {number: printer.truth(Neg(tree)) for number, tree in trees.items()}
    return "".join(
        f"if({test}){{b[{number // WORD}]|=1ULL<<{number % WORD};any=1;}}" for number, test in tests.items() if test != "0"
    )


def promises(printer: Printer, always: Sequence[Expr], moves: Sequence[Mapping[int, Expr]]) -> str:
    """Functions that set a bit of `b` for each promise on states, or on the move that an action makes, that is broken."""
    cases: dict[str, list[int]] = {}
    for number in range(len(printer.model.actions)):
        spoken = {place: move[number] for place, move in enumerate(moves) if number in move}
        cases.setdefault(_broken(printer, spoken), []).append(number)
    switch = "".join(
        f"{''.join(f'case {number}:' for number in numbers)}{tests}break;\n" for tests, numbers in cases.items() if tests
    )
    return f"""\
#define STATE_WORDS {len(always) // WORD + 1}
#define MOVE_WORDS {len(moves) // WORD + 1}
static int broken(const u64*w,u64*b){{int any=0;(void)w;(void)b;{_broken(printer, dict(enumerate(always)))}return any;}}
static int broken_by(int a,const u64*w,u64*b){{int any=0;(void)w;(void)b;switch(a){{
{switch}}}return any;}}
"""


def labels(printer: Printer, trees: Mapping[int, Expr]) -> str:
    """A function that gives a state a bit for each numbered tree that holds."""
    held = "|".join(f"(u64)!!{printer.truth(tree)}<<{number}" for number, tree in trees.items()) or "0"
    return f"static u64 labels(const u64*w){{(void)w;return {held};}}\n"


def header(printer: Printer, one_pass: bool) -> str:
    """What `states.h` needs of a world."""
    model, layout = printer.model, printer.layout
    initial = sum(
        layout.values[variable].index(value) * layout.weights[variable] for variable, value in enumerate(model.initial)
    )
    symmetry = f"#define COLUMNS {layout.columns}\n#define COLUMN {layout.shifts[-2]}\n" if layout.columns > 1 else ""
    symmetry += f"#define SORTED(k) {{{printer.canonical()}}}\n" if layout.columns > 1 else ""
    return f"""\
typedef unsigned char u8; typedef unsigned u32; typedef unsigned long long u64;
typedef {"u64" if layout.num_bits <= WORD else "unsigned __int128"} K;
typedef struct {{K key;u32 from;unsigned short action;}} Way;
#define VARIABLES {len(model.variables)}
#define WORDS {printer.num_words}
#define ACTIONS {len(model.actions)}
#define INITIAL {printer.wide(initial)}
{symmetry}
static void unpack(K k,u8*s,K*c,u64*w){{
  u64 g;
  {printer.unpack()}
}}
static int ways(K k,u32 from,const u8*s,const K*c,const u64*w,Way*out){{
Way*o=out; int busy=0; (void)busy;(void)s;
{printer.ways(one_pass)}
return (int)(o-out);
}}
"""
