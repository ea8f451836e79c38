"""The model card of a checkpoint, and `SHA256SUMS` over its folder. Figures are measured on the saved files, never typed in."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quiesce.engine.tiny.corpus import spec_hash
from quiesce.engine.tiny.evaluate import Score, evaluate, percent

SUMS: Final = "SHA256SUMS"
FILES: Final = (
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)

HOW: Final = "on one CPU thread, Muon and AdamW, bf16 autocast"


@dataclass(frozen=True, slots=True)
class Run:
    """How the checkpoint came about."""

    size: str
    windows: tuple[int, ...]
    """Lengths of the pieces it was trained on, in tokens."""
    spec: str
    """`corpus.spec_hash()` of the tables that it read."""
    seed: int
    steps: int
    tokens: int
    seconds: float
    loss: float
    minutes: float | None = None
    """The length asked for, if it was asked for by the clock."""
    remark: str = ""
    """What else happened in the run."""


PURPOSE: Final = {
    "tiny": "It is the engine's default model, so that a fresh checkout answers something that can be checked, and damaged\n"
    "weights or KV show as wrong answers.",
    "small": "It is the sister of the default model `tiny` for tests and fuzzing: smaller and faster.",
}


SHAPE: Final = (
    "width {hidden_size}, {num_hidden_layers} layers, {num_attention_heads} query and {num_key_value_heads} key/value heads of"
    " {head_dim}, feed-forward {intermediate_size}, vocabulary {vocab_size:,}, tied embeddings"
)
CARD: Final = """---
license: apache-2.0
language: en
pipeline_tag: text-generation
library_name: transformers
---

# Quiesce {size}

A Qwen3-shaped decoder of {parameters:,} parameters that has learned the tables of Quiesce: the states, events and rows in
`spec/`. {purpose} It knows nothing else.

| | |
|---|---|
| shape | {shape} |
| context | 2,048 declared; trained on windows of {windows} tokens |
| data | chats generated from the tables by `engine/tiny/corpus.py`; no other text |
| declaration it was trained on | `{spec}` (`corpus.spec_hash()`) |
| declaration it was measured on | {measured} |
| recipe | `python -m quiesce.engine.tiny.train --out FOLDER --size {size} --seed {seed} --steps {steps}` |
| run{length} | {run} |
| final loss | {loss:.4f} nats per weighted token (answers weigh 1, questions 0.1), mean of the last 100 steps |
| saved as | bfloat16 |
| licence | Apache-2.0, as the project |

## Measured

`python -m quiesce.engine.tiny.evaluate --model FOLDER`, greedy, float32 arithmetic on the saved bfloat16 weights; an answer
counts if it equals the tables' answer to the letter.

| | exact |
|---|---|
| **fresh questions** (phrasings of table facts that training never showed) | **{fresh}** |
| fresh questions in other words (a sample of {reworded_of}, by `corpus.reworded`) | {reworded} |
| trained questions (a sample of {sampled}) | {trained} |
| moves in lives sampled at temperature 1 that are rows of the table | {moves} |

Fresh questions by kind:

| kind | exact |
|---|---|
{kinds}

## Limits

* It answers from memory. A fresh question is a new pairing of a trained phrasing and a trained fact, not a new way of asking:
  free phrasing, typing errors and other languages are answered, but not to be relied on.
* Control tokens written inside a message (`<|im_end|>`) are read as control tokens, as in vLLM and transformers: whoever passes
  on a stranger's text can be told a forged turn.
* It knows the tables of the hash above. When the declaration changes it is out of date until it is trained again.
* Lives follow rows, not guards: a life can take a row whose guard would not hold at that moment.
* Asked for anything else it says that it does not know, or answers wrongly. Sampling at high temperature makes it less exact.
* Prompts far longer than 1,024 tokens were never trained on.
* The mix of kinds was adjusted once after an earlier run, by its figures on the fresh questions.
* The same seed and steps give the same documents in the same order. Float arithmetic differs between processors, and
  `--minutes` lowers the learning rate by the clock where `--steps` counts: another run gives a like model, not the same bits.
"""


def write_card(out: Path, run: Run) -> Score:
    """Measures the folder, writes its README.md and its sums."""
    from safetensors import safe_open

    with safe_open(out / "model.safetensors", framework="numpy") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 (no mapping)
    score = evaluate(out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    text = CARD.format(
        size=run.size,
        purpose=PURPOSE[run.size],
        shape=SHAPE.format(**config),
        windows=_and([f"{window:,}" for window in run.windows]),
        parameters=sum(_product(shape) for shape in shapes),
        spec=run.spec,
        measured="the same" if run.spec == spec_hash() else f"`{spec_hash()}`: some answers may have changed between",
        seed=run.seed,
        steps=run.steps,
        length=f" (`--minutes {run.minutes:g}`)" if run.minutes else "",
        run=f"seed {run.seed}, {run.steps:,} steps of 2,048 tokens ({run.tokens:,} tokens), {run.seconds / 60:.1f} minutes"
        f" {HOW}{run.remark}",
        loss=run.loss,
        fresh=percent(score.fresh),
        reworded=percent(score.reworded),
        reworded_of=score.reworded[1],
        trained=percent(score.trained),
        sampled=score.trained[1],
        moves=percent(score.moves),
        kinds="\n".join(f"| {kind} | {percent(found)} |" for kind, found in score.kinds.items()),
    )
    (out / "README.md").write_text(text, encoding="utf-8")
    write_sums(out)
    return score


def write_sums(out: Path) -> None:
    """Writes the sums in the form that `sha256sum --check SHA256SUMS` reads."""
    (out / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sums(out).items()), encoding="utf-8")


def sums(out: Path) -> dict[str, str]:
    """File -> SHA-256, of every file of the checkpoint."""
    return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in FILES}


def _and(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
