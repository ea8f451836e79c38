"""New weights on the ledger device: sources, versions, what becomes of frozen requests and of cached prefixes, what cannot be."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from quiesce.engine import errors
from quiesce.stateful.driver import VOCAB_SIZE, ledger_config, ledger_engine
from quiesce.stateful.ledger_device import true_tokens
from quiesce.stateful.loop import DeterministicLoop
from quiesce.stateful.operators import begun, facts, some_clients, streaming, weights_of
from quiesce.stateful.scenario import Client, World, prompt_of, run
from quiesce.stateful.truth import assert_tokens_are_true

HERE = {"weights": "resident", "kv_cache": "resident"}


def under(version: int, client: Client) -> list[int]:
    """What the client is answered by these weights alone."""
    return true_tokens(client.prompt, client.max_tokens, VOCAB_SIZE, version=version)


def assert_true_across_versions(client: Client) -> list[tuple[int | str, int, int]]:
    (child,) = client.outputs[-1].outputs
    spans = [(int(version), start, end) for version, start, end in child.weight_versions]
    assert_tokens_are_true(client.name, client.prompt, child.token_ids, spans)
    return list(child.weight_versions)


def as_source(world: World, kind: str, folder: Path) -> object:
    values = weights_of(world)
    match kind:
        case "mapping":
            return values
        case "iterable":
            return iter(values.items())
        case "list":
            return list(values.items())
    path = folder / "new" / "model.safetensors"
    path.parent.mkdir()
    save_file(values, path)
    (path.parent / "config.json").write_text((Path(world.engine.config.model) / "config.json").read_text())
    return path if kind == "file" else str(path.parent)


@pytest.mark.parametrize("kind", ["mapping", "iterable", "list", "file", "folder"])
def test_every_source_brings_the_same_weights_under_the_next_version(ledger_folder: Path, tmp_path: Path, kind: str) -> None:
    async def body(world: World) -> None:
        before = await world.engine.weights_checksum()
        done = await world.engine.update_weights(as_source(world, kind, tmp_path))
        assert (done.state, done.changed) == ("running", True)
        assert facts(world) == ("running", {}, HERE, (1, "stable"))
        after = await world.engine.weights_checksum()
        assert before != after == world.device.digest
        again = await world.engine.update_weights(weights_of(world))
        assert (again.changed, await world.engine.weights_checksum()) == (True, after)
        client = await world.ask(Client("r", prompt_of(0, 5), 4))
        assert client.tokens == under(2, client)
        assert client.outputs[-1].outputs[0].weight_versions == ((2, 0, 4),)

    run(ledger_folder, body)


def test_a_version_is_named_by_the_caller_or_follows_the_last(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        names: list[int | str] = []
        for version in (None, 7, None, "base-2", None):
            await engine.update_weights(weights_of(world), version=version)
            names.append(engine.status().weights[0])
        assert names[:4] == [1, 7, 8, "base-2"]
        assert isinstance(names[4], int)
        await engine.begin_weight_update()
        await engine.load_weights(weights_of(world))
        await engine.finish_weight_update(version="mine")
        assert engine.status().weights == ("mine", "stable")

    run(ledger_folder, body)


# ---- frozen requests and cached prefixes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 3, 4, 6, 9])
@pytest.mark.parametrize("kv", ["recompute", "keep"])
def test_frozen_requests_go_on_under_the_new_weights_and_their_spans_say_so(ledger_folder: Path, kv: str, step: int) -> None:
    async def body(world: World) -> None:
        clients = some_clients(5, 12)
        tasks = await streaming(world, *clients, step=step)
        updating = await begun(world, world.engine.update_weights(weights_of(world), kv=kv))
        assert facts(world)[:2] == ("draining", {"update": "keep"})
        assert (world.engine.status().operation, world.engine.status().admission) == ("update_weights", "queue")
        world.loop.release(f"step {step}")
        done = await updating
        assert set(done.kept) == {client.name for client in clients}
        assert not done.aborted
        await asyncio.gather(*tasks)
        mixed = 0
        for client in clients:
            spans = assert_true_across_versions(client)
            assert [version for version, _, _ in spans] in ([0, 1], [1])
            generated = spans[0][2] if len(spans) == 2 else 0
            recomputed = [*under(0, client)[:generated]]
            recomputed += true_tokens([*client.prompt, *recomputed], 12 - generated, VOCAB_SIZE, version=1)
            mixed += client.tokens != recomputed
            if kv == "recompute":
                assert client.tokens == recomputed, "all of its context was computed anew"
        assert (mixed > 0) == (kv == "keep"), "what is kept shows"

    run(ledger_folder, body)


@pytest.mark.parametrize("kv", ["recompute", "keep"])
def test_no_prefix_is_found_under_another_version(ledger_folder: Path, kv: str) -> None:
    """Neither what was cached before, nor what a kept request computed, before or after."""

    async def body(world: World) -> None:
        first = await world.ask(Client("first", prompt_of(3, 25), 2))
        kept = Client("kept", prompt_of(4, 25), 20)
        tasks = await streaming(world, kept, step=9)
        updating = await begun(world, world.engine.update_weights(weights_of(world), kv=kv))
        world.loop.release("step 9")
        await updating
        await asyncio.gather(*tasks)
        for number, prompt in enumerate((first.prompt, kept.prompt, [*kept.prompt, *kept.tokens])):
            again = await world.ask(Client(f"again-{number}", prompt, 3))
            assert again.tokens == under(1, again)
            if kv == "keep":
                assert again.outputs[-1].num_cached_tokens == 0 or number == 2
        once_more = await world.ask(Client("once-more", first.prompt, 3))
        assert once_more.outputs[-1].num_cached_tokens == 24, "what the new weights computed is found"

    run(ledger_folder, body)


def test_no_prefix_of_a_kept_request_is_found_while_it_runs_on(ledger_folder: Path) -> None:
    """Its first block was begun under the old weights and filled under the new ones."""

    async def body(world: World) -> None:
        kept = Client("kept", prompt_of(4, 1), 30)
        tasks = await streaming(world, kept, step=1)
        updating = await begun(world, world.engine.update_weights(weights_of(world), kv="keep"))
        world.loop.hold("step 14")
        world.loop.release("step 1")
        await updating
        await world.loop.wait_settled()
        again = await begun(world, world.ask(Client("again", [*kept.prompt, *kept.tokens], 3)))
        world.loop.release("step 14")
        client = await again
        assert len(client.prompt) > 8
        assert (client.outputs[-1].num_cached_tokens, client.tokens) == (0, under(1, client))
        await asyncio.gather(*tasks)

    run(ledger_folder, body, overlap=False)


def test_what_was_kept_is_computed_anew_when_it_is_preempted_later(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        clients = [Client(f"r{number}", prompt_of(number, 12), 24) for number in range(3)]
        tasks = await streaming(world, *clients, step=6)
        updating = await begun(world, world.engine.update_weights(weights_of(world), kv="keep"))
        world.loop.release("step 6")
        await updating
        await asyncio.gather(*tasks)
        for client in clients:
            assert_true_across_versions(client)

    run(ledger_folder, body, num_kv_blocks=17)


@pytest.mark.parametrize("mode", ["abort", "wait", "keep"])
def test_an_update_ends_drains_or_keeps_as_its_mode_says(ledger_folder: Path, mode: str) -> None:
    async def body(world: World) -> None:
        clients = some_clients(3)
        tasks = await streaming(world, *clients, step=5)
        updating = await begun(world, world.engine.update_weights(weights_of(world), mode=mode))
        assert dict(world.engine.status().pause_owners) == {"update": mode}
        world.loop.release("step 5")
        done = await updating
        await asyncio.gather(*tasks)
        reasons = {client.finish_reason for client in clients}
        assert reasons == ({"abort"} if mode == "abort" else {"length"})
        assert set(done.aborted) == ({"r0", "r1", "r2"} if mode == "abort" else set())
        if mode == "wait":
            assert [client.tokens for client in clients] == [client.truth for client in clients]

    run(ledger_folder, body)


# ---- tensors that cannot be taken ---------------------------------------------------------------------------------------------


def broken(world: World, place: int, how: str) -> Iterator[tuple[str, Any]]:
    """A source whose tensor at this place is wrong. Two make a chunk."""
    for number, (name, value) in enumerate(weights_of(world).items()):
        if number == place:
            if how == "raises":
                raise OSError("the source is gone")
            yield (name, np.zeros((1, 2, 3), np.float32)) if how == "misshapen" else ("no.such.tensor", value)
        yield name, value


@pytest.mark.parametrize("how", ["misshapen", "unknown", "raises"])
@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_broken_source_leaves_the_old_weights_unless_a_byte_was_written(ledger_folder: Path, how: str, place: int) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        clients = some_clients(3)
        tasks = await streaming(world, *clients, step=5)
        updating = await begun(world, engine.update_weights(broken(world, place, how)))
        world.loop.release("step 5")
        with pytest.raises(errors.InvalidRequest, match="source"):
            await updating
        if place < 2:
            assert facts(world) == ("running", {}, HERE, (0, "stable"))
            assert not world.device.tensors, "not one byte"
            await asyncio.gather(*tasks)
            assert [client.tokens for client in clients] == [client.truth for client in clients]
            return
        assert facts(world) == ("paused", {}, HERE, (0, "undefined"))
        assert engine.status().admission == "reject"
        with pytest.raises(errors.TransitionConflict, match="load the remaining tensors"):
            await engine.update_weights(list(weights_of(world).items())[:3])
        assert (await engine.update_weights(weights_of(world))).state == "running"
        await asyncio.gather(*tasks)
        for client in clients:
            assert_true_across_versions(client)

    run(ledger_folder, body)


def test_a_write_that_fails_leaves_the_weights_undefined_until_a_full_update(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        world.device.fail_write = OSError("half a tensor")
        with pytest.raises(errors.InvalidRequest, match="half a tensor"):
            await engine.update_weights(weights_of(world))
        assert facts(world) == ("paused", {}, HERE, (0, "undefined"))
        await engine.begin_weight_update()
        world.device.fail_write = OSError("again")
        with pytest.raises(errors.InvalidRequest, match="again"):
            await engine.load_weights(weights_of(world))
        with pytest.raises(errors.TransitionConflict, match="begin_weight_update first"):
            await engine.finish_weight_update()
        assert (await engine.update_weights(weights_of(world))).state == "running"

    run(ledger_folder, body)


@pytest.mark.parametrize("source", [7, None, {}, {"a": 1}, "/no/such/folder"], ids=repr)
def test_what_can_be_known_before_is_refused_before_the_gate_closes(ledger_folder: Path, source: object) -> None:
    async def body(world: World) -> None:
        with pytest.raises(errors.InvalidRequest, match="source"):
            await world.engine.update_weights(source)
        for asked in ({"kv": "drop"}, {"version": 1.5}, {"version": True}, {"mode": "now"}):
            with pytest.raises(errors.InvalidRequest, match=next(iter(asked))):
                await world.engine.update_weights(weights_of(world), **asked)
        with pytest.raises(errors.InvalidRequest, match="lease"):
            await world.engine.begin_weight_update(lease=0)
        assert facts(world) == ("running", {}, HERE, (0, "stable"))

    run(ledger_folder, body)


# ---- asleep, empty, dying -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_cache", ["offload", "discard"])
@pytest.mark.parametrize("weights", ["offload", "discard"])
def test_weights_are_updated_between_waking_them_and_waking_the_kv(ledger_folder: Path, weights: str, kv_cache: str) -> None:
    """The cycle of a trainer that shares the machine; requests that were kept go on under the new weights."""

    async def body(world: World) -> None:
        engine = world.engine
        clients = some_clients(3)
        tasks = await streaming(world, *clients, step=6)
        sleeping = await begun(world, engine.sleep(tags={"weights": weights, "kv_cache": kv_cache}, mode="keep"))
        world.loop.release("step 6")
        await sleeping
        await engine.wake_up(tags=["weights"])
        done = await engine.update_weights(weights_of(world))
        assert (done.state, set(done.kept)) == ("partially_awake", {"r0", "r1", "r2"})
        assert facts(world)[1:] == ({"sleep": "keep"}, HERE | {"kv_cache": "released"}, (1, "stable"))
        await world.loop.wait_settled()
        assert engine.status().steps_in_flight == 0
        assert (await engine.wake_up()).state == "running"
        await asyncio.gather(*tasks)
        for client in clients:
            assert_true_across_versions(client)
        again = await world.ask(Client("again", clients[2].prompt, 4))
        assert again.tokens == under(1, again)

    run(ledger_folder, body)


def test_an_update_in_a_sleep_that_aborts_sweeps_who_is_frozen(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        clients = some_clients(2)
        tasks = await streaming(world, *clients, step=5)
        sleeping = await begun(world, engine.sleep(tags={"kv_cache": "offload"}, mode="keep"))
        world.loop.release("step 5")
        await sleeping
        with pytest.raises(errors.TransitionConflict, match="resume the listed owners"):
            await engine.begin_weight_update(mode="wait")
        done = await engine.begin_weight_update(mode="abort")
        assert set(done.aborted) == {"r0", "r1"}
        await asyncio.gather(*tasks)
        await engine.abort_weight_update()
        assert (await engine.wake_up()).state == "running"

    run(ledger_folder, body)


@pytest.mark.parametrize("by", ["update_weights", "begin"])
def test_an_engine_that_was_loaded_empty_waits_for_its_weights(ledger_folder: Path, by: str) -> None:
    loop = DeterministicLoop()

    async def main() -> None:
        engine, device = ledger_engine(loop, ledger_config(ledger_folder, load_format="empty"))
        world = World(loop, engine, device)
        loop.hold("load")
        early = await begun(world, world.ask(Client("early", prompt_of(0, 4), 3)))
        loop.release("load")
        async with engine:
            assert facts(world)[::3] == ("paused", (0, "undefined"))
            with pytest.raises(errors.TransitionConflict, match="update_weights"):
                await engine.weights_checksum()
            with pytest.raises(errors.TransitionConflict, match="load the remaining"):
                await engine.update_weights(list(weights_of(world).items())[:2])
            assert not (await engine.wake_up()).changed
            await engine.sleep(mode="keep")
            await engine.wake_up()
            if by == "begin":
                await engine.begin_weight_update()
                await engine.load_weights(weights_of(world))
                await engine.finish_weight_update()
            else:
                await engine.update_weights(weights_of(world))
            assert engine.status().engine == "running"
            client = await early
            assert client.tokens == under(1, client), "it was queued while loading, and waited"

    loop.run(main())
