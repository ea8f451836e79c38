"""The shipped default model, `tiny`, and its sister for tests, `small`: checkpoints that have read the declaration.

`questions` asks the tables, `corpus` makes documents of the answers, `train` makes the checkpoints, `evaluate`
measures them, `transcripts` keeps what they answer in the engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

CONTEXT: Final = 2048
"""Longest sequence the shipped models are declared for, in tokens."""

FOLDERS: Final = {"tiny": "checkpoint", "small": "small"}
"""Shipped model -> its folder."""


def checkpoint_folder(name: str = "tiny") -> Path:
    """The folder of a shipped checkpoint, laid out as Hugging Face libraries expect it: `tiny` (2.6 M parameters) or `small` (0.5 M).

    Raises:
        KeyError: no model of that name is shipped.
    """
    return Path(__file__).resolve().parent / FOLDERS[name]
