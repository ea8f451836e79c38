"""Seeded tensors of a model, and shards of them on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from quiesce.engine.tensor_files import expected_tensors

Tensors = dict[str, torch.Tensor]


def make_tensors(info: Any, seed: int = 1) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in expected_tensors(info).items()}


def write_shards(tensors: Tensors, folder: Path) -> Path:
    folder.mkdir()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    index = {name: file for file, held in shards.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(str({"weight_map": index}).replace("'", '"'))
    return folder
