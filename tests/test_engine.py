"""Continuous batching gives the text that `Reader` gives, whatever an image shares the slots with, and keeps its bounds."""

import threading
import time
from contextlib import contextmanager
from copy import copy
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from trocr_jax.batching import device, search
from trocr_jax.batching.jobs import Queue
from trocr_jax.decoding import read_pixels
from trocr_jax.engine import Engine, Job, QueueClosedError, QueueFullError
from trocr_jax.engine_thread import EngineThread
from trocr_jax.generation import loop
from trocr_jax.network.attention import for_one_device
from trocr_jax.network.kv_cache import FlatLayerCache
from trocr_jax.reader import Reader

PICTURES = sorted(path for path in (ROOT / "examples").glob("*.[pj][np]g") if path.stem != "typewriter")  # read in pieces
SLOTS, BATCH = 5, 4


@pytest.fixture(scope="module")
def reader():
    return Reader.from_pretrained()


@pytest.fixture(scope="module")
def pixels(reader):
    prepared = [reader.prepare(picture) for picture in PICTURES]
    assert not any(image.rest for image in prepared), "the engine knows images of the model's size, and no pieces"
    return [image.pixels for image in prepared]


@pytest.fixture(scope="module")
def lines(reader):
    return reader.read(PICTURES)


@pytest.fixture(scope="module")
def warm(reader):
    engine = make(reader, beams=(3,))
    engine.warm_up()
    return engine


@pytest.fixture
def engine(warm):
    yield warm
    finish(warm)
    assert warm.running == warm.waiting == 0, "a test left something behind"


def make(reader, defaults=None, **options):
    processor = reader.processor
    options = {"slots": SLOTS, "batch": BATCH, **options}
    return Engine(reader.model, processor.mean, processor.std, defaults or reader.defaults, **options)


def finish(engine):
    turns = 0
    while engine.turn():
        turns += 1
        assert turns < 10_000
    return turns


def run(engine, jobs):
    engine.submit(jobs)
    finish(engine)
    return jobs


@contextmanager
def compilations():
    """The events of compiling inside of it."""
    seen, compiled = [], []  # a listener stays until the process ends
    jax.monitoring.register_event_duration_secs_listener(lambda event, duration_secs, **_: seen.append(event))
    yield compiled
    compiled += [event for event in seen if "backend_compile" in event]


def ids(line):
    return [token.id for token in line.tokens]


def same(job, line):
    assert job.tokens == ids(line)
    np.testing.assert_allclose(job.logprobs, [token.logprob for token in line.tokens], atol=1e-4)
    assert job.status == line.finish_reason


def test_the_readers_text_whatever_shares_the_slots(engine, reader, pixels, lines):
    assert len({len(line.tokens) for line in lines}) > 6, "lines of different lengths, or this proves little"
    order = np.random.default_rng(0).permutation(3 * len(pixels)) % len(pixels)
    for i, job in zip(order, run(engine, [Job(pixels[i], reader.defaults) for i in order]), strict=True):
        same(job, lines[i])
    for image, line in zip(pixels[:3], lines[:3], strict=True):
        same(run(engine, [Job(image, reader.defaults)])[0], line)


def test_sampling_beams_and_alternatives_side_by_side(engine, reader, pixels, lines):
    drawn = replace(reader.defaults, do_sample=True, temperature=1.4, top_p=0.9)
    searched = replace(reader.defaults, num_beams=3)
    samples = [reader.read(picture, do_sample=True, temperature=1.4, top_p=0.9, seed=7) for picture in PICTURES]
    beams = reader.read(PICTURES, num_beams=3, num_return_sequences=3)
    assert [line.text for line in samples] != [line.text for line in lines]
    wanted = [(replace(reader.defaults), lines), (drawn, samples), (searched, beams)]
    jobs = [Job(image, wanted[i % 3][0], seed=7, alternatives=5 * (i % 3 == 0)) for i, image in enumerate(pixels)]
    for i, job in enumerate(run(engine, jobs)):
        same(job, wanted[i % 3][1][i])
        for token, logprob, best in zip(job.tokens, job.logprobs, job.best, strict=False):
            assert best[0] == (token, pytest.approx(logprob, abs=1e-6)) and len(best) == 5
            assert [p for _, p in best] == sorted((p for _, p in best), reverse=True)
        assert bool(job.best) == (i % 3 == 0)
    second = run(engine, [Job(image, searched, sample=1) for image in pixels])
    assert [job.tokens for job in second] == [ids(line.alternatives[0]) for line in beams]


def test_the_layout_of_a_tpu_s_cache_changes_nothing(reader, pixels, lines):
    as_on_a_tpu = copy(reader)
    as_on_a_tpu.model = for_one_device(reader.model, "tpu")
    engine, searched = make(as_on_a_tpu, beams=(3,)), replace(reader.defaults, num_beams=3)
    assert isinstance(jax.eval_shape(lambda: as_on_a_tpu.model.decoder.init_cache(1, 4)).layers[0], FlatLayerCache)
    beams = reader.read(PICTURES[:4], num_beams=3)
    jobs = run(engine, [Job(image, reader.defaults) for image in pixels] + [Job(image, searched) for image in pixels[:4]])
    for job, line in zip(jobs, lines + beams, strict=True):
        same(job, line)


def test_what_is_not_drawn_is_the_best_at_any_temperature_and_every_step_that_gave_a_token_counts(engine, reader, pixels, lines):
    """Beside drawn lines the steps draw for all slots; alternatives alone make them take that way too."""
    hot, before = replace(reader.defaults, temperature=50.0), engine.counts.live_steps
    jobs = run(engine, [Job(image, hot, alternatives=1) for image in pixels[:3]])
    for job, line in zip(jobs, lines[:3], strict=True):
        same(job, line)
        assert [token for ((token, _),) in job.best] == job.tokens
    assert engine.counts.live_steps - before == sum(len(job.tokens) for job in jobs)


def test_samples_of_one_seed_are_generates(engine, reader, pixels):
    config = replace(reader.defaults, do_sample=True, temperature=2.0, num_return_sequences=4)
    found = jax.device_get(reader.generate(np.stack(pixels[:1]), config, np.array([99], np.uint32)))
    one = replace(config, num_return_sequences=1)
    jobs = run(engine, [Job(pixels[0], one, seed=99, sample=r) for r in range(4)])
    for r, job in enumerate(jobs):
        assert job.tokens == found.tokens[0, r, : found.lengths[0, r]].tolist()


def test_rules_that_forbid_tokens(reader, pixels):
    defaults = replace(reader.defaults, no_repeat_ngram_size=2, min_new_tokens=20)
    engine = make(reader, defaults)
    jobs = run(engine, [Job(image, defaults) for image in pixels])
    wanted = reader.read(PICTURES, no_repeat_ngram_size=2, min_new_tokens=20)
    for job, line in zip(jobs, wanted, strict=True):
        same(job, line)


def test_budgets(engine, reader, pixels, lines):
    budgets = [1, 2, 3, 4, 5, 7, 9, 60]
    jobs = run(engine, [Job(pixels[3], replace(reader.defaults, max_new_tokens=n)) for n in budgets])
    for job, budget in zip(jobs, budgets, strict=True):
        assert job.tokens == ids(lines[3])[:budget]
        assert job.status == ("stop" if budget == 60 else "length")
    cut = run(engine, [Job(image, replace(reader.defaults, num_beams=3, max_new_tokens=6)) for image in pixels])
    for job, line in zip(cut, reader.read(PICTURES, num_beams=3, max_new_tokens=6), strict=True):
        same(job, line)


def test_nothing_is_compiled_after_the_warm_up(reader, pixels):
    jax.clear_caches()  # of what other tests have compiled
    engine = make(reader, beams=(3,))
    engine.warm_up()
    drawn, searched = replace(reader.defaults, do_sample=True), replace(reader.defaults, num_beams=3)
    with compilations() as compiled:
        for count in range(1, 2 * SLOTS):
            run(engine, [Job(pixels[0], c) for c in (reader.defaults, drawn, searched) for _ in range(count)])
            run(engine, [Job(pixels[0], reader.defaults, alternatives=20)] * 1)
    assert not compiled


def test_bounds_hold_at_every_turn_and_slots_stay_full(engine, reader, pixels):
    before = replace(engine.counts)
    engine.submit([Job(pixels[i % len(pixels)], reader.defaults) for i in range(60)])
    while engine.turn():
        assert engine.running <= SLOTS
        assert sum(len(encoded.rows) for encoded in engine._encoded) < 2 * BATCH
    live, steps = engine.counts.live_steps - before.live_steps, engine.counts.slot_steps - before.slot_steps
    assert live / steps > 0.8, "a slot that ends is refilled at once"
    rows = engine.counts.encoded_rows - before.encoded_rows
    assert rows <= 64, "images are encoded in whole batches where they queue"


def test_images_are_encoded_for_free_slots_and_ahead_of_them_by_one_whole_batch(engine, reader, pixels):
    def waiting(more):
        engine.submit([Job(pixels[0], reader.defaults) for _ in range(more)])
        engine._encode_next()
        return engine.waiting

    assert [waiting(more) for more in (BATCH, SLOTS - BATCH, 1)] == [0, 0, 1]
    engine._fill()
    assert engine.running == SLOTS
    assert [waiting(more) for more in (BATCH - 2, 1, BATCH)] == [BATCH - 1, 0, BATCH]


def test_a_budget_of_whole_turns_takes_no_other_turn(engine, reader, pixels):
    job, before = Job(pixels[3], replace(reader.defaults, max_new_tokens=device.STEPS)), engine.counts.slot_steps
    run(engine, [job])
    assert job.status == "length" and engine.counts.slot_steps - before == SLOTS * device.STEPS


def test_a_full_queue_takes_all_or_none(reader, pixels):
    engine = make(reader, max_waiting=3)
    engine.submit([Job(pixels[0], reader.defaults) for _ in range(2)])
    with pytest.raises(QueueFullError):
        engine.submit([Job(pixels[0], reader.defaults) for _ in range(2)])
    assert engine.waiting == 2
    engine.submit([Job(pixels[0], reader.defaults)])


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("how", ["cancelled", "expired"])
def test_dropped_wherever_it_is(engine, reader, pixels, lines, turns, how):
    """In the queue, encoded, in a slot: its neighbours read on, its slot is free, and the queue costs the device nothing."""
    ended = []
    jobs = [Job(image, reader.defaults) for image in pixels]
    for job in jobs:
        job.notify = lambda job=job: ended.append(job)
    encoded = engine.counts.encoded
    engine.submit(jobs)
    for _ in range(turns):
        engine.turn()
    unwanted = jobs[1::2]
    for job in unwanted:
        if how == "cancelled":
            job.cancel()
        else:
            job.deadline = time.monotonic()
    engine.turn()
    assert {job.status for job in unwanted} == {how}
    finish(engine)
    for job, line in zip(jobs[::2], lines[::2], strict=True):
        same(job, line)
    assert len(ended) == len(set(map(id, ended))) == len(jobs), "everybody is told, once"
    if turns == 0:
        assert engine.counts.encoded - encoded == len(jobs) - len(unwanted)


def test_cancelled_beams_never_reach_the_device(engine, reader, pixels):
    job = Job(pixels[0], replace(reader.defaults, num_beams=3))
    encoded = engine.counts.encoded
    engine.submit([job])
    job.cancel()
    finish(engine)
    assert job.status == "cancelled" and engine.counts.encoded == encoded


def test_a_search_goes_on_beside_the_slots_and_its_short_lines_leave_early(engine, reader, pixels, lines):
    searched, order = replace(reader.defaults, num_beams=3), []
    first, last = (pick(range(len(lines)), key=lambda i: len(lines[i].tokens)) for pick in (min, max))
    jobs = [Job(pixels[last], searched), Job(pixels[first], searched), Job(pixels[first], reader.defaults)]
    for job in jobs:
        job.notify = lambda job=job: order.append(jobs.index(job))
    engine.submit(jobs)
    engine.turn()
    assert [job.status for job in jobs] == ["running", "running", "waiting"], "encoded beside the search, in a slot the next turn"
    turns = finish(engine)
    assert order[-1] == 0 and len(lines[first].tokens) + 2 * device.STEPS < len(lines[last].tokens)
    assert turns <= -(-len(jobs[0].tokens) // search.STEPS) + 1, "as many steps a turn as the slots"
    for job, line in zip(jobs, reader.read([PICTURES[last], PICTURES[first]], num_beams=3), strict=False):
        same(job, line)


@pytest.mark.parametrize("how", ["cancelled", "expired"])
@pytest.mark.parametrize("left", [0, 1])
def test_dropped_from_a_search(engine, reader, pixels, how, left):
    """Others of it read on; where none is left, the device has nothing more to do."""
    jobs = [Job(image, replace(reader.defaults, num_beams=3)) for image in pixels[:3]]
    engine.submit(jobs)
    engine.turn()
    for job in jobs[left:]:
        job.cancelled, job.deadline = how == "cancelled", time.monotonic() if how == "expired" else job.deadline
    going_on = engine.turn()
    assert {job.status for job in jobs[left:]} == {how} and not any(job.tokens for job in jobs[left:]) and going_on == bool(left)
    finish(engine)
    for job, line in zip(jobs[:left], reader.read(PICTURES[:left], num_beams=3), strict=True):
        same(job, line)


def test_a_search_whose_cache_grows(reader, pixels, monkeypatch):
    monkeypatch.setattr(loop, "NARROW", search.STEPS)
    monkeypatch.setattr(loop, "WIDER", 3)
    defaults = replace(reader.defaults, max_new_tokens=63)  # programs of its own
    assert loop.widths(63) == [4, 12, 63]
    engine, searched = make(reader, defaults, beams=(3,), slots=1, batch=1), replace(defaults, num_beams=3)
    engine.warm_up()
    with compilations() as compiled:
        jobs = run(engine, [Job(image, searched) for image in pixels])
    assert not compiled and max(len(job.tokens) for job in jobs) > 16
    for job, line in zip(jobs, reader.read(PICTURES, num_beams=3), strict=True):
        same(job, line)


def test_the_search_that_has_waited_longest_is_next(reader, pixels):
    queue, seen = Queue([1, 2, 3], most=9), []
    for beams in (1, 3, 2, 3):
        queue.add([Job(pixels[0], replace(reader.defaults, num_beams=beams))])
    while beams := queue.next_search():
        seen.append((beams, len(queue.take(beams, most=1))))
    assert seen == [(3, 1), (2, 1), (3, 1)] and len(queue) == 1


def test_streams_tell_of_every_step_and_others_only_of_their_end(engine, reader, pixels):
    seen, firsts = [], set()
    stream = Job(pixels[3], reader.defaults, stream=True)
    stream.notify = lambda: (seen.append(len(stream.tokens)), firsts.add(stream.first_token))
    told = []
    quiet = Job(pixels[3], reader.defaults, notify=lambda: told.append(1))
    run(engine, [stream, quiet])
    assert told == [1] and stream.tokens == quiet.tokens
    assert seen == [*range(device.STEPS, len(stream.tokens), device.STEPS), len(stream.tokens)]
    assert len(firsts) == 1 and stream.submitted <= stream.started <= stream.first_token, "of the first step, whatever follows"


def test_an_error_of_the_device_fails_what_is_under_way_and_nothing_else(engine, reader, pixels, lines, monkeypatch):
    jobs = [Job(image, reader.defaults) for image in pixels]
    engine.submit(jobs)
    engine.turn()
    engine.turn()
    advance = device.advance
    monkeypatch.setattr(device, "advance", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError):
        engine.turn()
    engine.fail()
    failed = [job for job in jobs if job.status == "failed"]
    assert 0 < len(failed) < len(jobs)
    monkeypatch.setattr(device, "advance", advance)
    finish(engine)
    for job, line in zip(jobs, lines, strict=True):
        if job not in failed:
            same(job, line)


def test_an_error_of_the_device_leaves_alone_what_is_over(engine, reader, pixels, lines):
    """Nobody is told twice, and a text that was read stays so."""
    told = []
    job = Job(pixels[0], reader.defaults, notify=lambda: told.append(job.status))
    run(engine, [job])
    engine.fail()
    same(job, lines[0])
    assert told == ["stop"]


def test_an_error_that_a_search_ends_with_fails_its_jobs(engine, reader, pixels, monkeypatch):
    """A device computes after the dispatch: what goes wrong there is raised where the result is waited for."""
    jobs = [Job(image, replace(reader.defaults, num_beams=3)) for image in pixels[: BATCH + 1]]
    engine.submit(jobs)
    engine.dispatch()
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(jax, "device_get", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
        engine.harvest()
    engine.fail()
    finish(engine)
    assert [job.status == "failed" for job in jobs] == [True] * BATCH + [False]


@pytest.mark.parametrize("beams", [1, 3])
def test_an_error_while_encoding_fails_what_was_taken_and_the_rest_is_read(engine, reader, pixels, lines, monkeypatch, beams):
    """With nobody else to wake the thread: a closed loop of clients would otherwise wait for its deadlines."""
    encode, errors = device.encode, []

    def once(*arguments):
        monkeypatch.setattr(device, "encode", encode)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(device, "encode", once)
    monkeypatch.setattr(engine, "warm_up", lambda stopping: None)
    over = threading.Semaphore(0)
    config = replace(reader.defaults, num_beams=beams)
    jobs = [Job(image, config, notify=over.release) for image in pixels[: BATCH + 2]]
    engine.submit(jobs)
    thread = EngineThread([engine], engine.wake, on_error=errors.append)
    thread.start()
    for _ in jobs:
        assert over.acquire(timeout=30)
    thread.stop()
    assert [job.status == "failed" for job in jobs] == [True] * BATCH + [False] * 2 and len(errors) == 1
    if beams == 1:
        same(jobs[-1], lines[BATCH + 1])


def test_a_device_that_does_not_start_anew_fails_every_job_and_ends_the_thread(reader, pixels, monkeypatch):
    wake, errors, deaths, over = threading.Event(), [], [], threading.Semaphore(0)
    engines = [make(reader, wake=wake), make(reader, wake=wake, slots=1)]
    jobs = [[Job(image, reader.defaults, notify=over.release) for image in pixels[: BATCH + 2]] for _ in engines]
    engines[1].submit(jobs[1])
    for _ in range(2):
        engines[1].turn()
    assert engines[1].running and engines[1].waiting
    engines[0].submit(jobs[0])

    def broken(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(device, "encode", broken)
    monkeypatch.setattr(device, "empty", broken)
    monkeypatch.setattr(Engine, "warm_up", lambda *_: None)
    thread = EngineThread(engines, wake, on_error=errors.append, on_death=deaths.append)
    thread.start()
    for _ in range(2 * (BATCH + 2)):
        assert over.acquire(timeout=30)
    thread.join(30)
    assert not thread.is_alive() and len(errors) == len(deaths) == 1
    assert {job.status for job in jobs[0]} == {"failed"}
    assert [job.status for job in jobs[1]].count("failed") >= BATCH, "under way and waiting ones of the other engine, too"
    with pytest.raises(QueueClosedError):
        engines[1].submit(jobs[1])


@pytest.mark.parametrize("beams", [1, 3])
def test_a_model_that_gives_no_numbers_fails_its_jobs(pixels, beams):
    reader = Reader.from_pretrained()
    reader.model.decoder.embed_norm = jax.tree.map(lambda x: x * jnp.nan, reader.model.decoder.embed_norm)
    jobs = run(make(reader, beams=(3,)), [Job(pixels[0], replace(reader.defaults, num_beams=beams))])
    assert [job.status for job in jobs] == ["failed"]


def test_a_device_that_gives_nothing_but_errors_ends_the_thread(reader, pixels, monkeypatch):
    """Though each time it starts anew. A result between two errors makes the next one the first."""
    engine, errors, deaths, advance = make(reader), [], [], device.advance
    monkeypatch.setattr(Engine, "warm_up", lambda *_: None)
    thread = EngineThread([engine], engine.wake, on_error=errors.append, on_death=deaths.append)
    thread.start()

    def broken(*_):
        raise RuntimeError("out of memory")

    def read(how):
        over = threading.Event()
        monkeypatch.setattr(device, "advance", how)
        job = Job(pixels[0], reader.defaults, notify=over.set)
        engine.submit([job])
        assert over.wait(60)
        return job.status

    assert [read(how) for how in (broken, broken, advance, broken, broken)] == ["failed", "failed", "stop", "failed", "failed"]
    assert thread.is_alive() and len(errors) == 4
    assert read(broken) == "failed"
    thread.join(30)
    assert not thread.is_alive() and len(deaths) == 1
    with pytest.raises(QueueClosedError):
        engine.submit([Job(pixels[0], reader.defaults)])


def test_a_thread_that_is_stopped_while_it_compiles_ends_after_the_program(reader, monkeypatch):
    engine, compiling, going_on, ready = make(reader), threading.Event(), threading.Event(), []
    encoded, encode = [], engine._encode

    def slow(images):
        encoded.append(len(images))
        compiling.set()
        assert going_on.wait(30)
        return encode(images)

    monkeypatch.setattr(engine, "_encode", slow)
    monkeypatch.setattr(engine._slots, "insert", lambda *_: pytest.fail("a second program was compiled"))
    thread = EngineThread([engine], engine.wake, lambda: ready.append(1))
    thread.start()
    assert compiling.wait(30)
    stopping = threading.Thread(target=thread.stop)
    stopping.start()
    while not thread._stopping:
        time.sleep(0.01)
    going_on.set()
    stopping.join(30)
    assert not thread.is_alive() and encoded == [1] and not ready


def test_a_notify_that_raises_hinders_no_other_job(engine, reader, pixels, lines, caplog):
    def broken():
        raise RuntimeError("Event loop is closed")

    jobs = [Job(pixels[0], reader.defaults, notify=broken, stream=True), Job(pixels[1], reader.defaults)]
    run(engine, jobs)
    same(jobs[0], lines[0])
    same(jobs[1], lines[1])
    assert "Event loop is closed" in caplog.text


def test_top_k_of_the_defaults_is_drawn_from(reader, pixels):
    drawn = replace(reader.defaults, do_sample=True, temperature=3.0, top_k=2)
    engine = make(reader, drawn)
    config = replace(drawn, num_return_sequences=4)
    images = jax.device_put(pixels[0][None])
    found = read_pixels(reader.model, images, config, reader.processor.mean, reader.processor.std, jnp.uint32([5]))
    seeds = (5 - 2**32, np.int32(5), jnp.uint32(5), 5)  # as `read` takes any integer
    jobs = run(engine, [Job(pixels[0], drawn, seed=seed, sample=r) for r, seed in enumerate(seeds)])
    wanted = [found.tokens[0, r, : found.lengths[0, r]].tolist() for r in range(4)]
    assert [job.tokens for job in jobs] == wanted and len({tuple(tokens) for tokens in wanted}) > 1


def test_what_is_not_compiled_is_refused_by_name(engine, reader, pixels):
    for change, name in (
        ({"top_k": 5}, "top_k"), ({"num_beams": 2}, "num_beams"), ({"max_new_tokens": 65}, "max_new_tokens"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size"), ({"length_penalty": 2.0}, "length_penalty"),
        ({"do_sample": True, "num_return_sequences": 2}, "num_return_sequences"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            engine.check(Job(pixels[0], replace(reader.defaults, **change)))
    searched = replace(reader.defaults, num_beams=3)
    for job, name in (
        (Job(pixels[0], reader.defaults, alternatives=21), "alternatives"),
        (Job(pixels[0], reader.defaults, alternatives=-1), "alternatives"),
        (Job(pixels[0], searched, alternatives=1), "alternatives"),
        (Job(pixels[0], reader.defaults, sample=-1), "sample"),
        (Job(pixels[0], searched, sample=3), "sample"),
        (Job(pixels[0], reader.defaults, sample=2**31), "sample"),
        (Job(pixels[0], reader.defaults, seed=1.5), "seed must be a whole number, not 1.5"),
        (
            Job(pixels[0][..., :1], reader.defaults),
            "pixels must be uint8 of shape .32, 512, 3., not uint8 of .32, 512, 1.",
        ),
        (Job(pixels[0].astype(np.float32), reader.defaults), "pixels"),
    ):
        with pytest.raises(ValueError, match=name):
            engine.submit([job])
    with pytest.raises(ValueError, match="power of two"):
        make(reader, batch=3)


def test_one_thread_serves_many_and_several_engines(reader, pixels, lines):
    wake, ready, errors = threading.Event(), threading.Event(), []
    engines = [make(reader, wake=wake, slots=2, batch=1), make(reader, wake=wake, slots=2, batch=1)]
    thread = EngineThread(engines, wake, ready.set, errors.append)
    thread.start()
    assert ready.wait(120)
    done = {}

    def client(name):
        for i in range(name, len(pixels), 4):
            over = threading.Event()
            job = Job(pixels[i], reader.defaults, notify=over.set)
            engines[i % 2].submit([job])
            assert over.wait(60)
            done[i] = job

    clients = [threading.Thread(target=client, args=(name,)) for name in range(4)]
    for c in clients:
        c.start()
    for c in clients:
        c.join()
    thread.stop()
    assert not errors and not thread.is_alive()
    for i, line in enumerate(lines):
        same(done[i], line)
