"""What a step tells the device beyond its arrays."""

from __future__ import annotations

from pathlib import Path

from quiesce.engine.sampling_params import SamplingParams
from quiesce.stateful.scenario import World, prompt_of, run


def test_only_a_chunk_that_samples_is_told_of_a_bias(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        params = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True, logit_bias={5: -1.0})
        async for _ in world.engine.generate(prompt_of(0, 9), params):
            pass
        told = [(step.counts.tolist(), [one.num_prompt_tokens for one in step.adjustments]) for step in world.device.steps]
        assert told == [([4], []), ([4], []), ([1], [9]), ([1], [9])]

    run(ledger_folder, body, max_num_batched_tokens=4, max_num_seqs=4)
