"""The exhaustive explorer: the same trees printed as C, compiled here, run breadth first over packed states.

A state is one number in mixed radix, 64 bits wide; worlds that do not fit are refused. The seen set is an open-addressed table. For
every state the C program keeps whence it came, so that a violation is told as a shortest story of action names.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quiesce.proofs.expr import All, Any, Const, Expr, Free, In, Neg
from quiesce.proofs.model import Action, Assign, Model, is_patient


class ToolMissing(RuntimeError):
    """A program that the proofs need is not installed."""


@dataclass(frozen=True, slots=True)
class MoveProperty:
    """A promise about moves: whenever an action of `before` is taken, its tree holds in the state that the action leaves."""

    name: str
    sentence: str
    before: Mapping[int, Expr]
    """By the action's number. What is promised of the state after is said of the one before (`proofs/moves.py: after`)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an exhaustive run found."""

    num_states: int
    num_edges: int
    depth: int
    num_dead: int
    """States without any way on."""
    fired: tuple[int, ...]
    """How often each action was taken."""
    stories: Mapping[str, tuple[str, ...]]
    """Violated properties, each with a shortest way to it; the last name is the move where it is one on moves."""
    seconds: float


def printed(tree: Expr) -> str:
    """A C expression over the array `s`."""
    match tree:
        case Const(value):
            return str(int(value))
        case In(variable, values):
            if len(values) == 1:
                return f"s[{variable}]=={next(iter(values))}"
            return f"({sum(1 << value for value in values)}>>s[{variable}]&1)"
        case Free(states, holding, capacity):
            mask = sum(1 << value for value in holding)
            return "(" + "+".join(f"({mask}>>s[{state}]&1)" for state in states) + f"<{capacity})"
        case Neg(part):
            return f"!({printed(part)})"
        case All(parts):
            return "(" + "&&".join(f"({printed(part)})" for part in parts) + ")"
        case Any(parts):
            return "(" + "||".join(f"({printed(part)})" for part in parts) + ")"


def _assign(one: Assign) -> str:
    value = f"s[{one.source}]" if one.source is not None else str(one.value)
    condition = printed(one.when)
    return f"t[{one.variable}]={value};" if condition == "1" else f"if({condition})t[{one.variable}]={value};"


def _action(number: int, action: Action) -> str:
    body = "".join(map(_assign, action.assigns))
    return (
        f"static int g{number}(const u8*s){{return {printed(action.guard)};}}\n"
        f"static void a{number}(const u8*s,u8*t){{(void)s;{body}}}\n"
    )


def _on_moves(moves: Sequence[MoveProperty]) -> str:
    """For each action the promises that speak of it."""
    cases: dict[int, str] = {}
    for place, move in enumerate(moves):
        for number, tree in move.before.items():
            cases[number] = cases.get(number, "") + f"if(!({printed(tree)}))b|=1ULL<<{place};"
    return "switch(a){" + "".join(f"case {number}:{text}break;" for number, text in sorted(cases.items())) + "}"


def program(model: Model, always: Mapping[str, Expr], moves: Sequence[MoveProperty], one_pass: bool) -> str:
    """The C source.

    Raises:
        ValueError: a state does not fit 64 bits, or there are more than 64 properties of a kind.
    """
    if max(len(always), len(moves)) > 64:
        raise ValueError("64 properties of a kind are the most")
    sizes = [len(variable.values) for variable in model.variables]
    if math.prod(sizes) >= 1 << 64:
        raise ValueError(f"a state of this world takes {math.log2(math.prod(sizes)):.1f} bits; 64 is the most")
    count = len(model.actions)
    urgent = "||".join(f"g{number}(s)" for number, action in enumerate(model.actions) if action.event.boundary) or "0"
    patient = ",".join(str(int(is_patient(action))) for action in model.actions)
    checks = "".join(f"if(!({printed(tree)}))b|=1ULL<<{number};" for number, tree in enumerate(always.values()))
    on_moves = _on_moves(moves)
    return TEMPLATE.format(
        variables=len(sizes), sizes=",".join(map(str, sizes)), initial=",".join(map(str, model.initial)), actions=count,
        functions="".join(_action(number, action) for number, action in enumerate(model.actions)),
        guards=",".join(f"g{number}" for number in range(count)), applies=",".join(f"a{number}" for number in range(count)),
        patient=patient, urgent=urgent if one_pass else "0", checks=checks, moves=on_moves,
    )  # fmt: skip


def explore(
    model: Model, always: Mapping[str, Expr], moves: Sequence[MoveProperty] = (), one_pass: bool = False, megabytes: int = 4096
) -> Verdict:
    """Runs the explorer to the end of the world.

    Raises:
        ToolMissing: there is no C compiler.
        MemoryError: the states need more than `megabytes`.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise ToolMissing("a C compiler is needed: install the package gcc")
    with tempfile.TemporaryDirectory() as name:
        code, binary = Path(name) / "explore.c", Path(name) / "explore"
        code.write_text(program(model, always, moves, one_pass), encoding="utf-8")
        subprocess.run([compiler, "-O1", "-o", str(binary), str(code)], check=True, capture_output=True, text=True)
        done = subprocess.run([str(binary), str(megabytes)], capture_output=True, text=True, check=False)
    if done.returncode == 2:
        raise MemoryError(f"the states of {model.name} need more than {megabytes} MB")
    if done.returncode:
        raise RuntimeError(f"the explorer ended with {done.returncode}: {done.stderr}")
    return _verdict(model, list(always), [move.name for move in moves], done.stdout)


def _verdict(model: Model, always: Sequence[str], moves: Sequence[str], text: str) -> Verdict:
    found: dict[str, list[int]] = {}
    stories: dict[str, tuple[str, ...]] = {}
    seconds = 0.0
    for line in text.splitlines():
        word, *rest = line.split()
        if word == "seconds":
            seconds = float(rest[0])
        elif word in ("always", "move"):
            name = (always if word == "always" else moves)[int(rest[0])]
            stories[name] = tuple(model.actions[int(number)].name for number in rest[1:])
        else:
            found[word] = [int(number) for number in rest]
    (states, edges, depth, dead) = found["count"]
    return Verdict(states, edges, depth, dead, tuple(found["fired"]), stories, seconds)


TEMPLATE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
typedef unsigned char u8; typedef unsigned long long u64; typedef unsigned u32;
#define V {variables}
#define A {actions}
static const u8 size[V]={{{sizes}}}; static const u8 initial[V]={{{initial}}}; static const u8 patient[A]={{{patient}}};
{functions}
static int (*const guard[A])(const u8*)={{{guards}}};
static void (*const apply[A])(const u8*,u8*)={{{applies}}};
static int urgent(const u8*s){{return {urgent};}}
static u64 broken(const u8*s){{u64 b=0;(void)s;{checks}return b;}}
static u64 broken_move(const u8*s,int a){{u64 b=0;(void)s;(void)a;{moves}return b;}}
static u64 pack(const u8*s){{u64 k=0;for(int i=0;i<V;i++)k=k*size[i]+s[i];return k;}}
static void unpack(u64 k,u8*s){{for(int i=V-1;i>=0;i--){{s[i]=k%size[i];k/=size[i];}}}}
static u64 mix(u64 x){{x^=x>>31;x*=0x7fb5d329728ea185ULL;x^=x>>27;x*=0x81dadef4bc2dd44dULL;return x^x>>33;}}
static u64*states; static u32*from,*table; static unsigned short*by; static u64 n,room,slots;
static void grow(void){{
  slots*=2; free(table); table=calloc(slots,4); if(!table)exit(2);
  for(u64 i=0;i<n;i++){{u64 h=mix(states[i])&(slots-1);while(table[h])h=(h+1)&(slots-1);table[h]=(u32)i+1;}}
}}
static u32 add(u64 k,u32 parent,int action,int*fresh){{
  u64 h=mix(k)&(slots-1);
  while(table[h]){{if(states[table[h]-1]==k){{*fresh=0;return table[h]-1;}}h=(h+1)&(slots-1);}}
  if(n==room)exit(2);
  states[n]=k;from[n]=parent;by[n]=(unsigned short)action;table[h]=(u32)++n;*fresh=1;
  if(n*2>slots)grow();
  return (u32)n-1;
}}
static void story(u64 i){{if(i==0)return;story(from[i]);printf(" %d",by[i]);}}
int main(int c,char**v){{
  u64 bytes=(u64)atoll(c>1?v[1]:"1024")<<20; room=bytes/(8+4+2+16); if(room>4000000000ULL)room=4000000000ULL; slots=1<<16;
  states=malloc(room*8);from=malloc(room*4);by=malloc(room*2);table=calloc(slots,4);
  if(!states||!from||!by||!table)exit(2);
  static u64 fired[A]; u64 edges=0,dead=0,depth=0,level=1; u64 seen=0,seen_move=0;
  clock_t began=clock(); u8 s[V],t[V]; int fresh; add(pack(initial),0,0,&fresh);
  for(u64 i=0;i<n;i++){{
    if(i==level){{depth++;level=n;}}
    unpack(states[i],s);
    for(u64 b=broken(s)&~seen;b;b&=b-1){{seen|=b&-b;printf("always %d",__builtin_ctzll(b));story(i);printf("\n");}}
    int busy=urgent(s); u64 out=0;
    for(int a=0;a<A;a++){{
      if((busy&&patient[a])||!guard[a](s))continue;
      for(u64 m=broken_move(s,a)&~seen_move;m;m&=m-1){{seen_move|=m&-m;printf("move %d",__builtin_ctzll(m));story(i);printf(" %d\n",a);}}
      memcpy(t,s,V); apply[a](s,t); add(pack(t),(u32)i,a,&fresh); out++; fired[a]++;
    }}
    edges+=out; dead+=!out;
  }}
  printf("count %llu %llu %llu %llu\n",n,edges,depth,dead);
  printf("fired"); for(int a=0;a<A;a++)printf(" %llu",fired[a]); printf("\nseconds %.2f\n",(double)(clock()-began)/CLOCKS_PER_SEC);
  return 0;
}}
"""
