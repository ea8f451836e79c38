"""Makes the shipped checkpoints: `python -m quiesce.engine.tiny.train --out FOLDER [--size tiny|small] [--minutes M | --steps N]`.

A byte-level BPE tokenizer and a Qwen3-shaped decoder learn the corpus by heart on one CPU thread: 2.6 million parameters for the
default model, half a million for the one of the tests. Without a length it takes the steps that the shipped one took.
Needs transformers (the development extra); torch and transformers are imported where they are used: importing this is light.
The folder holds what Hugging Face libraries expect, a model card with the measured figures, and `SHA256SUMS` over all of it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import tokenizers

from quiesce.engine.tiny import CONTEXT, checkpoint_folder
from quiesce.engine.tiny.card import Run, write_card
from quiesce.engine.tiny.corpus import CHAT_TEMPLATE, SPECIAL_TOKENS, documents, render, spec_hash
from quiesce.engine.tiny.evaluate import percent
from quiesce.engine.tiny.transcripts import write_transcripts

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Size:
    """The shape of a model, and the recipe of the checkpoint that is shipped in it."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    peak_rate: float
    init: float
    """Standard deviation of the first weights."""
    reword: bool
    """Whether some questions are asked more freely than the tables' phrasings do (`corpus.reworded`)."""
    windows: tuple[tuple[int, int], ...]
    """(rows, tokens) of one step after the other, all of `STEP_TOKENS`: most are short, some let the model meet long distances."""
    steps: int


STEP_TOKENS: Final = 2048
SIZES: Final[dict[str, Size]] = {
    "tiny": Size(1024, 192, 6, 6, 2, 32, 512, peak_rate=3.5e-3, init=0.036, reword=True,
                 windows=((16, 128),) * 6 + ((4, 512), (2, 1024)), steps=2329),
    "small": Size(512, 96, 4, 4, 2, 32, 256, peak_rate=5e-3, init=0.05, reword=False,
                  windows=((8, 256),) * 6 + ((4, 512), (2, 1024)), steps=5376),
}  # fmt: skip
TOKENIZER_DOCUMENTS: Final = 8000
LONGEST_EAGER: Final = 256
"""Up to this many tokens plain matrix products are the faster attention on a CPU (a third, at 128)."""
WARMUP_STEPS: Final = 150
QUESTION_WEIGHT: Final = 0.1
"""Share of the loss on what the user says: enough to write whole chats, not enough to spend the model on guessing questions."""
SAVE_EVERY_S: Final = 120.0


@dataclass(slots=True)
class Progress:
    """What the card reports of a run."""

    steps: int = 0
    seconds: float = 0.0
    loss: float = math.nan
    """Mean over the last hundred steps, per weighted token."""

    @property
    def tokens(self) -> int:
        return self.steps * STEP_TOKENS


def make_tokenizer(seed: int, size: Size) -> tokenizers.Tokenizer:
    """A byte-level BPE of `size.vocab` entries; any text round-trips, since every byte is an entry."""
    texts = documents(seed, size.reword)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size.vocab,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    chats = ("".join(text for text, _ in render(next(texts))) for _ in range(TOKENIZER_DOCUMENTS))
    tokenizer.train_from_iterator(chats, trainer)
    return tokenizer


def special_id(tokenizer: tokenizers.Tokenizer, number: int) -> int:
    """The id of `SPECIAL_TOKENS[number]`."""
    found = tokenizer.token_to_id(SPECIAL_TOKENS[number])
    if found is None:
        raise ValueError(f"the tokenizer has no {SPECIAL_TOKENS[number]}")
    return found


def token_stream(tokenizer: tokenizers.Tokenizer, seed: int, reword: bool) -> Iterator[tuple[int, float]]:
    """Endless (token, loss weight) pairs, documents back to back with `<|endoftext|>` between them."""
    end = special_id(tokenizer, 0)
    for chat in documents(seed, reword):
        for text, said in render(chat):
            weight = 1.0 if said else QUESTION_WEIGHT
            for token in tokenizer.encode(text, add_special_tokens=False).ids:
                yield token, weight
        yield end, QUESTION_WEIGHT


def make_model(tokenizer: tokenizers.Tokenizer, size: Size) -> Any:
    """The untrained decoder, in float32."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    end, turn_end = special_id(tokenizer, 0), special_id(tokenizer, 2)
    config = Qwen3Config(
        vocab_size=size.vocab,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim,
        intermediate_size=size.feed_forward,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        initializer_range=size.init,
        bos_token_id=None,
        eos_token_id=[turn_end, end],
        pad_token_id=end,
        use_cache=True,
    )
    return Qwen3ForCausalLM(config)


def make_optimizers(model: Any, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between the layers, AdamW for the embedding and the norms; one learning rate serves both."""
    import torch

    matrices = [p for name, p in model.named_parameters() if p.dim() > 1 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() == 1 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0),
    ]


def train(out: Path, seed: int, size: Size, minutes: float | None, steps: int, state: Path | None = None) -> Progress:
    """Trains and saves, also every two minutes on the way; `state` is a file to go on from, and to write then."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(seed, size)
    model = make_model(tokenizer, size)
    optimizers = make_optimizers(model, size.peak_rate)
    stream = token_stream(tokenizer, seed + 1, size.reword)
    progress, recent = Progress(), [math.nan]
    if state is not None and state.exists():
        progress, recent = _restore(state, model, optimizers)
        for step in range(progress.steps):
            _skip(stream, size.windows[step % len(size.windows)])
    started = saved = time.monotonic()
    started -= progress.seconds
    out.mkdir(parents=True, exist_ok=True)
    while (done := _share_done(progress, minutes, steps)) < 1:
        warm = min(1.0, (progress.steps + 1) / WARMUP_STEPS)
        rate = size.peak_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        loss = _loss(model, _batch(stream, size.windows[progress.steps % len(size.windows)]))
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        recent = [*recent[-99:], loss.item()]
        progress.steps += 1
        progress.seconds = time.monotonic() - started
        progress.loss = sum(recent) / len(recent)
        if progress.steps % 100 == 0:
            print(f"{progress.steps:6d} steps {progress.seconds:6.0f} s  loss {progress.loss:.4f}  rate {rate:.1e}", flush=True)
        if time.monotonic() - saved > SAVE_EVERY_S:
            save(out, model, tokenizer)
            if state is not None:
                _keep(state, model, optimizers, progress, recent)
            saved = time.monotonic()
    save(out, model, tokenizer)
    return progress


def _keep(state: Path, model: Any, optimizers: list[torch.optim.Optimizer], progress: Progress, recent: list[float]) -> None:
    import torch

    whole = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "progress": (progress.steps, progress.seconds, progress.loss),
        "recent": recent,
    }
    half = state.with_name(state.name + ".part")
    torch.save(whole, half)
    half.replace(state)


def _restore(state: Path, model: Any, optimizers: list[torch.optim.Optimizer]) -> tuple[Progress, list[float]]:
    import torch

    whole = torch.load(state, weights_only=True)
    model.load_state_dict(whole["model"])
    for optimizer, kept in zip(optimizers, whole["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    return Progress(*whole["progress"]), list(whole["recent"])


def _share_done(progress: Progress, minutes: float | None, steps: int) -> float:
    return progress.steps / steps if minutes is None else progress.seconds / (60 * minutes)


def _skip(stream: Iterator[tuple[int, float]], shape: tuple[int, int]) -> None:
    """Passes over what one step has read."""
    rows, length = shape
    for _ in range(rows * (length + 1)):
        next(stream)


def _batch(stream: Iterator[tuple[int, float]], shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, targets and loss weights, each [rows, tokens]."""
    import torch

    rows, length = shape
    tokens, weights = zip(*(next(stream) for _ in range(rows * (length + 1))), strict=True)
    ids = torch.tensor(tokens).view(rows, length + 1)
    return ids[:, :-1], ids[:, 1:], torch.tensor(weights).view(rows, length + 1)[:, 1:]


def _loss(model: Any, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
    import torch

    inputs, targets, weights = batch
    model.set_attn_implementation("eager" if inputs.shape[1] <= LONGEST_EAGER else "sdpa")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=inputs, use_cache=False).logits
    each = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return (each * weights.flatten()).sum() / weights.sum()


def save(out: Path, model: Any, tokenizer: tokenizers.Tokenizer) -> None:
    """Writes the folder, all but its card and sums, with the weights rounded to bfloat16."""
    import copy

    import torch

    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    # transformers 5 writes `rope_parameters` alone; readers of the older form look for this name and fall back to another base.
    _write_json(out / "config.json", config | {"rope_theta": 10000.0})
    _write_json(
        out / "generation_config.json",
        {"do_sample": False, "eos_token_id": config["eos_token_id"], "pad_token_id": config["pad_token_id"]},
    )
    tokenizer.save(str(out / "tokenizer.json"))
    _write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": None,
            "eos_token": SPECIAL_TOKENS[2],
            "pad_token": SPECIAL_TOKENS[0],
            "clean_up_tokenization_spaces": False,
            "model_max_length": CONTEXT,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--state", type=Path, help="a file to save the whole run in on the way, and to go on from if it is there"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float)
    length.add_argument("--steps", type=int)
    asked = parser.parse_args()
    size = SIZES[asked.size]
    progress = train(asked.out, asked.seed, size, asked.minutes, asked.steps or size.steps, asked.state)
    (asked.out / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone; a package is for everybody
    run = Run(
        size=asked.size,
        windows=tuple(sorted({tokens for _, tokens in size.windows})),
        spec=spec_hash(),
        seed=asked.seed,
        steps=progress.steps,
        tokens=progress.tokens,
        seconds=progress.seconds,
        loss=progress.loss,
        minutes=asked.minutes,
    )
    print(f"fresh questions: {percent(write_card(asked.out, run).fresh)}")
    if asked.out.resolve() == checkpoint_folder(asked.size):
        write_transcripts(asked.size)


if __name__ == "__main__":
    main()
