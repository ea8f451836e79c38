"""Prints the declaration found in a folder as JSON. Run as a file, in a process of its own, so that two versions never meet in one.

    python -I -S snapshot.py FOLDER        FOLDER holds the package `quiesce` with `spec/` in it

On failure the last line on stderr says why.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping


def plain(value: object) -> object:
    """The same in words, lists and mappings; a class of words is the list of them."""
    if isinstance(value, type):
        return [str(word) for word in value]  # type: ignore[attr-defined]  # an enumeration
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(word) for key, word in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(word) for word in value]
    return value if isinstance(value, bool) else None if value is None else str(value)


def main(folder: str) -> None:
    sys.path.insert(0, folder)
    try:
        from quiesce.spec import FACTS, MACHINES, PASS_ORDER, PROPERTIES
    except Exception as error:  # noqa: BLE001  # whatever is wrong there is told in a line
        complaints = str(error).splitlines() or [type(error).__name__]
        more = f" (and {len(complaints) - 1} more)" if len(complaints) > 1 else ""
        sys.exit(f"{complaints[0]}{more}")
    found = {
        "machines": plain(MACHINES),
        "facts": plain(FACTS),
        "properties": plain(PROPERTIES),
        "pass_order": [f"{machine}.{event}" for machine, event in PASS_ORDER],
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
