"""The CUDA device, on a dry platform, under the fuzzer: tokens are those of the same request alone on the CPU device."""

from __future__ import annotations

from pathlib import Path

from quiesce.stateful.fuzz.hunt import Hunt


def test_the_cuda_device_gives_every_request_the_tokens_that_it_has_alone(ledger_folder: Path) -> None:
    hunt = Hunt(ledger_folder, device="cuda")
    report = hunt.for_seeds(0, 5)
    assert [finding.schedule for finding in report.findings] == []
    assert report.left == ()
