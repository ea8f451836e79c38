"""What every test shares: one torch thread, and the checkpoint of the ledger device."""

from __future__ import annotations

from pathlib import Path

import pytest

from quiesce.stateful.driver import ledger_checkpoint


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread() -> None:
    """Two threads on a busy two-core machine swing twentyfold."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ledger_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ledger_checkpoint(tmp_path_factory.mktemp("ledger") / "checkpoint")
