"""New weights on a device: from every kind of source, chunk by chunk; what is refused, when, and in which words."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from quiesce.engine.device import weight_update
from quiesce.engine.errors import InvalidRequest
from quiesce.engine.messages import Adjustment, Fetched, TokenLogprobs
from quiesce.engine.weight_source import check_complete, check_pairs, open_source
from tests.engine.device.weight_tools import Tensors, make_tensors, write_shards

if TYPE_CHECKING:
    from tests.engine.device.conftest import Bench, Harness

PROMPT = [5, 9, 2, 44, 17, 8, 30]
NORM, EMBED, UP = "model.norm.weight", "model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"
ALL_PARTS = {"attention_bias": True, "output_bias": True, "mlp_bias": True, "tie_word_embeddings": False}


@pytest.fixture(params=["cpu", "cuda"])
def device_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tensors(harness: type[Harness]) -> Tensors:
    """Every tensor of the small model, as seeded noise in float32."""
    return make_tensors(harness.info())


@pytest.fixture
def sources(tensors: Tensors, tmp_path: Path) -> dict[str, Any]:
    """The same weights in every form that is accepted."""
    file = tmp_path / "new.safetensors"
    save_file(tensors, file)
    return {
        "a file": file,
        "a file's name": str(file),
        "a folder of shards": write_shards(tensors, tmp_path / "shards"),
        "a mapping": tensors,
        "a mapping of arrays": {name: tensor.numpy() for name, tensor in tensors.items()},
        "pairs in another order": sorted(tensors.items(), reverse=True),
        "a generator of lists": ([name, tensor] for name, tensor in tensors.items()),
        "float64": {name: tensor.double() for name, tensor in tensors.items()},
        "the other byte order": {name: tensor.numpy().astype(">f4") for name, tensor in tensors.items()},
        "transposed views": {name: tensor.clone().t().contiguous().t() for name, tensor in tensors.items()},
        "parameters": {name: torch.nn.Parameter(tensor.clone()) for name, tensor in tensors.items()},
    }


def answers(b: Bench, harness: type[Harness], count: int = 6) -> list[TokenLogprobs]:
    """Greedy tokens with the bits of their probabilities: what the weights make of a prompt."""
    found: list[TokenLogprobs] = []
    chunk = harness.Chunk(PROMPT, 0, [0, 1, 2, 3])
    for number in range(count):
        out = b.run(harness.step(chunk, number=number, adjustments=[Adjustment(0, num_logprobs=5)]))
        found.append(out.logprobs[0][1])
        chunk = harness.Chunk(out.token_ids.tolist(), len(PROMPT) + number, [0, 1, 2, 3])
    return found


def test_equal_weights_have_one_checksum_whatever_brought_them(
    bench: Callable[..., Bench], harness: type[Harness], tensors: Tensors, sources: dict[str, Any]
) -> None:
    folder = sources["a file"].parent / "model"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    loaded = bench(info=harness.info(folder=str(folder)), load_format="auto").load()
    expected, answer = loaded.checksum(), answers(loaded, harness)
    for kind, source in sources.items():
        b = bench(load_format="empty").load()
        assert b.checksum() != expected
        b.update(source)
        assert b.checksum() == expected, kind
        assert answers(b, harness) == answer, kind


def test_the_checksum_can_be_computed_from_the_tensors_of_a_checkpoint(bench: Callable[..., Bench], tensors: Tensors) -> None:
    """So it does not depend on how the device packs them."""
    b = bench(load_format="empty", dtype="bfloat16").load()
    b.update(tensors)
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} bfloat16 {list(tensor.shape)}\n".encode())
        digest.update(tensor.bfloat16().view(torch.int16).numpy().tobytes())
    assert b.checksum() == digest.hexdigest()


def test_the_checksum_is_of_names_types_shapes_and_values(bench: Callable[..., Bench], harness: type[Harness]) -> None:
    info = harness.info(**ALL_PARTS)
    base = make_tensors(info)
    b = bench(info=info, load_format="empty").load()
    b.update(base)
    digests = [b.checksum()]
    for name in base:
        changed = base[name].clone()
        changed.view(-1)[-1] += 1e-3
        assert b.write([(name, changed)]) is None
        digests.append(b.checksum())
        b.write([(name, base[name])])
        assert b.checksum() == digests[0]
    gate, up = "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"
    b.write([(gate, base[up]), (up, base[gate])])
    digests.append(b.checksum())
    half = bench(info=info, dtype="bfloat16", load_format="empty").load()
    half.update({name: torch.zeros(tensor.shape) for name, tensor in base.items()})
    b.update({name: torch.zeros(tensor.shape) for name, tensor in base.items()})
    digests += [half.checksum(), b.checksum()]
    assert len(set(digests)) == len(digests) == len(base) + 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_tensors_are_converted_as_at_load(
    bench: Callable[..., Bench], harness: type[Harness], tmp_path: Path, dtype: str
) -> None:
    """Every tensor of every part a model may have arrives in its place, in the type of the model."""
    info = harness.info(folder=str(tmp_path), **ALL_PARTS)
    tensors = make_tensors(info)
    save_file(tensors, tmp_path / "model.safetensors")
    loaded = bench(info=info, load_format="auto", dtype=dtype).load()
    b = bench(info=info, dtype=dtype).load()
    b.update(tensors)
    for name, view in b.runner.weights.destinations.items():
        assert torch.equal(view, tensors[name].to(getattr(torch, dtype)).expand(view.shape)), name
    assert b.checksum() == loaded.checksum()
    assert torch.equal(
        b.runner.weights.arena.view(0, (1000,), torch.uint8), loaded.runner.weights.arena.view(0, (1000,), torch.uint8)
    )
    b.update({name: tensor.bfloat16() for name, tensor in tensors.items()})
    for name, view in b.runner.weights.destinations.items():
        assert torch.equal(view, tensors[name].bfloat16().to(view.dtype).expand(view.shape)), name


def test_what_serves_follows_the_new_weights_and_only_they(
    bench: Callable[..., Bench], harness: type[Harness], tensors: Tensors
) -> None:
    """Nothing that was derived from the old weights is left: not the tied head, not the repeated norms of heads."""
    b, fresh = bench().load(), bench(load_format="empty").load()
    old = answers(b, harness)
    b.update(tensors)
    fresh.update(tensors)
    assert answers(b, harness) == answers(fresh, harness) != old
    before = {name: view.clone() for name, view in b.runner.weights.destinations.items()}
    names = [EMBED, "model.layers.0.self_attn.q_norm.weight"]
    part = [(name, make_tensors(b.info, seed=2)[name]) for name in names]
    assert b.write(part) is None
    assert fresh.write([*tensors.items(), *part]) is None
    assert answers(b, harness) == answers(fresh, harness)
    for name, view in b.runner.weights.destinations.items():
        assert torch.equal(view, before[name]) == (name not in names), name


def test_a_source_may_reuse_its_buffer(bench: Callable[..., Bench], tensors: Tensors) -> None:
    """Between two pulls, and between the pull of a chunk and its writing."""

    def reusing(arrays: bool) -> Iterator[tuple[str, Any]]:
        buffer = torch.empty(96 * 48)
        for name, tensor in tensors.items():
            view = buffer[: tensor.numel()].view(tensor.shape)
            view.copy_(tensor)
            yield name, view.numpy() if arrays else view
            buffer.fill_(float("nan"))

    digests = []
    for source in (tensors, reusing(arrays=False), reusing(arrays=True)):
        b = bench(load_format="empty").load()
        b.update(source)
        digests.append(b.checksum())
    assert len(set(digests)) == 1


def test_a_chunk_ends_with_the_tensor_that_fills_it_and_the_source_is_pulled_no_further(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_update, "CHUNK_BYTES", 400)
    pulled: list[int] = []

    def source() -> Iterator[tuple[str, Any]]:
        for number in range(10):
            pulled.append(number)
            yield f"t{number}", np.zeros(30, np.float32)

    b, pairs = bench().load(), source()
    sizes = []
    while fetched := b.fetch(pairs).pairs:
        sizes.append(len(fetched))
        assert len(pulled) == sum(sizes)
    assert sizes == [4, 4, 2]
    assert b.fetch(pairs) == Fetched(7)
    monkeypatch.setattr(weight_update, "CHUNK_TENSORS", 3)
    assert len(b.fetch(source()).pairs) == 3


class Interruption(BaseException):
    """What would end a thread that does not look out."""


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (5, r"gave 5; accepted: pairs of \(name, tensor\)"),
        ("ab", "gave 'ab'"),
        ((NORM, np.zeros(32), 1), "gave"),
        ((7, np.zeros(32)), "the name 7; accepted: a string"),
        ((NORM, [0.0] * 32), "accepted: a torch tensor or a numpy array"),
        ((NORM, memoryview(bytes(8))), "accepted: a torch tensor or a numpy array"),
    ],
)
def test_a_source_that_gives_no_pairs_is_told_so(bench: Callable[..., Bench], item: object, words: str) -> None:
    b = bench().load()
    pairs, _ = open_source(iter([(NORM, np.zeros(32)), item]), b.info)
    fetched = b.fetch(pairs)
    assert fetched.pairs == ()
    with pytest.raises(InvalidRequest, match=words) as error:
        raise fetched.error or AssertionError
    assert error.value.field == "source"
    assert b.fetch(iter([])) == Fetched(7)  # the device lives


@pytest.mark.parametrize("error", [KeyError("mine"), Interruption("mine"), SystemExit("mine")])
def test_what_a_source_raises_is_reported_and_ends_nothing(bench: Callable[..., Bench], error: BaseException) -> None:
    b = bench().load()
    digest = b.checksum()

    def source() -> Iterator[tuple[str, Any]]:
        yield NORM, np.zeros(32, np.float32)
        raise error

    fetched = b.fetch(source())
    assert fetched.pairs == ()
    assert fetched.error is error or (isinstance(fetched.error, RuntimeError) and "mine" in str(fetched.error))
    assert b.checksum() == digest


def misfits(tensors: Tensors) -> list[tuple[Tensors, str]]:
    short = {name: tensor for name, tensor in tensors.items() if name not in (UP, NORM)}
    return [
        (tensors | {"model.layers.1.mlp.down.weight": torch.zeros(2)}, r"'model.layers.1.mlp.down.weight' has no place"),
        (tensors | {UP: torch.zeros(48, 31)}, rf"'{UP}' has shape \[48, 31\]; (accepted:|expected) \[48, 32\]"),
        (tensors | {UP: torch.zeros(48 * 32)}, rf"'{UP}' has shape \[1536\]"),
        (tensors | {UP: torch.zeros(48, 32, dtype=torch.int32)}, rf"'{UP}' is (int32|I32); accepted: .*16"),
        (tensors | {UP: torch.zeros(48, 32, dtype=torch.bool)}, rf"'{UP}' is (bool|BOOL); accepted: .*16"),
        (short, rf"'{UP}' is missing \(2 of 24 are\)"),
    ]


@pytest.mark.parametrize("case", range(6))
@pytest.mark.parametrize("kind", ["a mapping", "a file", "a folder"])
def test_what_does_not_fit_is_refused_before_a_tensor_is_read(
    harness: type[Harness], tensors: Tensors, tmp_path: Path, case: int, kind: str
) -> None:
    wrong, words = misfits(tensors)[case]
    source: Any = wrong
    if kind != "a mapping":
        source = tmp_path if kind == "a folder" else tmp_path / "model.safetensors"
        save_file(wrong, tmp_path / "model.safetensors")
        words = rf"^source: {tmp_path}/model.safetensors: tensor {words}"
    with pytest.raises(InvalidRequest, match=words) as error:
        open_source(source, harness.info())
    assert error.value.field == "source"


@pytest.mark.parametrize("case", range(5))
def test_pairs_that_do_not_fit_are_refused_and_nothing_is_written(
    bench: Callable[..., Bench], tensors: Tensors, case: int
) -> None:
    wrong, words = misfits(tensors)[case]
    b = bench().load()
    digest = b.checksum()
    with pytest.raises(InvalidRequest, match=words):
        check_pairs(wrong.items(), b.info)
    with pytest.raises(InvalidRequest, match=words):
        raise b.write(list(wrong.items())) or AssertionError
    assert b.checksum() == digest


def test_an_unknown_name_is_answered_with_the_nearest_known(harness: type[Harness]) -> None:
    with pytest.raises(InvalidRequest, match=r"its 24 names, such as 'model.layers.1.mlp.up_proj.weight'"):
        check_pairs([("layers.1.mlp.up_proj.weight", np.zeros(1))], harness.info())


@pytest.mark.parametrize("source", [5, None, object(), 1.5])
def test_what_is_no_source_is_refused(harness: type[Harness], source: object) -> None:
    with pytest.raises(InvalidRequest, match="must be a folder, a safetensors file, a mapping or an iterable"):
        open_source(source, harness.info())


def test_a_path_that_leads_nowhere_is_named(harness: type[Harness], tmp_path: Path) -> None:
    for path, words in (
        (tmp_path / "none", "none: is neither a folder nor a file"),
        (tmp_path, "holds neither model.safetensors nor"),
    ):
        with pytest.raises(InvalidRequest, match=words) as error:
            open_source(path, harness.info())
        assert error.value.field == "source"
    (tmp_path / "torch.bin").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(InvalidRequest, match=r"torch\.bin: is truncated"):
        open_source(tmp_path / "torch.bin", harness.info())


def test_names_are_known_of_files_and_mappings_and_of_nothing_else(
    harness: type[Harness], tensors: Tensors, sources: dict[str, Any]
) -> None:
    beside = tensors | {"lm_head.weight": torch.zeros(1), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    for source in (sources["a file"], sources["a folder of shards"], tensors, beside):
        pairs, names = open_source(source, harness.info())
        assert names == frozenset(tensors) == {name for name, _ in pairs}
    assert open_source(list(tensors.items()), harness.info())[1] is None
    check_complete(tensors, harness.info())
    assert check_pairs(beside.items(), harness.info()) == set(tensors)
    with pytest.raises(InvalidRequest, match=rf"'{NORM}' is missing \(1 of 24 are\)"):
        check_complete(set(tensors) - {NORM}, harness.info())


def test_tensors_that_change_nothing_are_passed_over(bench: Callable[..., Bench], tensors: Tensors) -> None:
    b = bench().load()
    b.update(tensors)
    digest = b.checksum()
    assert b.write([("lm_head.weight", torch.full((96, 32), 9.0)), ("x.rotary_emb.inv_freq", torch.full((4,), 9.0))]) is None
    assert b.checksum() == digest


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), "float32"), (float("inf"), "float32"), (1e5, "float16")])
def test_values_that_are_not_finite_are_refused_by_name(
    bench: Callable[..., Bench], tensors: Tensors, value: float, dtype: str
) -> None:
    b = bench(dtype=dtype).load()
    tensors[UP][3, 4] = value
    with pytest.raises(InvalidRequest, match=rf"^source: tensor '{UP}' holds values that are no finite {dtype}"):
        raise b.write(list(tensors.items())) or AssertionError
    tensors[UP][3, 4] = 0.5
    b.update(tensors)  # a whole update heals it
    assert all(view.isfinite().all() for view in b.runner.weights.destinations.values())


def test_a_file_that_changes_after_it_was_judged_does_no_harm(
    bench: Callable[..., Bench], tensors: Tensors, tmp_path: Path
) -> None:
    file, b = tmp_path / "new.safetensors", bench().load()
    digest = b.checksum()
    save_file(tensors, file)
    pairs, _ = open_source(file, b.info)
    save_file(tensors | {UP: torch.zeros(2, 2)}, file)
    fetched = b.fetch(pairs)
    assert isinstance(b.write(fetched.pairs), InvalidRequest)
    pairs, _ = open_source(replaced(file, tensors), b.info)
    file.unlink()
    with pytest.raises(InvalidRequest, match=r"^source: .*new.safetensors: tensor .* cannot be read"):
        raise b.fetch(pairs).error or AssertionError
    assert b.checksum() == digest


def replaced(file: Path, tensors: Tensors) -> Path:
    save_file(tensors, file)
    return file


def test_weights_go_to_sleep_and_are_replaced_by_others(
    bench: Callable[..., Bench], harness: type[Harness], tensors: Tensors
) -> None:
    """The level-2 sleep: discard, map, load anew; and an offload of the new ones brings the new ones back."""
    b, fresh = bench().load(), bench(load_format="empty").load()
    fresh.update(tensors)
    assert b.unmap("weights", "discard").error is None
    assert b.map("weights", "discard").error is None
    assert not b.runner.weights.embed.any()
    b.update(tensors)
    assert b.unmap("weights", "offload").error is None
    assert b.map("weights", "offload").error is None
    assert b.checksum() == fresh.checksum()
    assert answers(b, harness) == answers(fresh, harness)


def test_opening_a_source_loads_no_torch(harness: type[Harness], sources: dict[str, Any]) -> None:
    """The front end judges a source in a process that need not have torch at all."""
    code = f"""
import sys
from quiesce.engine.checkpoint import ModelInfo, Rope
from quiesce.engine.weight_source import open_source
_, names = open_source({str(sources["a folder of shards"])!r}, {harness.info()!r})
print(len(names), 'torch' in sys.modules, 'safetensors' in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert run.stdout.split() == ["24", "False", "False"]
