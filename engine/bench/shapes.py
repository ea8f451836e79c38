"""Model shapes to measure, as `config.json` of a checkpoint without tensors: weights are random, which is enough for speed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

_QWEN3: Final[dict[str, Any]] = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 151_936, "num_key_value_heads": 8, "head_dim": 128,
    "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 40_960, "eos_token_id": 151_645, "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN3_06B: Final = _QWEN3 | {
    "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 3072, "tie_word_embeddings": True,
}  # fmt: skip
QWEN3_8B: Final = _QWEN3 | {
    "hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 12_288, "tie_word_embeddings": False,
}  # fmt: skip
TOY: Final = _QWEN3 | {
    "vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 128, "max_position_embeddings": 512, "eos_token_id": 2, "tie_word_embeddings": True,
    "torch_dtype": "float32",
}  # fmt: skip


def write_shape(folder: Path, shape: dict[str, Any]) -> Path:
    """Writes `config.json`; the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    return folder
