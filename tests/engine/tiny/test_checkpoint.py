"""The shipped folders are whole, are what their cards say, and can be read by any Hugging Face library."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from quiesce.engine.tiny import CONTEXT, FOLDERS, checkpoint_folder
from quiesce.engine.tiny.card import FILES, SUMS, sums
from quiesce.engine.tiny.corpus import CHAT_TEMPLATE, SPECIAL_TOKENS, trained_questions
from quiesce.engine.tiny.train import SIZES, STEP_TOKENS
from quiesce.engine.tokenizer import Tokenizer

PARAMETERS = {"tiny": 2_558_784, "small": 492_640}
LARGEST = {"tiny": 5_400_000, "small": 1_200_000}


@pytest.fixture(params=FOLDERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(name: str) -> Path:
    return checkpoint_folder(name)


@pytest.fixture
def card(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_the_default_folder_is_the_one_of_tiny() -> None:
    assert checkpoint_folder() == checkpoint_folder("tiny") != checkpoint_folder("small")


def test_the_shipped_files_are_the_ones_that_were_measured(folder: Path) -> None:
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    assert {name: digest for digest, name in (line.split("  ") for line in lines)} == sums(folder)
    assert {path.name for path in folder.iterdir()} == {*FILES, SUMS}


def test_the_checkpoints_are_small_enough_to_ship(name: str, folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) < LARGEST[name]


def test_the_configuration_says_qwen3_in_the_words_that_libraries_read(name: str, folder: Path) -> None:
    config, size = _json(folder / "config.json"), SIZES[name]
    shape = {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.head_dim,
        "intermediate_size": size.feed_forward,
        "vocab_size": size.vocab,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "rope_theta": 10000.0,
        "max_position_embeddings": CONTEXT,
        "dtype": "bfloat16",
    }
    assert {key: config[key] for key in shape} == shape
    assert config["rope_parameters"] == {"rope_theta": 10000.0, "rope_type": "default"}


def test_generation_ends_at_the_end_of_a_turn_or_of_the_text(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    end, turn_end = (tokenizer.encode(SPECIAL_TOKENS[i])[0] for i in (0, 2))
    ends = [_json(folder / file)["eos_token_id"] for file in ("generation_config.json", "config.json")]
    assert ends == [[turn_end, end]] * 2
    assert tokenizer.eos_token_id == turn_end


def test_the_tensors_are_bfloat16_and_of_the_configured_shapes(name: str, folder: Path) -> None:
    size = SIZES[name]
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        headers = {tensor: file.get_slice(tensor) for tensor in file.keys()}  # noqa: SIM118 (no mapping)
        assert {header.get_dtype() for header in headers.values()} == {"BF16"}
        assert len(headers) == 2 + 11 * size.layers
        assert sum(math.prod(header.get_shape()) for header in headers.values()) == PARAMETERS[name]
        assert headers["model.embed_tokens.weight"].get_shape() == [size.vocab, size.width]
        assert headers["model.layers.3.self_attn.k_proj.weight"].get_shape() == [size.kv_heads * size.head_dim, size.width]
        assert headers["model.layers.0.self_attn.q_norm.weight"].get_shape() == [size.head_dim]


def test_the_tokenizer_carries_the_template_and_fills_the_vocabulary(name: str, folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    assert tokenizer.vocab_size == SIZES[name].vocab
    assert _json(folder / "tokenizer_config.json")["chat_template"] == CHAT_TEMPLATE
    longest = max((question.text for question in trained_questions()), key=len)
    assert len(tokenizer.encode(longest)) < len(longest) / 1.8


def test_every_step_of_training_reads_as_much() -> None:
    assert {rows * tokens for size in SIZES.values() for rows, tokens in size.windows} == {STEP_TOKENS}


@pytest.mark.parametrize(
    "figure",
    [
        r"\*\*fresh questions\*\*.*\*\*\d+/\d+ \(\d+\.\d %\)\*\*",
        r"\| trained questions .*\d+/\d+ \(\d+\.\d %\)",
        r"\| moves in lives .*\d+/\d+ \(\d+\.\d %\)",
        r"final loss \| \d\.\d{4} nats",
        r"`[0-9a-f]{64}` \(`corpus\.spec_hash\(\)`\)",
        r"license: apache-2\.0",
        r"## Limits",
    ],
)
def test_the_card_gives_its_figures_and_its_limits(figure: str, card: str) -> None:
    assert re.search(figure, card)


def test_the_recipe_of_the_card_is_what_the_script_does_by_itself(name: str, card: str) -> None:
    assert f"# Quiesce {name}\n" in card
    assert f"--size {name} --seed 0 --steps {SIZES[name].steps}`" in card
    assert f"{PARAMETERS[name]:,} parameters" in card


def test_the_shipped_models_answer_at_least_eight_fresh_questions_in_ten(card: str) -> None:
    found = re.search(r"\*\*(\d+)/(\d+) \(", card)
    assert found
    assert int(found[1]) >= 0.8 * int(found[2]) > 240
