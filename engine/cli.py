"""The `quiesce` command. Each sub-command imports what it needs when it runs, so that `--help` costs nothing."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

from quiesce import __version__
from quiesce.engine import logs
from quiesce.engine.errors import EngineError

INTERRUPTED = 130
"""Exit status after Ctrl+C, as a shell reports it."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quiesce",
        description="Quiesce CLI",
        epilog="For the options of a command:   quiesce COMMAND --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-v", "--version", action="version", version=f"quiesce {__version__}")
    parser.add_argument(
        "--log-level", choices=logs.LEVELS, default="warning", help="least level of log lines, on stderr (default: %(default)s)"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    _add_serve(commands)
    _add_chat(commands)
    _add_bench(commands)
    _add_demo(commands)
    _add_diagram(commands)
    _add_prove(commands)
    _add_replay(commands)
    _add_tours(commands)
    _add_fuzz(commands)
    return parser


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


MODEL_HELP = "the shipped model, `tiny`, or a Hugging Face checkpoint folder"


def _add_serve(commands: Commands) -> None:
    from quiesce.engine.server.flags import add_arguments

    text = "Serve a model over HTTP: OpenAI's API, token-in/token-out, and the control verbs."
    command = commands.add_parser("serve", help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    command.add_argument("model", nargs="?", default="tiny", metavar="MODEL", help=MODEL_HELP)
    add_arguments(command)
    command.set_defaults(run=_serve)


def _serve(asked: argparse.Namespace) -> int:
    from quiesce.engine.server.command import run

    return run(asked)


def _add_chat(commands: Commands) -> None:
    text = "Talk with a model on the terminal."
    command = commands.add_parser("chat", help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    command.add_argument("model", nargs="?", default="tiny", metavar="MODEL", help=MODEL_HELP)
    command.add_argument("--temperature", type=float, help="0 always takes the likeliest token; default: the checkpoint's own")
    command.add_argument("--top-p", type=float, help="sample from the likeliest tokens of this total probability; likewise")
    command.add_argument("--max-tokens", type=int, help="longest answer; default: what the context has room for")
    command.add_argument("--seed", type=int, help="same seed, same answers")
    command.add_argument("--system", metavar="TEXT", help="system message")
    command.add_argument("--num-threads", type=int, help="threads to compute with")
    command.set_defaults(run=_chat)


def _chat(asked: argparse.Namespace) -> int:
    from quiesce.engine.chat import ChatOptions, run

    return run(
        ChatOptions(asked.model, asked.temperature, asked.top_p, asked.max_tokens, asked.seed, asked.system, asked.num_threads)
    )


def _add_bench(commands: Commands) -> None:
    text = "Measure throughput and latency of a model under random prompts, or the whole suite of figures."
    command = commands.add_parser("bench", help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    command.add_argument("model", nargs="?", default="tiny", metavar="MODEL", help=MODEL_HELP)
    load = command.add_argument_group("load")
    load.add_argument("--num-prompts", type=int, default=64, help="requests in all")
    load.add_argument("--input-len", type=int, default=128, help="tokens of each prompt")
    load.add_argument("--output-len", type=int, default=64, help="tokens of each answer")
    load.add_argument(
        "--request-rate", type=float, default=float("inf"), help="requests a second, as a Poisson process; inf: all at once"
    )
    load.add_argument("--concurrency", type=int, help="requests that wait for an answer at the same time; default: no bound")
    load.add_argument("--seed", type=int, default=0, help="of prompts and arrivals")
    load.add_argument("--num-threads", type=int, default=1, help="threads to compute with")
    load.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="element type of weights and KV")
    load.add_argument("--profile", type=Path, metavar="FILE", help="write a Chrome trace of every step, host and device")
    suite = command.add_argument_group("suite")
    suite.add_argument("--suite", action="store_true", help="measure the figures to reach instead, peers in the same run")
    suite.add_argument(
        "--rows", default="gate,host,lifecycle,boundary,http,decode,mixed", help="rows of the suite, separated by commas"
    )
    command.add_argument("--quick", action="store_true", help="toy sizes: that it runs, not how fast")
    command.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures here; the suite writes build/bench/suite.json by itself"
    )
    command.set_defaults(run=_bench)


def _bench(asked: argparse.Namespace) -> int:
    from quiesce.engine.bench import command

    return command.run(asked)


def _add_demo(commands: Commands) -> None:
    text = "Watch sixteen clients come, leave and get aborted on the shipped model, and the books balance."
    command = commands.add_parser("demo", help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    command.add_argument(
        "--model", default="tiny", help="the shipped model, or a Hugging Face checkpoint folder with a chat template"
    )
    command.add_argument("--out", type=Path, default=Path("build/demo"), help="folder for the trace and the diagrams")
    command.add_argument("--num-threads", type=int, default=1, help="threads to compute with")
    command.add_argument("--plain", action="store_true", help="lines instead of the live view, as where stdout is no terminal")
    command.set_defaults(run=_demo)


def _demo(asked: argparse.Namespace) -> int:
    from quiesce.engine.demo import run

    return run(asked.model, asked.out, asked.num_threads, asked.plain)


def _add_prove(commands: Commands) -> None:
    text = "Model-check the declaration: every state that can be reached, every promise on states and moves, every leads-to."
    command = commands.add_parser("prove", help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    command.add_argument(
        "--profile",
        default="quick",
        choices=("quick", "full"),
        help="quick: small worlds, a minute; full: every judge, most of an hour",
    )
    command.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for what was found, and for the report; default: proofs for full, else build/proofs",
    )
    command.set_defaults(run=_prove)


def _prove(asked: argparse.Namespace) -> int:
    from quiesce.proofs.explorer import ToolMissing
    from quiesce.proofs.prove import run

    try:
        return run(asked.profile, asked.out or Path("proofs" if asked.profile == "full" else "build/proofs"))
    except ToolMissing as missing:
        print(f"quiesce prove: {missing}", file=sys.stderr)
        return 2


def _add_replay(commands: Commands) -> None:
    text = "Drive the real engine along a story of the model's actions, or follow a trace of an engine in the model."
    command = commands.add_parser("replay", help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    command.add_argument(
        "file", type=Path, metavar="FILE", help="a story, a schedule that the fuzzer wrote, or a trace of an engine"
    )
    command.add_argument("--diagram", type=Path, metavar="FILE", help="of a schedule: write a Mermaid sequence diagram of it")
    command.add_argument("--regression", type=Path, metavar="FILE", help="of a schedule: write a pytest file that plays it")
    command.set_defaults(run=_replay)


def _replay(asked: argparse.Namespace) -> int:
    from quiesce.stateful.fuzz import command
    from quiesce.stateful.replay import run
    from quiesce.stateful.story import StoryError

    if command.is_schedule(asked.file):
        return command.rerun(asked.file, asked.diagram, asked.regression)
    try:
        return run(asked.file)
    except StoryError as error:
        print(f"quiesce replay: {error}", file=sys.stderr)
        return 2


def _add_tours(commands: Commands) -> None:
    text = "Drive the real engine along every edge of an abstraction of the model, and ask it all that is refused: minutes."
    command = commands.add_parser("tours", help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    command.add_argument("--requests", type=int, choices=(1, 2), default=1, help="in the model")
    command.set_defaults(run=_tours)


def _tours(asked: argparse.Namespace) -> int:
    from quiesce.proofs.explorer import ToolMissing
    from quiesce.stateful.edge_tours import run

    try:
        return run(asked.requests)
    except ToolMissing as missing:
        print(f"quiesce tours: {missing}", file=sys.stderr)
        return 2


def _add_fuzz(commands: Commands) -> None:
    text = "Hunt for races, leaks, hangs and wrong tokens: clients, operators and faults against the real engine, on hostile schedules."
    command = commands.add_parser("fuzz", help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    command.add_argument(
        "--profile",
        default="quick",
        choices=("quick", "deep", "soak"),
        help="quick: a minute at most; deep: 20 minutes; soak: --hours",
    )
    command.add_argument("--hours", type=float, default=1.0, help="how long a soak takes")
    command.add_argument(
        "--device",
        default="ledger",
        choices=("ledger", "cpu", "cuda", "boundary"),
        help="ledger: books instead of tensors, for volume; cpu, cuda: the real ones; boundary: ledger, behind that of a process",
    )
    command.add_argument(
        "--through",
        choices=("boundary", "http"),
        help="boundary: of a core process that is played, with losses and late letters; http: a real server, in real time",
    )
    command.add_argument("--seed", type=int, default=0, help="the first seed; a quick run plays the same ones each time")
    command.add_argument(
        "--out", type=Path, default=Path("build/fuzz"), help="folder for failures (quiesce replay) and coverage.json"
    )
    command.set_defaults(run=_fuzz)


def _fuzz(asked: argparse.Namespace) -> int:
    from quiesce.stateful.fuzz.command import fuzz, fuzz_http

    if asked.through == "http":
        return fuzz_http(asked.profile, asked.hours, asked.seed)
    return fuzz(asked.profile, asked.hours, asked.seed, asked.out, asked.through or asked.device)


def _add_diagram(commands: Commands) -> None:
    from quiesce.spec import MACHINES

    text = "Draw the lifecycles from the tables that the engine runs, or what changed between two revisions of them."
    command = commands.add_parser(
        "diagram", help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    names = [*(machine.name for machine in MACHINES), "coupling", "composed"]
    command.add_argument(
        "machine",
        nargs="?",
        choices=names,
        metavar="MACHINE",
        help=f"print this one: {', '.join(names)} (what the machines share; engine, memory and weights together); "
        "without it all machines are written",
    )
    command.add_argument(
        "--format", choices=("mermaid", "dot", "md", "svg"), default="mermaid", help="of what is printed; svg needs Graphviz"
    )
    command.add_argument("--out", type=Path, default=Path("build/diagrams"), help="folder for what is written")
    command.add_argument(
        "--against",
        metavar="REV",
        help="print what changed since this git revision, in MACHINE or anywhere, as Markdown for a review (REV..REV2: between two); "
        "coloured pictures go to the folder",
    )
    command.add_argument(
        "--coverage",
        type=Path,
        metavar="FILE",
        help="of quiesce fuzz: how often each row was taken, and in red what never was (svg, dot)",
    )
    command.set_defaults(run=_diagram)


def _diagram(asked: argparse.Namespace) -> int:
    from quiesce.spec import MACHINES
    from quiesce.statemachine import diagram, graphviz
    from quiesce.statemachine.revisions import RevisionError

    try:
        if asked.against is not None:
            return _difference(asked)
        if asked.coverage is not None:
            return _painted(asked)
        if asked.machine is not None:
            pictures = _pictures(asked.machine)
            print(graphviz.svg(pictures["dot"]()) if asked.format == "svg" else pictures[asked.format](), end="")
            return 0
        paths = diagram.write_all(asked.out)
        if asked.format == "svg":
            paths += graphviz.draw_all(paths)
        print(f"{len(MACHINES)} machines in {len(paths)} files: {asked.out}")
    except (graphviz.ToolMissing, RevisionError) as error:
        print(f"quiesce diagram: {error}", file=sys.stderr)
        return 2
    return 0


def _painted(asked: argparse.Namespace) -> int:
    from quiesce.spec import CATALOG
    from quiesce.stateful.fuzz.coverage import hits
    from quiesce.statemachine import graphviz

    try:
        taken = hits(asked.coverage)
    except ValueError as error:
        print(f"quiesce diagram: {error}", file=sys.stderr)
        return 2
    names = [asked.machine] if asked.machine is not None else list(CATALOG.machines)
    if not set(names) <= set(CATALOG.machines):
        print(f"quiesce diagram: {asked.machine} has no rows of its own to count", file=sys.stderr)
        return 2
    asked.out.mkdir(parents=True, exist_ok=True)
    paths = [asked.out / f"{name}.coverage.dot" for name in names]
    for path, name in zip(paths, names, strict=True):
        path.write_text(graphviz.dot(CATALOG.machines[name], graphviz.of_hits(taken[name])), encoding="utf-8", newline="\n")
    paths += graphviz.draw_all(paths)
    print(f"{len(names)} machines in {len(paths)} files: {asked.out}")
    return 0


def _pictures(name: str) -> dict[str, Callable[[], str]]:
    """Each form in which something can be shown."""
    from quiesce.spec import CATALOG
    from quiesce.statemachine import coupling, diagram, graphviz

    if name == "coupling":
        return {"mermaid": coupling.mermaid, "dot": coupling.dot, "md": coupling.markdown}
    if name == "composed":
        from quiesce.proofs import composed

        seen = composed.view()
        return {
            "mermaid": partial(composed.mermaid, seen),
            "dot": partial(composed.dot, seen),
            "md": partial(composed.markdown, seen),
        }
    machine = CATALOG.machines[name]
    return {
        "mermaid": partial(diagram.mermaid, machine),
        "dot": partial(graphviz.dot, machine),
        "md": partial(diagram.markdown_table, machine),
    }


def _difference(asked: argparse.Namespace) -> int:
    from quiesce.statemachine import difference_report
    from quiesce.statemachine.difference import compare
    from quiesce.statemachine.revisions import RevisionError, two

    if asked.machine == "composed":
        raise RevisionError("composed is explored, not declared: compare a machine, or coupling")
    found = compare(*two(asked.against))
    if asked.machine is not None:
        found = found.only(asked.machine)
    print(difference_report.markdown(found), end="")
    if found:
        paths = difference_report.write_pictures(found, asked.out)
        print(f"{len(paths)} coloured pictures: {asked.out}", file=sys.stderr)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status. 2: the call or the configuration cannot be, said in one line on stderr."""
    command = "quiesce"
    try:
        asked = _parser().parse_args(arguments)
        command += f" {asked.command}"
        logs.set_up(asked.log_level)
        status: int = asked.run(asked)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (EngineError, OSError) as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is over: a second press must not spoil the exit
        print(f"{command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    return status


if __name__ == "__main__":
    sys.exit(main())
