"""Every kernel compiled for Hopper without a GPU: nothing spills, and as many programs fit a multiprocessor as are meant to."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kernels.gpu.processes import lines_of
from tests.kernels.gpu.specialisations import Specialisation, every

pytestmark = pytest.mark.timeout(600)  # one process does the work of all tests here, in the first of them

REGISTERS, SHARED, THREADS = 65_536, 227 * 1024, 2048
"""Of one multiprocessor of compute capability 9.0 (CUDA C++ Programming Guide, table of technical specifications)."""
RESERVED = 1024
"""Bytes of shared memory that the system takes for each program."""


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, Any]]:
    return lines_of("compiled")


@pytest.fixture
def made(compiled: dict[str, dict[str, Any]], spec: Specialisation) -> dict[str, Any]:
    return compiled[spec.name]


def programs_that_fit(registers: int, threads: int, shared: int) -> int:
    """Registers are given to a warp in units of 256."""
    a_warp = -(-registers * 32 // 256) * 256
    return min(REGISTERS // (a_warp * threads // 32), SHARED // (shared + RESERVED), THREADS // threads, 32)


@pytest.mark.parametrize("spec", every(), ids=lambda spec: spec.name)
def test_a_kernel_fits_and_spills_nothing(made: dict[str, Any], spec: Specialisation) -> None:
    assert (made["spilled"], made["stack"]) == (0, 0)
    assert programs_that_fit(made["registers"], made["threads"], made["shared"]) >= spec.programs


@pytest.mark.parametrize("spec", every(), ids=lambda spec: spec.name)
def test_no_value_or_alignment_of_what_a_step_brings_makes_triton_compile_again(spec: Specialisation) -> None:
    varying = [name for name, kind in spec.arguments.items() if kind in ("i32", "*i32", "*i64") or name in sampler_inputs(spec)]
    free = [parameter.name for parameter in spec.kernel.params if parameter.do_not_specialize]
    assert sorted(free) == sorted(varying)


def sampler_inputs(spec: Specialisation) -> set[str]:
    """float32 arrays of one number to a row."""
    return {"temperature", "top_p", "min_p"} & set(spec.arguments)


@pytest.mark.parametrize("spec", [spec for spec in every() if spec.matrix], ids=lambda spec: spec.name)
def test_attention_multiplies_on_the_matrix_units_with_a_tile_in_flight(made: dict[str, Any], spec: Specialisation) -> None:
    assert made["matrix"] == [spec.matrix]
    if "float32" not in spec.name:
        assert max(made["waits"]) >= 2, "keys and values of the next tile are being copied while this one is used"


STREAMING = ("add_rms_norm", "silu_mul", "decode_split", "prefill", "scan", "weigh")


@pytest.mark.parametrize("spec", [spec for spec in every() if spec.name.startswith(STREAMING)], ids=lambda spec: spec.name)
def test_what_streams_through_memory_is_read_16_bytes_at_a_time(made: dict[str, Any], spec: Specialisation) -> None:
    read, written = made["widest"]
    assert read == 16
    assert written == (8 if spec.name.startswith(("scan", "weigh")) else 16), "which write one number to a program"


@pytest.mark.parametrize("spec", [spec for spec in every() if spec.name.startswith("prefill")], ids=lambda spec: spec.name)
def test_a_tile_is_computed_alike_masked_or_not(made: dict[str, Any], spec: Specialisation) -> None:
    """Else a fused multiply-add in one loop alone would make bits depend on where a prompt is cut."""
    whole, diagonal = made["loops"]
    floats = [{name: n for name, n in loop.items() if ".f32" in name or "mma" in name} for loop in (whole, diagonal)]
    assert floats[0] == floats[1]
    assert any(name.startswith("fma") for name in floats[0])


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "programs"),
    [(128, 128, 72_192, 3), (128, 128, 0, 4), (188, 256, 132_096, 1), (255, 512, 0, 0), (16, 32, 0, 32), (32, 1024, 0, 2)],
)
def test_the_scarcest_resource_decides_how_many_programs_fit(registers: int, threads: int, shared: int, programs: int) -> None:
    assert programs_that_fit(registers, threads, shared) == programs
