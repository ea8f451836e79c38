"""Checkpoint folders: what is read, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quiesce.engine.checkpoint import ModelInfo, Rope, bytes_per_block, read_model_info
from quiesce.engine.config import EngineConfig
from quiesce.engine.errors import InvalidRequest
from quiesce.engine.tensor_files import check_tensors, expected_tensors
from quiesce.engine.tokenizer import Tokenizer

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 10,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "intermediate_size": 12,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 64,
    "rope_theta": 1_000_000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "eos_token_id": 3,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def write(folder: Path, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    return folder


def write_tensors(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "F32", cut: int = 0) -> None:
    """A safetensors file, by hand: the layout is part of what is tested."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        size = 4
        for n in shape:
            size *= n
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes((len(text).to_bytes(8, "little") + text + bytes(end))[: -cut or None])


def refusal(folder: Path) -> str:
    with pytest.raises(InvalidRequest) as error:
        check_tensors(read_model_info(folder))
    assert error.value.field == "model"
    return str(error.value)


def test_sizes_are_read_from_the_configuration(folder: Path) -> None:
    info = read_model_info(folder)
    assert info == ModelInfo(
        folder=str(folder),
        architecture="Qwen3ForCausalLM",
        vocab_size=10,
        hidden_size=8,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        intermediate_size=12,
        rms_norm_eps=1e-6,
        rope=Rope(1e6),
        max_position_embeddings=64,
        tie_word_embeddings=True,
        attention_bias=False,
        output_bias=False,
        qk_norm=True,
        eos_token_ids=(3,),
        dtype="bfloat16",
    )


def test_rope_theta_is_read_as_transformers_5_writes_it(folder: Path) -> None:
    write(folder, rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    assert read_model_info(folder).rope == Rope(5e5)


def test_head_dim_and_kv_heads_have_defaults(folder: Path) -> None:
    write(folder, head_dim=None, num_key_value_heads=None)
    info = read_model_info(folder)
    assert (info.head_dim, info.num_kv_heads) == (2, 4)


@pytest.mark.parametrize(("found", "ids"), [(7, (7,)), ([7, 9, 7], (7, 9)), (None, (3,))])
def test_the_generation_configuration_names_the_end_tokens(folder: Path, found: Any, ids: tuple[int, ...]) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": found}))
    assert read_model_info(folder).eos_token_ids == ids


def test_the_generation_configuration_sets_sampling_defaults(folder: Path) -> None:
    assert read_model_info(folder).generation_defaults == {}
    written = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": None, "max_length": 9}
    (folder / "generation_config.json").write_text(json.dumps(written))
    assert read_model_info(folder).generation_defaults == {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    hash(read_model_info(folder))


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("temperature", -1, "a number of at least 0"),
        ("temperature", "hot", "a number of at least 0"),
        ("top_p", 0, "a number above 0, at most 1"),
        ("top_p", 1.5, "a number above 0, at most 1"),
        ("top_k", 2.5, "a whole number"),
        ("top_k", True, "a whole number"),
        ("repetition_penalty", 0, "a number above 0"),
    ],
)
def test_a_sampling_default_that_cannot_be_is_named_with_its_file(folder: Path, name: str, value: Any, accepted: str) -> None:
    (folder / "generation_config.json").write_text(json.dumps({name: value}))
    with pytest.raises(InvalidRequest, match=rf"generation_config.json: field '{name}' is .*; accepted: {accepted}"):
        read_model_info(folder)


@pytest.mark.parametrize(
    ("architecture", "fields", "biases"),
    [
        ("LlamaForCausalLM", {}, (False, False, False)),
        ("LlamaForCausalLM", {"attention_bias": True}, (True, True, False)),
        ("LlamaForCausalLM", {"mlp_bias": True}, (False, False, True)),
        ("Qwen2ForCausalLM", {}, (True, False, False)),
        ("Qwen2ForCausalLM", {"attention_bias": True}, (True, False, False)),
        ("Qwen3ForCausalLM", {"attention_bias": True}, (True, True, False)),
    ],
)
def test_each_family_has_its_biases_and_norms(
    folder: Path, architecture: str, fields: dict[str, bool], biases: tuple[bool, ...]
) -> None:
    info = read_model_info(write(folder, architectures=[architecture], **fields))
    assert (info.attention_bias, info.output_bias, info.mlp_bias) == biases
    assert info.qk_norm == (architecture == "Qwen3ForCausalLM")
    names = expected_tensors(info)
    for name, wanted in zip(("self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj"), biases, strict=True):
        assert (f"model.layers.0.{name}.bias" in names) == wanted


def test_the_first_llama_checkpoints_named_no_base(folder: Path) -> None:
    assert read_model_info(write(folder, architectures=["LlamaForCausalLM"], rope_theta=None)).rope == Rope(10_000.0)


YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0}


@pytest.mark.parametrize(
    ("fields", "context"),
    [
        ({"rope_parameters": YARN}, 64),  # stretched from what it does not say
        ({"rope_parameters": YARN | {"original_max_position_embeddings": 64}}, 256),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}}, 64),
        ({"rope_scaling": {"type": "yarn", "factor": 3.0}, "original_max_position_embeddings": 32}, 96),
        ({"rope_scaling": {"type": "yarn", "factor": None}, "original_max_position_embeddings": 32}, 64),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 64),
    ],
)
def test_yarn_stretches_the_context_beyond_the_original_it_names(folder: Path, fields: dict[str, Any], context: int) -> None:
    assert read_model_info(write(folder, **fields)).max_position_embeddings == context


ACCEPTED = "accepted: one of LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, ["'architectures'", "GPT2LMHeadModel", ACCEPTED]),
        ({"architectures": None}, ["'architectures'", ACCEPTED]),
        ({"hidden_act": "gelu"}, ["'hidden_act'", "gelu", "accepted: 'silu'"]),
        ({"use_sliding_window": True}, ["'use_sliding_window'", "accepted: false"]),
        ({"layer_types": ["full_attention", "sliding_attention"]}, ["'layer_types'", "accepted: 'full_attention'"]),
        ({"mlp_bias": True}, ["'mlp_bias' is true", "accepted: false, or architecture LlamaForCausalLM"]),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
            ["'rope_scaling.type' is 'dynamic'", "accepted: default, linear, llama3 or yarn"],
        ),
        ({"rope_scaling": {"rope_type": "longrope"}}, ["'rope_scaling.rope_type' is 'longrope'", "accepted: default, linear"]),
        ({"rope_parameters": {"rope_type": "su"}}, ["'rope_parameters.rope_type'", "accepted: default, linear"]),
        ({"rope_parameters": {"rope_type": "linear"}}, ["'rope_parameters.factor' is missing", "a number above 0"]),
        ({"rope_parameters": {"rope_type": "linear", "factor": -2}}, ["'rope_parameters.factor' is -2", "a number above 0"]),
        ({"rope_parameters": LLAMA3 | {"high_freq_factor": 1.0}}, ["'rope_parameters.high_freq_factor' is 1.0", "above low"]),
        ({"rope_parameters": LLAMA3 | {"low_freq_factor": None}}, ["'rope_parameters.low_freq_factor' is missing"]),
        ({"rope_parameters": YARN | {"beta_fast": 0.5}}, ["'rope_parameters.beta_fast' is 0.5", "at least beta_slow=1"]),
        ({"rope_parameters": YARN | {"truncate": 1}}, ["'rope_parameters.truncate' is 1", "true or false"]),
        ({"rope_parameters": YARN | {"attention_factor": "big"}}, ["'rope_parameters.attention_factor'", "a number above 0"]),
        ({"rope_parameters": {"full_attention": YARN}}, ["'rope_parameters.full_attention'", "one set of numbers"]),
        ({"rope_scaling": {"type": "default", "mrope_section": [1, 1, 1]}}, ["'rope_scaling.mrope_section'", "one set"]),
        ({"rope_scaling": [4.0]}, ["'rope_scaling' is [4.0]", "an object or null"]),
        ({"partial_rotary_factor": 0.5}, ["'partial_rotary_factor' is 0.5", "accepted: 1.0"]),
        ({"quantization_config": {"bits": 4}}, ["'quantization_config'"]),
        ({"hidden_size": None}, ["'hidden_size' is missing"]),
        ({"hidden_size": "8"}, ["'hidden_size'", "accepted: a number above 0"]),
        ({"num_hidden_layers": 1.5}, ["'num_hidden_layers'", "whole number"]),
        ({"num_key_value_heads": 3}, ["num_attention_heads=4", "num_key_value_heads=3"]),
        ({"head_dim": 5}, ["head_dim=5"]),
        ({"rope_theta": None}, ["'rope_theta' is missing"]),
        ({"tie_word_embeddings": "yes"}, ["'tie_word_embeddings'", "true or false"]),
        ({"eos_token_id": "end"}, ["'eos_token_id'"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_served_is_refused_with_the_field_and_what_is_accepted(
    folder: Path, changes: dict[str, Any], words: list[str]
) -> None:
    text = refusal(write(folder, **changes))
    assert "config.json" in text
    for word in words:
        assert word in text


def test_a_folder_without_configuration_or_tensors_is_refused_by_name(folder: Path) -> None:
    assert f"{folder}: holds neither model.safetensors nor model.safetensors.index.json" in refusal(folder)
    (folder / "config.json").write_text("{")
    assert "config.json: cannot be read" in refusal(folder)
    (folder / "config.json").unlink()
    assert "config.json: the file is missing" in refusal(folder)


def test_a_whole_checkpoint_passes_and_says_what_to_read_where(folder: Path) -> None:
    shapes = expected_tensors(read_model_info(folder))
    write_tensors(folder / "model.safetensors", shapes | {"lm_head.weight": (10, 8), "model.rotary_emb.inv_freq": (3,)})
    assert check_tensors(read_model_info(folder)) == {folder / "model.safetensors": list(shapes)}


def test_an_untied_head_and_biases_are_expected_where_the_configuration_says_so(folder: Path) -> None:
    tied = set(expected_tensors(read_model_info(folder)))
    untied = set(expected_tensors(read_model_info(write(folder, tie_word_embeddings=False, attention_bias=True))))
    attn = "model.layers.0.self_attn"
    assert untied - tied == {"lm_head.weight"} | {f"{attn}.{name}_proj.bias" for name in "qkvo"}


def test_a_missing_tensor_is_named(folder: Path) -> None:
    shapes = expected_tensors(read_model_info(folder))
    del shapes["model.layers.0.mlp.up_proj.weight"]
    write_tensors(folder / "model.safetensors", shapes)
    assert "model.safetensors: tensor 'model.layers.0.mlp.up_proj.weight' is missing" in refusal(folder)


@pytest.mark.parametrize("cut", [1, 40, 2_000])
def test_a_truncated_file_names_the_first_tensor_that_is_not_whole(folder: Path, cut: int) -> None:
    write_tensors(folder / "model.safetensors", expected_tensors(read_model_info(folder)), cut=cut)
    text = refusal(folder)
    assert "model.safetensors: is truncated: tensor 'model." in text


@pytest.mark.parametrize(
    "content", [b"", b"1234567", (1 << 40).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"[]"]
)
def test_a_file_that_is_no_safetensors_file_is_named(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert "model.safetensors: is " in refusal(folder)


def test_a_tensor_of_another_shape_type_or_name_is_named(folder: Path) -> None:
    shapes, file = expected_tensors(read_model_info(folder)), folder / "model.safetensors"
    write_tensors(file, shapes | {"model.norm.weight": (9,)})
    assert "tensor 'model.norm.weight' has shape [9]; expected [8]" in refusal(folder)
    write_tensors(file, shapes, dtype="I32")
    assert "tensor 'model.embed_tokens.weight' is I32; accepted: F64, F32, F16, BF16" in refusal(folder)
    write_tensors(file, shapes, dtype="F16")  # says two bytes to an element, takes four
    assert "tensor 'model.embed_tokens.weight' of F16 [10, 8] takes 320 bytes" in refusal(folder)
    write_tensors(file, shapes | {"model.layers.1.mlp.up_proj.weight": (12, 8)})
    assert "tensor 'model.layers.1.mlp.up_proj.weight' has no place in this model" in refusal(folder)


def test_a_missing_shard_is_named_with_a_tensor_it_holds(folder: Path) -> None:
    shapes = expected_tensors(read_model_info(folder))
    names = list(shapes)
    parts = {"a.safetensors": names[:4], "b.safetensors": names[4:]}
    where = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    write_tensors(folder / "a.safetensors", {name: shapes[name] for name in parts["a.safetensors"]})
    assert f"b.safetensors: the file is missing; model.safetensors.index.json says it holds tensor '{names[4]}'" in refusal(
        folder
    )
    write_tensors(folder / "b.safetensors", {name: shapes[name] for name in parts["b.safetensors"]})
    assert check_tensors(read_model_info(folder)) == {folder / file: part for file, part in parts.items()}


def test_a_tensor_in_two_shards_is_named_with_both(folder: Path) -> None:
    shapes = expected_tensors(read_model_info(folder))
    first = next(iter(shapes))
    where = dict.fromkeys(shapes, "b.safetensors") | {first: "a.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    write_tensors(folder / "a.safetensors", {first: shapes[first]})
    write_tensors(folder / "b.safetensors", shapes)
    assert f"b.safetensors: tensor '{first}' is in a.safetensors too; accepted: one file" in refusal(folder)


def test_a_folder_without_a_tokenizer_names_the_file_and_what_is_accepted(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"tokenizer\.json"):
        Tokenizer(folder)


def test_bytes_per_block_counts_keys_and_values_of_all_layers(folder: Path) -> None:
    info = read_model_info(folder)
    assert bytes_per_block(info, EngineConfig(dtype="float32", block_size=16)) == 2 * 1 * 2 * 6 * 16 * 4
    assert bytes_per_block(info, EngineConfig(dtype="bfloat16", block_size=4)) == 2 * 1 * 2 * 6 * 4 * 2


def test_reading_a_checkpoint_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = "import sys, quiesce.engine.checkpoint, quiesce.engine.tensor_files; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=110)
