"""Outside programs that a test would like to ask."""

from __future__ import annotations

import os
import shutil

import pytest


def require_tool(name: str, package: str) -> str:
    """The path of a program; without it the test is skipped, or fails where `QUIESCE_REQUIRE_TOOLS=1` says that it must be there."""
    path = shutil.which(name)
    if path is not None:
        return path
    message = f"{name} is not installed; it comes with the Debian package {package}"
    if os.environ.get("QUIESCE_REQUIRE_TOOLS") == "1":
        pytest.fail(message)
    pytest.skip(message)
