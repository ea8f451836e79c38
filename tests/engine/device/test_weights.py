"""Loading: what arrives in the arena, and what is refused with the file's and the tensor's name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from quiesce.engine.checkpoint import read_model_info
from quiesce.engine.device.weights import Weights, fill_dummy, load_weights
from quiesce.engine.errors import InvalidRequest
from quiesce.engine.tensor_files import expected_tensors

if TYPE_CHECKING:
    from tests.engine.device.conftest import Harness, Reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_tensor_of_the_files_arrives_converted(reference: Reference, dtype: torch.dtype) -> None:
    weights = Weights(reference.info, dtype)
    load_weights(weights, progress=False)
    seen = 0
    for path in reference.folder.glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            view = weights.destinations[name]
            assert torch.equal(view, tensor.to(dtype).expand(view.shape)), name
            seen += 1
    assert seen == len(expected_tensors(reference.info)) == len(weights.destinations)
    weights.close()
    assert weights.arena.closed


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), "float32"), (float("-inf"), "bfloat16"), (1e5, "float16")])
def test_a_tensor_that_is_not_finite_in_the_type_it_is_loaded_as_is_named(
    checkpoints: Path, tmp_path: Path, value: float, dtype: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoints / "tied_grouped", folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.self_attn.k_norm.weight"][3] = value
    save_file(tensors, folder / "model.safetensors")
    weights = Weights(read_model_info(folder), getattr(torch, dtype))
    words = rf"model.safetensors: tensor 'model.layers.1.self_attn.k_norm.weight' holds .* no finite {dtype}"
    with pytest.raises(InvalidRequest, match=words):
        load_weights(weights, progress=False)
    weights.close()


def test_biases_of_every_projection_have_a_place_of_their_own(harness: type[Harness]) -> None:
    weights = Weights(harness.info(attention_bias=True, output_bias=True, mlp_bias=True), torch.float32)
    for number, view in enumerate(weights.destinations.values(), 1):
        view.fill_(number)
    layer = weights.layers[0]
    biases = (layer.qkv_bias, layer.out_bias, layer.gate_up_bias, layer.down_bias)
    assert [None if bias is None else len(set(bias.tolist())) for bias in biases] == [3, 1, 2, 1]
    weights.close()


def test_dummy_weights_are_a_function_of_the_seed(harness: type[Harness]) -> None:
    made = []
    for seed in (1, 1, 2):
        weights = Weights(harness.info(), torch.float32)
        fill_dummy(weights, seed)
        made.append(weights.layers[1].qkv.clone())
        assert (weights.norm == 1).all()
        assert 0.015 < weights.embed.std() < 0.025
        weights.close()
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_the_packed_tensors_lie_apart_on_cache_lines(harness: type[Harness]) -> None:
    weights = Weights(harness.info(hidden_size=30, head_dim=10), torch.float32)
    for number, (name, view) in enumerate(weights.destinations.items(), 1):
        if view.dim() == 1 or "norm" not in name:
            view.fill_(number)
    for number, (name, view) in enumerate(weights.destinations.items(), 1):
        if view.dim() == 1 or "norm" not in name:
            assert (view == number).all(), name
    for layer in weights.layers:
        assert layer.qkv.data_ptr() % 64 == layer.down.data_ptr() % 64 == 0
    weights.close()


def test_a_truncated_or_mismatching_checkpoint_names_file_and_tensor(checkpoints: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoints / "tied_grouped", folder)
    file = folder / "model.safetensors"
    whole = load_file(file)
    info = read_model_info(folder)
    damaged = {
        "is missing": {k: v for k, v in whole.items() if k != "model.layers.1.mlp.up_proj.weight"},
        "has shape": whole | {"model.layers.1.mlp.up_proj.weight": torch.zeros(96, 47)},
        "is I64": whole | {"model.layers.1.mlp.up_proj.weight": torch.zeros(96, 48, dtype=torch.int64)},
    }
    for what, tensors in damaged.items():
        save_file(tensors, file)
        weights = Weights(info, torch.float32)
        with pytest.raises(InvalidRequest, match=what) as error:
            load_weights(weights, progress=False)
        assert error.value.field == "model"
        assert "model.safetensors" in str(error.value)
        assert "model.layers.1.mlp.up_proj.weight" in str(error.value)
        assert not weights.embed.any()  # nothing was copied
        weights.close()
