"""Writes random checkpoints and what transformers computes on them. Run as a script: transformers stays out of the test process.

python reference.py FOLDER      makes FOLDER/<name>/ (a checkpoint) and FOLDER/<name>/reference.npz for each of CHECKPOINTS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

PROMPT_TOKENS, NEW_TOKENS = 37, 64

COMMON: dict[str, Any] = {
    "vocab_size": 160,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "eos_token_id": 2,
    "initializer_range": 0.2,  # logits far apart, so that 64 greedy tokens do not hang on the last bit
}

SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
SMALL = dict(zip(SIZES, (48, 64, 2, 6, 2, 8), strict=True))
LINEAR = {"rope_type": "linear", "rope_theta": 5_000.0, "factor": 3.0}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN: dict[str, Any] = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 32}
ROPES: dict[str, dict[str, Any]] = {
    "default": COMMON["rope_parameters"],
    "linear": LINEAR,
    "llama3": LLAMA3,
    "llama3_narrow": LLAMA3 | {"low_freq_factor": 2.0, "high_freq_factor": 2.5, "rope_theta": 10_000.0},
    "yarn": YARN,
    "yarn_no_original": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0},
    "yarn_betas": YARN | {"beta_fast": 8.0, "beta_slow": 2.0, "truncate": False},
    "yarn_mscale": YARN | {"mscale": 1.2, "mscale_all_dim": 0.6},
    "yarn_mscale_alone": YARN | {"mscale": 1.2},
    "yarn_attention_factor": YARN | {"attention_factor": 0.77, "mscale": 1.0, "mscale_all_dim": 2.0},
    "yarn_one_step_ramp": YARN | {"beta_fast": 1.0, "beta_slow": 1.0, "truncate": False},
    "yarn_of_less": YARN | {"factor": 0.5},
}
"""Rotary embeddings as transformers 5 writes them."""

CHECKPOINTS: dict[str, dict[str, Any]] = {
    "tied_grouped": dict(zip(SIZES, (48, 96, 2, 6, 2, 8), strict=True)) | {"tie_word_embeddings": True},
    "untied_wide_heads": dict(zip(SIZES, (32, 64, 2, 4, 1, 16), strict=True)) | {"tie_word_embeddings": False},
    "sharded_no_groups": dict(zip(SIZES, (40, 72, 3, 2, 2, 20), strict=True)) | {"tie_word_embeddings": False, "shard": "20KB"},
    "with_bias": dict(zip(SIZES, (64, 80, 1, 8, 4, 8), strict=True)) | {"tie_word_embeddings": True, "attention_bias": True},
    "llama": SMALL | {"family": "Llama", "tie_word_embeddings": False},
    "llama_biases_linear": SMALL | {"family": "Llama", "attention_bias": True, "mlp_bias": True, "rope_parameters": LINEAR},
    "llama_llama3_old": SMALL | {"family": "Llama", "tie_word_embeddings": True, "rope_parameters": LLAMA3, "old": "rope_type"},
    "llama_sharded_llama3": SMALL | {"family": "Llama", "rope_parameters": LLAMA3, "shard": "20KB"},
    "qwen2_tied": SMALL | {"family": "Qwen2", "tie_word_embeddings": True},
    "qwen2_yarn_old": SMALL | {"family": "Qwen2", "rope_parameters": YARN, "old": "type"},
    "qwen2_linear_old": SMALL | {"family": "Qwen2", "rope_parameters": LINEAR, "old": "type"},
    "qwen3_yarn": SMALL | {"rope_parameters": ROPES["yarn_betas"]},
    "qwen3_yarn_mscale": SMALL | {"rope_parameters": ROPES["yarn_mscale"], "attention_bias": True},
}


def old_notation(rope: dict[str, Any], kind_name: str) -> dict[str, Any]:
    """`rope_parameters` as configurations were written before transformers 5."""
    scaling = {name: value for name, value in rope.items() if name not in ("rope_type", "rope_theta")}
    return {"rope_theta": rope["rope_theta"], "rope_scaling": {kind_name: rope["rope_type"]} | scaling}


def write(folder: Path, sizes: dict[str, Any], seed: int) -> None:
    import torch
    import transformers

    torch.manual_seed(seed)
    sizes = dict(sizes)
    shard, family, kind_name = sizes.pop("shard", None), sizes.pop("family", "Qwen3"), sizes.pop("old", None)
    settings = COMMON | sizes
    old = old_notation(settings.pop("rope_parameters"), kind_name) if kind_name else {}
    config = getattr(transformers, f"{family}Config")(**settings, **old)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    model.train(False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", ".bias")):
                parameter.add_(torch.randn_like(parameter) * 0.1)  # as made, they would hide a norm or bias that is left out
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    if old:
        saved = json.loads((folder / "config.json").read_text())
        del saved["rope_parameters"]
        (folder / "config.json").write_text(json.dumps(saved | old))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 3]}))
    prompt = torch.randint(4, COMMON["vocab_size"], (1, PROMPT_TOKENS))
    ids = prompt
    with torch.no_grad():
        logits = model(prompt).logits[0]
        cache = None
        tokens: list[int] = []
        for _ in range(NEW_TOKENS):
            out = model(ids, past_key_values=cache, use_cache=True)
            cache, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
            tokens.append(int(ids))
    np.savez(folder / "reference.npz", prompt=prompt[0].numpy(), logits=logits.numpy(), tokens=np.array(tokens))


def write_ropes(path: Path) -> None:
    """Each rotary embedding in each notation: the configuration's fields, and the frequencies transformers makes of them."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    found = []
    for name, rope in ROPES.items():
        notations = {
            "new": {"rope_parameters": rope},
            "type": old_notation(rope, "type"),
            "rope_type": old_notation(rope, "rope_type"),
        }
        for notation, fields in notations.items():
            config = LlamaConfig(
                hidden_size=64, num_attention_heads=2, max_position_embeddings=128, **json.loads(json.dumps(fields))
            )
            embedding = LlamaRotaryEmbedding(config)
            found.append(
                {
                    "name": f"{name}-{notation}",
                    "fields": fields,
                    "frequencies": embedding.inv_freq.tolist(),
                    "attention_factor": float(embedding.attention_scaling),
                }
            )
    path.write_text(json.dumps(found))


def write_processors(path: Path) -> None:
    """What transformers' logits processors make of random logits: bias first, then the repetition penalty, as `generate` has it."""
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor

    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(1, COMMON["vocab_size"], generator=generator) * 4
    history = torch.randint(0, 40, (1, 50), generator=generator)
    bias = {(token,): float(value) for token, value in zip((1, 7, 39, 120), (2.5, -3.0, 1.25, -100.0), strict=True)}
    biased = SequenceBiasLogitsProcessor(sequence_bias=[[list(ids), value] for ids, value in bias.items()])(
        history, logits.clone()
    )
    both = RepetitionPenaltyLogitsProcessor(1.7)(history, biased.clone())
    ids, values = np.array([ids[0] for ids in bias]), np.array(list(bias.values()), np.float32)
    np.savez(path, logits=logits[0], history=history[0], ids=ids, bias=values, biased=biased[0], both=both[0])


def main() -> None:
    import torch

    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for seed, (name, sizes) in enumerate(CHECKPOINTS.items()):
        write(folder / name, sizes, seed)
    write_ropes(folder / "ropes.json")
    write_processors(folder / "processors.npz")


if __name__ == "__main__":
    main()
