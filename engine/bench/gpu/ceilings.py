"""What the machine reaches without us: the denominators of all that follows."""

from __future__ import annotations

import time

import torch

from quiesce.engine.bench.gpu.ground import COPY, MATMUL, PINNED, Ground, Tell
from quiesce.engine.bench.result import Figure

ROW = "ceilings"
GIB = 1 << 30
NODES = 280
"""Kernels of one decode step of a model of 28 layers, about."""


def measure(ground: Ground, tell: Tell) -> None:
    """The block."""
    if not ground.dry:
        facts = torch.cuda.get_device_properties(0)
        tell(Figure(ROW, f"{facts.name}: memory", "GB", (facts.total_memory / 1e9,), at_most=False))
    _copies(ground, tell)
    _product(ground, tell)
    _graphs(ground, tell)


def _copies(ground: Ground, tell: Tell) -> None:
    count = ground.size(2 * GIB, 1 << 16)
    here = torch.empty(2, count, dtype=torch.uint8, device=ground.device)
    seconds = ground.seconds(lambda _: here[1].copy_(here[0]))
    tell(Figure(ROW, COPY, "GB/s", tuple(2 * count / s / 1e9 for s in seconds), at_most=False))
    count = ground.size(GIB, 1 << 16)
    began_s = time.perf_counter()
    host = torch.empty(count, dtype=torch.uint8, pin_memory=not ground.dry)
    tell(Figure(ROW, "making pinned host memory", "s/GiB", ((time.perf_counter() - began_s) * GIB / count,)))
    device = torch.empty(count, dtype=torch.uint8, device=ground.device)
    seconds = ground.seconds(lambda _: device.copy_(host, non_blocking=True))
    tell(Figure(ROW, PINNED, "GB/s", tuple(count / s / 1e9 for s in seconds), at_most=False))
    seconds = ground.seconds(lambda _: host.copy_(device, non_blocking=True))
    tell(Figure(ROW, "device to pinned host memory", "GB/s", tuple(count / s / 1e9 for s in seconds), at_most=False))


def _product(ground: Ground, tell: Tell) -> None:
    size = ground.size(8192, 32)
    a, b = (torch.randn(size, size, device=ground.device, dtype=ground.dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds = ground.seconds(lambda _: torch.mm(a, b, out=out))
    tell(Figure(ROW, MATMUL, "TFLOP/s", tuple(2 * size**3 / s / 1e12 for s in seconds), at_most=False))


def _graphs(ground: Ground, tell: Tell) -> None:
    """What a launch costs: of one graph on the host, and of one node of a graph on the device."""
    x = torch.zeros(1, device=ground.device)
    seconds = ground.captured_seconds(lambda _: x.add_(1), calls=NODES)
    tell(Figure(ROW, f"one node of a graph of {NODES}", "us", tuple(s * 1e6 for s in seconds)))
    if ground.dry:
        return
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x.add_(1)
    taken = []
    for _ in range(6):
        torch.cuda.synchronize()
        began_s = time.perf_counter()
        for _ in range(200):
            graph.replay()
        torch.cuda.synchronize()
        taken.append((time.perf_counter() - began_s) / 200 * 1e6)
    tell(Figure(ROW, "launch of a graph of one node", "us", tuple(taken[1:])))
