"""What `serve.load` measures is what it says, in small: exact lengths on every way, and answers counted once."""

import asyncio
from dataclasses import replace

import pytest
from serving import MODEL, PICTURES, reader, serving

from trocr_jax.serve import load
from trocr_jax.serve.client import Client

CONFIG = load.Config(count=8, tokens=4, slots=4, rounds=1, seconds=0.5, shares=(0.5,))


def test_ways_of_batching():
    ways = {way.name: way for way in load.batching(reader(), [reader().prepare(p).pixels for p in PICTURES], CONFIG)}
    assert list(ways) == ["one by one", "batches of 4, as they come", "batches of 4, sorted", "engine, 4 slots"]
    assert all(0 < way.useful <= 1 for way in ways.values())
    assert ways["batches of 4, sorted"].useful >= ways["batches of 4, as they come"].useful


def test_load_over_http(tmp_path):
    with serving() as running:
        before = running.count("lines_total", model=MODEL, finish_reason="stop")
        _, most, (level,) = asyncio.run(load.load(running.url, reader(), PICTURES, CONFIG))
        served = running.count("lines_total", model=MODEL, finish_reason="stop") - before
        assert served / 10 < most, "most of the answers, in about a second, came while it was saturated"
        assert level.share == 0.5 and level.refused == 0 and 0 < level.p50 <= level.p99
    load.draw([level, level], tmp_path / "load.png")
    assert (tmp_path / "load.png").stat().st_size > 1000


@pytest.mark.parametrize("broken", ["cancelled by the client", "cut off by the server"])
def test_a_request_that_is_broken_off_leaves_no_connection(broken):
    """Kept, it would give its late answer to the next request; forgotten, it stays open until the collector finds it."""
    hung_up = asyncio.Event()

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        if broken == "cut off by the server":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n.")
            writer.write_eof()
        await reader.read()
        writer.close()
        hung_up.set()

    async def break_off():
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with Client(f"http://127.0.0.1:{port}") as client:
                with pytest.raises((TimeoutError, asyncio.IncompleteReadError)):
                    await asyncio.wait_for(client.get("/metrics"), 0.2)
                await asyncio.wait_for(hung_up.wait(), 5)

    asyncio.run(break_off())


def test_lines_end_by_their_length_alone():
    engine = load._engine(reader(), CONFIG)
    pixels = reader().prepare(PICTURES[0]).pixels
    before = engine.counts.live_steps
    load._continuous(engine, [(pixels, 1), (pixels, 4), (pixels, 3)])
    assert engine.counts.live_steps - before == 8 and engine.counts.ended["length"] == 3


def test_a_server_that_does_not_start_is_said(capfd):
    with pytest.raises(ValueError, match="did not start"), load.server(replace(CONFIG, slots=0)):
        pass
    assert "--slots must be at least 1" in capfd.readouterr().err
