"""Asks a checkpoint the questions it was never asked: `python -m quiesce.engine.tiny.evaluate [--model FOLDER]`.

Greedy answers must equal the tables' answers to the letter. Runs the folder in transformers (the development extra), so that
the figure is a property of the files and of no engine of ours.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from quiesce.engine.tiny import checkpoint_folder
from quiesce.engine.tiny.corpus import TELL, Question, fresh_questions, legal_moves, reworded, trained_questions
from quiesce.engine.tiny.questions import noun
from quiesce.engine.tokenizer import Tokenizer
from quiesce.spec import MACHINES

ROWS: Final = 64
LONGEST_ANSWER: Final = 260
TRAINED_SAMPLE: Final = 600
REWORDED_SAMPLE: Final = 200
LIVES: Final = 5
"""Sampled lives per machine and way of asking."""


@dataclass(frozen=True, slots=True)
class Score:
    """What the card reports of a checkpoint: (right, asked) each."""

    fresh: tuple[int, int]
    reworded: tuple[int, int]
    """Fresh questions in other words."""
    trained: tuple[int, int]
    moves: tuple[int, int]
    """Legal moves among the moves of sampled lives."""
    kinds: dict[str, tuple[int, int]]
    """Fresh questions by kind."""
    wrong: tuple[tuple[Question, str], ...]
    """Fresh questions, and what was answered instead."""


def evaluate(folder: Path, seed: int = 0) -> Score:
    """Asks every fresh question, a sample of the trained ones, and for some lives."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tokenizer = Tokenizer(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    fresh = list(fresh_questions())
    answers = ask(model, tokenizer, [question.text for question in fresh])
    kinds: dict[str, list[bool]] = defaultdict(list)
    for question, answer in zip(fresh, answers, strict=True):
        kinds[question.kind].append(answer == question.answer)
    rng = random.Random(seed)
    other = [(reworded(question.text, rng), question.answer) for question in rng.sample(fresh, REWORDED_SAMPLE)]
    others = ask(model, tokenizer, [text for text, _ in other])
    trained = rng.sample(trained_questions(), TRAINED_SAMPLE)
    known = ask(model, tokenizer, [question.text for question in trained])
    return Score(
        fresh=(sum(map(sum, kinds.values())), len(fresh)),
        reworded=(sum(right == answer for (_, right), answer in zip(other, others, strict=True)), len(other)),
        trained=(sum(q.answer == a for q, a in zip(trained, known, strict=True)), len(trained)),
        moves=_lives(model, tokenizer),
        kinds={kind: (sum(found), len(found)) for kind, found in sorted(kinds.items())},
        wrong=tuple((q, a) for q, a in zip(fresh, answers, strict=True) if q.answer != a),
    )


def ask(model: Any, tokenizer: Tokenizer, texts: Sequence[str], sample: bool = False) -> list[str]:
    """The answers to questions, each in a chat of its own; greedy, or sampled at temperature 1."""
    import torch

    prompts = [tokenizer.encode(tokenizer.apply_chat_template([{"role": "user", "content": text}])) for text in texts]
    choice: dict[str, Any] = {"do_sample": True, "top_k": 0} if sample else {"do_sample": False}
    answers = [""] * len(prompts)
    # Rows of equal length need no padding, and so no mask that could blur the figure.
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        by_length[len(prompt)].append(index)
    for length, indices in sorted(by_length.items()):
        for start in range(0, len(indices), ROWS):
            rows = indices[start : start + ROWS]
            inputs = torch.tensor([prompts[row] for row in rows])
            with torch.inference_mode():
                outputs = model.generate(
                    inputs,
                    attention_mask=torch.ones_like(inputs),
                    max_new_tokens=LONGEST_ANSWER,
                    **choice,
                )
            for row, output in zip(rows, outputs.tolist(), strict=True):
                answers[row] = tokenizer.decode(output[length:])
    return answers


def _lives(model: Any, tokenizer: Tokenizer) -> tuple[int, int]:
    asked = [(machine, way.format(**noun(machine.name).words())) for machine in MACHINES for way in TELL for _ in range(LIVES)]
    told = legal = 0
    for (machine, _), text in zip(asked, ask(model, tokenizer, [text for _, text in asked], sample=True), strict=True):
        moves, right = legal_moves(machine, text)
        told, legal = told + moves, legal + right
    return legal, told


def percent(score: tuple[int, int]) -> str:
    right, asked = score
    return f"{right}/{asked} ({100 * right / max(asked, 1):.1f} %)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=checkpoint_folder())
    parser.add_argument("--wrong", action="store_true", help="print what was answered wrong")
    asked = parser.parse_args()
    score = evaluate(asked.model)
    print(f"fresh questions   {percent(score.fresh)}")
    print(f"in other words    {percent(score.reworded)}")
    print(f"trained questions {percent(score.trained)}")
    print(f"legal moves       {percent(score.moves)}")
    for kind, found in score.kinds.items():
        print(f"  {kind:16} {percent(found)}")
    for question, answer in score.wrong if asked.wrong else ():
        print(f"{question.text}\n  table: {question.answer}\n  model: {answer}")


if __name__ == "__main__":
    main()
