"""What `serve.load` measures is what it says, in small: exact lengths on every way, and answers counted once."""

import asyncio
from dataclasses import replace

import pytest
from serving import MODEL, PICTURES, reader, serving

from trocr_jax.serve import load

CONFIG = load.Config(count=8, tokens=4, slots=4, rounds=1, seconds=0.5, shares=(0.5,))


def test_ways_of_batching():
    ways = {way.name: way for way in load.batching(reader(), [reader().prepare(p).pixels for p in PICTURES], CONFIG)}
    assert list(ways) == ["one by one", "batches of 4, as they come", "batches of 4, sorted", "engine, 4 slots"]
    assert all(way.per_second > 0 and 0 < way.useful <= 1 for way in ways.values())
    assert ways["batches of 4, sorted"].useful >= ways["batches of 4, as they come"].useful


def test_load_over_http(tmp_path):
    with serving() as running:
        before = running.count("lines_total", model=MODEL, finish_reason="stop")
        offline, most, (level,) = asyncio.run(load.load(running.url, reader(), PICTURES, CONFIG))
        served = running.count("lines_total", model=MODEL, finish_reason="stop") - before
        assert offline > 0 and served / 10 < most, "most of the answers, in about a second, came while it was saturated"
        assert level.share == 0.5 and level.refused == 0 and 0 < level.p50 <= level.p99
    load.draw([level, level], tmp_path / "load.png")
    assert (tmp_path / "load.png").stat().st_size > 1000


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
