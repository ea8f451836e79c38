"""What the shipped models answer in our own engine, to the token: `python -m quiesce.engine.tiny.transcripts [NAME]` asks anew.

Greedy, in float32 on one thread. A change of kernels, scheduling or files that changes an answer shows in the replay.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from quiesce.engine.blocking import Engine
from quiesce.engine.config import EngineConfig
from quiesce.engine.sampling_params import SamplingParams
from quiesce.engine.tiny import FOLDERS, checkpoint_folder
from quiesce.engine.tiny.corpus import fresh_questions
from quiesce.engine.tokenizer import Tokenizer

FILE: Final = Path(__file__).resolve().parent / "transcripts.json"
KINDS: Final = ("legal", "leads", "can", "refusal", "why")
"""One fresh question of each kind is kept."""
MAX_TOKENS: Final = 48


@dataclass(frozen=True, slots=True)
class Transcript:
    question: str
    answer: str
    token_ids: tuple[int, ...]


def ask_engine(name: str, questions: Sequence[str]) -> list[Transcript]:
    """The answers of a shipped model to questions asked together, each in a chat of its own."""
    folder = checkpoint_folder(name)
    tokenizer = Tokenizer(folder)
    prompts = [tokenizer.apply_chat_template([{"role": "user", "content": question}]) for question in questions]
    greedy = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    with Engine(EngineConfig(model=str(folder), dtype="float32", num_threads=1)) as engine:
        outputs = engine.generate(prompts, greedy, use_tqdm=False)
    return [
        Transcript(question, output.outputs[0].text, tuple(output.outputs[0].token_ids))
        for question, output in zip(questions, outputs, strict=True)
    ]


def kept_transcripts(name: str) -> list[Transcript]:
    """Those of the file."""
    whole = json.loads(FILE.read_text(encoding="utf-8"))
    return [Transcript(entry["question"], entry["answer"], tuple(entry["token_ids"])) for entry in whole[name]]


def write_transcripts(name: str) -> list[Transcript]:
    """Asks one fresh question of each kind and keeps the answers; those of the other models stay."""
    asked = [[question.text for question in fresh_questions() if question.kind == kind] for kind in KINDS]
    questions = [
        texts[len(texts) * number // len(KINDS)] for number, texts in enumerate(asked)
    ]  # of one machine after the other
    told = ask_engine(name, questions)
    whole = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    whole[name] = [asdict(entry) for entry in told]
    FILE.write_text(json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="`tiny`, `small`; default all")
    for name in parser.parse_args().names or FOLDERS:
        for entry in write_transcripts(name):
            print(f"{name}: {entry.question}\n  {entry.answer}")


if __name__ == "__main__":
    main()
