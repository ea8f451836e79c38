"""Llama, Qwen2 and Qwen3, with every rotary embedding in both notations, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from quiesce.engine.checkpoint import read_model_info
from quiesce.engine.device.model import rope_frequencies
from quiesce.engine.device.runner import Runner

if TYPE_CHECKING:
    from tests.engine.device.conftest import Harness, Reference


def test_logits_and_64_greedy_tokens_equal_transformers(harness: type[Harness], family_reference: Reference) -> None:
    reference = family_reference
    runner = Runner(harness.config(load_format="auto"), reference.info, 40, progress=False)
    one_by_one = [
        runner.forward(harness.step(harness.Chunk([token], at, list(range(10))))) for at, token in enumerate(reference.prompt)
    ]
    assert (torch.cat(one_by_one) - reference.logits).abs().max() <= 2e-4
    assert reference.logits.abs().max() > 1.0  # the comparison compares something
    assert harness.generate(runner, reference.prompt, list(range(39, 9, -1)), 64) == reference.tokens
    assert len(set(reference.tokens)) > 3
    runner.close()


def test_both_notations_of_every_rotary_embedding_give_the_frequencies_of_transformers(
    checkpoints: Path, tmp_path: Path
) -> None:
    base = json.loads((checkpoints / "llama" / "config.json").read_text())
    del base["rope_parameters"]
    base |= {"hidden_size": 64, "num_attention_heads": 2, "head_dim": 32, "max_position_embeddings": 128}
    seen = set()
    for wanted in json.loads((checkpoints / "ropes.json").read_text()):
        (tmp_path / "config.json").write_text(json.dumps(base | wanted["fields"]))
        rope = read_model_info(tmp_path).rope
        got, exact = rope_frequencies(rope, 32), torch.tensor(wanted["frequencies"])
        assert torch.allclose(got, exact, rtol=3e-6, atol=0.0), wanted["name"]
        assert rope.attention_factor == pytest.approx(wanted["attention_factor"], rel=1e-12), wanted["name"]
        seen.add((tuple(wanted["frequencies"]), wanted["attention_factor"]))
    assert len(seen) == 11  # they differ from each other, but that transformers passes over `mscale` alone


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize(("dtype", "off"), [("float16", 0.04), ("bfloat16", 0.4)])
def test_half_types_are_as_near_to_float32_as_their_bits(
    harness: type[Harness], one_reference: Reference, dtype: str, off: float, batch_invariant: bool
) -> None:
    config = harness.config(load_format="auto", dtype=dtype, batch_invariant=batch_invariant)
    runner = Runner(config, one_reference.info, 40, progress=False)
    blocks, length = list(range(10)), len(one_reference.prompt)
    prefill = runner.forward(harness.step(harness.Chunk(one_reference.prompt[:20], 0, blocks)))
    decoded = [runner.forward(harness.step(harness.Chunk([one_reference.prompt[at]], at, blocks))) for at in range(20, length)]
    found = (torch.cat([prefill, *decoded]) - one_reference.logits[19:]).abs().max()
    assert 0 < found < off
    assert runner.kv.dtype == getattr(torch, dtype)
    runner.close()


def test_empty_weights_are_mapped_and_hold_nothing(harness: type[Harness]) -> None:
    runner = Runner(harness.config(load_format="empty"), harness.info(), 4, progress=False)
    assert all(not view.any() for view in runner.weights.destinations.values())
    assert "model.layers.1.mlp.up_proj.weight" in runner.weights.destinations
    for name, view in runner.weights.destinations.items():
        view.fill_(1.0 if "norm" in name else 0.01)
    assert runner.forward(harness.step(harness.Chunk([1, 2], 0, [0]))).abs().sum() > 0
    runner.close()
