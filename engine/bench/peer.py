"""The peer: Hugging Face transformers in a process of its own, which takes orders as JSON lines on stdin and answers on stdout.

Nothing that serves imports it: it is run (`python -m quiesce.engine.bench.peer FOLDER`), or asked by `make gpu` in a process that
measures. Orders: `{"do": "make" | "load" | "generate" | "serve" | "quit", ...}`; an answer is
`{"seconds": ..., "cpu_seconds": ..., ...}` or `{"error": ...}`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Final

SHAPE: Final = {
    "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
    "intermediate_size": 1536, "vocab_size": 32_000, "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip
"""Qwen3 with 41.5 million weights."""
TINY_SHAPE: Final = SHAPE | {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "vocab_size": 512}


class Peer:
    """A model of transformers' own, and what it is told to do."""

    def __init__(self, folder: Path) -> None:
        import torch
        import transformers

        self.torch: Any = torch
        self.transformers: Any = transformers  # untyped in places: taken as it is
        self.folder = folder
        self.model: Any = None
        self.transformers.logging.set_verbosity_error()
        torch.set_num_threads(1)
        torch.manual_seed(0)

    def do_make(self, tiny: bool) -> dict[str, Any]:
        """Writes a checkpoint of random weights, once, for both sides."""
        config = self.transformers.Qwen3Config(**(TINY_SHAPE if tiny else SHAPE), eos_token_id=2, bos_token_id=1)
        model = self.transformers.Qwen3ForCausalLM(config)
        model.save_pretrained(self.folder)
        return {"num_weights": sum(p.numel() for p in model.parameters()), "transformers": self.transformers.__version__}

    def do_load(self, dtype: str) -> dict[str, Any]:
        self.adopt(self.transformers.AutoModelForCausalLM.from_pretrained(self.folder, dtype=getattr(self.torch, dtype)))
        return {}

    def adopt(self, model: Any) -> None:
        """Takes a model of transformers', wherever it is."""
        self.model = model.eval()
        self.model.generation_config.eos_token_id = None  # every answer has its full length
        self.model.generation_config.pad_token_id = 0

    def do_generate(self, prompts: list[list[int]], output_len: int) -> dict[str, Any]:
        """`generate` on one batch of prompts of equal length; seconds of the decode steps alone, from a run with one token less prefill."""
        ids = self.torch.tensor(prompts, device=self.model.device)
        stamps: list[float] = []
        cpu: list[float] = []

        class Stamp(self.transformers.LogitsProcessor):  # type: ignore[name-defined, misc]
            def __call__(self, input_ids: Any, scores: Any) -> Any:
                stamps.append(time.perf_counter())
                cpu.append(time.thread_time())
                return scores

        processors = self.transformers.LogitsProcessorList([Stamp()])
        mask = self.torch.ones_like(ids)
        with self.torch.inference_mode():
            self.model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=output_len,
                min_new_tokens=output_len,
                do_sample=False,
                logits_processor=processors,
            )
        steps = len(stamps) - 1
        return {"seconds": (stamps[-1] - stamps[0]) / steps, "cpu_seconds": (cpu[-1] - cpu[0]) / steps}

    def do_serve(self, prompts: list[list[int]], output_lens: list[int], due: list[float], max_num_seqs: int) -> dict[str, Any]:
        """Continuous batching, what `generate_batch` is made of, with requests that arrive at `due` seconds and lengths of their own.

        The manager is made and started before the clock, and stopped after it: left running it would take time from the other side.
        """
        page = 256
        blocks = -(-max(len(prompt) + length for prompt, length in zip(prompts, output_lens, strict=True)) // page)
        generation = self.transformers.GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
        batching = self.transformers.ContinuousBatchingConfig(
            page_size=page, num_blocks=max_num_seqs * blocks, max_batch_tokens=2048, max_requests_per_batch=max_num_seqs
        )
        manager = self.model.init_continuous_batching(generation_config=generation, continuous_batching_config=batching)
        manager.start()
        try:
            manager.add_request(prompts[0][:8], max_new_tokens=2)
            self._results(manager, 1)
            began, cpu = time.perf_counter(), time.process_time()
            for prompt, length, when in zip(prompts, output_lens, due, strict=True):
                time.sleep(max(began + when - time.perf_counter(), 0))
                manager.add_request(prompt, max_new_tokens=length)
            num_tokens = self._results(manager, len(prompts))
            seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
        finally:
            manager.stop(block=True)
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "num_tokens": num_tokens}

    def _results(self, manager: Any, count: int) -> int:
        """Tokens of this many results."""
        num_tokens = 0
        while count:
            found = manager.get_result(timeout=1)
            if found is None and not manager.is_running():
                raise RuntimeError("the manager of continuous batching has ended")
            if found is not None and found.is_finished():
                count, num_tokens = count - 1, num_tokens + len(found.generated_tokens)
        return num_tokens


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print must not look like an answer
    peer = Peer(Path(sys.argv[1]))
    for line in sys.stdin:
        order = json.loads(line)
        name = order.pop("do")
        if name == "quit":
            return
        try:
            with contextlib.redirect_stdout(sys.stderr):
                answer = getattr(peer, f"do_{name}")(**order)
        except Exception as error:  # noqa: BLE001  the other side decides what it means
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
