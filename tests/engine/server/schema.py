"""`make schema`: schemathesis, which lives in an environment of its own, against a real server. It finds no 500, or this ends with 1.

Twice: the generating routes of an engine that nobody controls, and the control routes, which put the engine into whatever state they may.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from quiesce.stateful.server_process import ServerProcess

CONFIG = Path(__file__).with_name("schemathesis.toml")
FLAGS = ("--dtype", "float32", "--max-model-len", "64", "--control-timeout-s", "0.5")
ENDLESS = "/lifecycle/events"
ROUNDS = ((), ("--enable-admin",))


def examined(tool: Path, flags: tuple[str, ...], examples: int) -> int:
    """One round; the tool's exit status, or 1 if the server did not outlive it."""
    with ServerProcess(*FLAGS, *flags) as server:
        command = [
            str(tool), "--config-file", str(CONFIG), "run", f"{server.url}/openapi.json", "--checks", "not_a_server_error", "--phases", "coverage,fuzzing",
            "--max-examples", str(examples), "--seed", "1", "--request-timeout", "60", "--continue-on-failure", "--exclude-path", ENDLESS,
            "--suppress-health-check", "all", "--no-color",
        ]  # fmt: skip
        status = subprocess.run(command, cwd=tool.parent, check=False).returncode  # it writes its notes there
        alive = server.process.poll() is None
    defects = [line for line in server.errors if "Traceback" in line]
    return 1 if defects or not alive else status


if __name__ == "__main__":
    sys.exit(max([examined(Path(sys.argv[1]).resolve(), flags, int(sys.argv[2])) for flags in ROUNDS]))
