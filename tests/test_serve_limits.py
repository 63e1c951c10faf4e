"""Too much, too late, too slow, gone: what happens to a server's other clients, and what a refusal costs."""

import asyncio
import gc
import json
import socket
import statistics
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field

import jax
import numpy as np
import openai
import pytest
from serving import (
    MODEL,
    PICTURES,
    SLOTS,
    Running,
    chat,
    collected,
    data_url,
    lines,
    message,
    process,
    reader,
    serving,
    wait_until,
)

from trocr_jax.cores import usable_cores
from trocr_jax.prepared import Prepared
from trocr_jax.serve.api.chat import OtherMessage
from trocr_jax.serve.api.errors import ApiError
from trocr_jax.serve.api.gate import Gate
from trocr_jax.serve.api.keys import Keys, RateLimit
from trocr_jax.serve.api.limits import Limits
from trocr_jax.serve.api.options import Options
from trocr_jax.serve.api.pictures import SMALL, TOO_LARGE, Picture, Pictures
from trocr_jax.serve.api.responses import OtherItem
from trocr_jax.serve.api.service import RequestContext, Service
from trocr_jax.serve.api.sources import RequestImage
from trocr_jax.serve.client import Client

QUEUE = 8


@pytest.fixture(scope="module")
def server():
    limits = {"queue": QUEUE, "header-seconds": 2, "body-seconds": 2}
    with process(*(f"--limits.{name}={value}" for name, value in limits.items())) as running:
        yield running


def request_bytes(body: dict, port: int) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


class Held:
    """Keeps an engine's thread waiting, so that what is sent meanwhile stays in the queue."""

    def __init__(self, engine, monkeypatch):
        self.release, dispatch = threading.Event(), engine.dispatch

        def wait(own):
            if own is engine:
                self.release.wait(30)
            return dispatch()

        monkeypatch.setattr(type(engine), "dispatch", wait)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release.set()


# --- too much ---


@dataclass
class Load:
    """What came back of an offered load."""

    served: int = 0
    refused: list[float] = field(default_factory=list)
    statuses: Counter = field(default_factory=Counter)
    retry_after: set[bool] = field(default_factory=set)
    depths: list[float] = field(default_factory=list)


async def offer(url: str, rate: float, seconds: float) -> Load:
    """Sends requests at a fixed rate, whatever becomes of them, and looks at the queue meanwhile."""
    load, body = Load(), json.dumps(chat(PICTURES[0])).encode()

    async def one(client):
        start = time.perf_counter()
        answer = await client.post("/v1/chat/completions", body)
        load.statuses[answer.status] += 1
        if answer.status == 200:
            load.served += 1
        else:
            load.refused.append(time.perf_counter() - start)
            load.retry_after.add(int(answer.headers.get("retry-after", 0)) >= 1)

    async def look(client):
        while True:
            text = (await client.get("/metrics")).content.decode()
            load.depths.append(float(next(row for row in text.splitlines() if row.startswith("trocr_images ")).split()[1]))
            await asyncio.sleep(0.2)

    async with Client(url) as client:
        looking, start = asyncio.create_task(look(client)), time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(int(rate * seconds)):
                await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
                group.create_task(one(client))
        assert not looking.done(), looking.exception()
        looking.cancel()
        await asyncio.wait({looking})
    return load


async def capacity(url: str, seconds: float) -> float:
    """Requests a second that as many clients as the queue holds get through, each sending its next after its last."""
    body, done, until = json.dumps(chat(PICTURES[0])).encode(), 0, time.perf_counter() + seconds

    async def one(client):
        nonlocal done
        while time.perf_counter() < until:
            answer = await client.post("/v1/chat/completions", body)
            done += answer.status == 200

    async with Client(url) as client, asyncio.TaskGroup() as group:
        for _ in range(QUEUE):
            group.create_task(one(client))
    return done / seconds


@pytest.mark.parametrize("seconds", [pytest.param(3, id="short"), pytest.param(60, id="long", marks=pytest.mark.slow)])
def test_five_times_the_capacity(server, seconds):
    asyncio.run(capacity(server.url, 1))
    possible = asyncio.run(capacity(server.url, min(seconds, 10)))
    decoded = server.metric("images_decoded_total")
    with collected():
        load = asyncio.run(offer(server.url, 5 * possible, seconds))
    assert set(load.statuses) == {200, 503} and load.retry_after == {True}
    assert max(load.depths) <= QUEUE
    assert server.metric("images_decoded_total") - decoded == load.served, "an image was decoded for a refused request"
    median, p99 = (statistics.quantiles(load.refused, n=100)[at] * 1000 for at in (49, 98))
    goodput = load.served / seconds / possible
    print(
        f"\ncapacity {possible:.1f}/s, offered {5 * possible:.1f}/s for {seconds} s: {load.served} served ({goodput:.0%}), "
        f"{len(load.refused)} refused in {median:.1f} ms (median), {p99:.1f} ms (p99), queue at most {max(load.depths):.0f}"
    )
    if seconds >= 60:  # a measurement, for a machine that does nothing else
        assert median < 50 and goodput >= 0.9


def test_openais_client_gets_everything_done_once_the_load_falls(monkeypatch):
    with serving(limits=Limits(queue=2)) as running, ExitStack() as stack:
        held = Held(running.engine, monkeypatch)
        client = stack.enter_context(openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=5))
        texts: list[str] = []

        def ask():
            answer = client.chat.completions.create(model=MODEL, messages=message(PICTURES[0]))
            texts.append(answer.choices[0].message.content)

        threads = [threading.Thread(target=ask) for _ in range(6)]
        with held:
            for thread in threads:
                thread.start()
            wait_until(lambda: running.count("refused_total", code="overloaded") >= 4, 10)
            assert running.count("images_decoded_total") <= 2
        for thread in threads:
            thread.join(60)
        assert texts == [lines()[0].text] * 6


def test_without_retries_an_overload_is_openais_class_of_error(monkeypatch):
    with serving(limits=Limits(queue=1)) as running:
        with Held(running.engine, monkeypatch), socket.create_connection(("127.0.0.1", running.port)) as first:
            first.sendall(request_bytes(chat(), running.port))
            wait_until(lambda: running.service.images.inside == 1, 5)
            with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
                with pytest.raises(openai.InternalServerError) as error:
                    client.chat.completions.create(model=MODEL, messages=message(PICTURES[0]))
            assert error.value.status_code == 503 and error.value.code == "overloaded"
        wait_until(running.idle, 10)


def test_many_images_and_choices_count_as_what_they_cost():
    with serving(limits=Limits(queue=10, choices=8)) as running, running.client() as client:
        assert client.post("/v1/chat/completions", json=chat(*PICTURES[:2], n=6, temperature=1)).status_code == 413
        assert running.count("images_decoded_total") == 0
        assert client.post("/v1/chat/completions", json=chat(*PICTURES[:2], n=5, temperature=1)).status_code == 200


def test_where_there_is_no_room_the_body_is_not_awaited():
    with serving(limits=Limits(queue=2)) as running:
        running.service.images.enter(2)
        with socket.create_connection(("127.0.0.1", running.port), timeout=5) as connection:
            connection.sendall(b"POST /v1/ocr HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
            answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 503 ") and b"\r\nretry-after: " in answer
        running.service.images.leave(2)


def test_a_refusal_is_counted_once_wherever_it_comes_from():
    """At the door, by the check of the body, and by the route."""
    with serving(limits=Limits(queue=1, body_bytes=2_000_000)) as running, running.client() as client:
        for path, body, code in (
            ("/v1/ocr", b"x" * 2_000_001, "body_too_large"),
            ("/v1/chat/completions", json.dumps(chat(top_k=3)).encode(), "unsupported_parameter"),
            ("/v1/chat/completions", json.dumps(chat(*PICTURES[:2])).encode(), "too_large"),
        ):
            answer = client.post(path, content=body, headers={"content-type": "application/json"})
            assert answer.json()["error"]["code"] == code
            wait_until(lambda code=code: running.count("refused_total", code=code) == 1, 5)  # once the answer has left


def test_a_body_is_refused_for_the_objects_that_it_would_become(server):
    """They outweigh it, and making them holds up everybody: it is not even read to its end. A file may look as it likes."""
    head = (
        b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/a+json\r\nContent-Length: 9000000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head + b'[{"a":0},' * 10_001)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ") and b"more than 20000 values" in answer
    with server.client() as client:
        assert client.post("/v1/ocr", files={"a": b"[" * 20_001}).json()["results"][0]["error"]["code"] == "invalid_image"


def test_values_count_as_what_they_weigh():
    with serving(limits=Limits(bodies_bytes=4_000_000)) as running, running.client() as client:
        with socket.create_connection(("127.0.0.1", running.port)) as held:
            head = b"POST /v1/ocr HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 90000\r\n\r\n"
            held.sendall(head + b"[," * 7500)
            wait_until(lambda: running.service.bodies.inside == 15_000 + 200 * 15_000, 5)
            second = client.post("/v1/chat/completions", content=b"[" * 5000, headers={"content-type": "application/json"})
            assert second.status_code == 503 and second.json()["error"]["code"] == "overloaded"


def test_what_is_not_read_is_not_kept():
    for kind, role in ((OtherMessage, "system"), (OtherItem, "assistant")):
        assert kind.model_validate({"role": role, "content": [0]}).model_dump(exclude_none=True) == {"role": role}


def test_a_key_has_its_rate():
    now = [0.0]
    limit = RateLimit(rate=30, burst=3, clock=lambda: now[0])
    for _ in range(3):
        limit.charge("a")
    with pytest.raises(ApiError) as error:
        limit.charge("a")
    assert error.value.status == 429 and error.value.headers["retry-after"] == "2"
    limit.charge("b")
    now[0] = 2.0
    limit.charge("a")
    limit.charge("b", 30, admit=False)
    with pytest.raises(ApiError) as error:
        limit.charge("b")
    assert error.value.headers["retry-after"] == "56", "a debt is paid before the next"
    now[0] += 3600.0
    for _ in range(3):
        limit.charge("a")
    with pytest.raises(ApiError):
        limit.charge("a")  # an idle key saves no more than a burst
    RateLimit(rate=0, burst=0).charge("anyone", 1000)


def test_rates_over_http():
    keys = ["k" * 20, "l" * 20]
    with serving(limits=Limits(rate=1, burst=2), keys=keys) as running:
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key=keys[0], max_retries=0) as client:
            for _ in range(2):
                client.chat.completions.create(model=MODEL, messages=message(PICTURES[0]))
            with pytest.raises(openai.RateLimitError) as error:
                client.chat.completions.create(model=MODEL, messages=message(PICTURES[0]))
            assert int(error.value.response.headers["retry-after"]) >= 1
            other = client.with_options(api_key=keys[1])
            assert other.chat.completions.create(model=MODEL, messages=message(PICTURES[0])).choices
        assert running.count("images_decoded_total") == 3


def test_how_long_to_wait_follows_the_pace():
    now = [0.0]
    gate = Gate(10, "full", clock=lambda: now[0])
    gate.enter(10)
    for _ in range(4):
        now[0] += 2.0
        gate.leave(1)
        gate.enter(1)
    with pytest.raises(ApiError) as error:
        gate.enter(1)
    assert error.value.status == 503 and 4 <= error.value.retry_after <= 10
    with pytest.raises(ApiError) as error:
        gate.enter(11)
    assert error.value.status == 413


def test_the_pace_is_measured_while_somebody_is_inside():
    """Idle minutes and requests without a body, which every GET is, say nothing of it."""
    now = [0.0]
    gate = Gate(100, "full", clock=lambda: now[0])
    for _ in range(100):
        now[0] += 10.0
        gate.enter(0)
        gate.leave(0)
    gate.enter(100)
    assert gate.wait() == 1.0, "nobody has left yet"
    for _ in range(20):
        now[0] += 0.1
        gate.enter(0)
        gate.leave(1)
        gate.leave(0)
    assert gate.wait() == pytest.approx(4.0), "10 a second, and 80 are inside"
    gate.leave(80)
    now[0] += 600.0
    gate.enter(50)
    now[0] += 1.0
    gate.leave(10)
    assert gate.wait() == pytest.approx(2.0)


def test_images_from_urls_do_not_pile_up_before_they_are_decoded(monkeypatch):
    """Bytes are in memory from the fetching to the end of the decoding: all that time they have one of a few places."""
    here, most = 0, 0
    content = PICTURES[0].read_bytes()
    limits = Limits(bodies_bytes=3000, url_bytes=1000, images=8)
    service = Service({MODEL: reader()}, Keys([]), limits, hosts=["h"], slots=SLOTS, batch=2)

    async def fetch(url, param):
        nonlocal here, most
        here += 1
        most = max(most, here)
        await asyncio.sleep(0)
        if url.endswith("bad"):
            here -= 1
            raise ApiError(400, "no", "url_unreachable")
        return content

    def decode(*arguments):
        nonlocal here
        time.sleep(0.01)
        here -= 1
        return Picture([Prepared(np.zeros((1, 1, 3), np.uint8))])

    async def ask():
        sources = [RequestImage(f"https://h/{name}", "x") for name in ("a", "bad") * 4]
        served, options = service.models[MODEL], Options(reader().defaults)
        return await asyncio.gather(*(service.prepare(RequestContext(), served, sources, options) for _ in range(3)))

    monkeypatch.setattr(service.pictures.fetcher, "fetch", fetch)
    monkeypatch.setattr("trocr_jax.serve.api.service.decode_line", decode)
    answers = asyncio.run(ask())
    assert [sum(isinstance(item, Picture) for item in items) for items in answers] == [4, 4, 4] and (here, most) == (0, 3)


# --- too late ---


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_in_the_queue(monkeypatch, stream):
    seconds = 0.5
    with serving(limits=Limits(request_seconds=seconds)) as running, running.client() as client:
        encoded = running.engine.counts.encoded
        with Held(running.engine, monkeypatch):
            start = time.monotonic()
            answer = client.post("/v1/chat/completions", json=chat(stream=stream))
            took = time.monotonic() - start
            time.sleep(0.1)
        wait_until(running.idle, 5)
        assert took < seconds + 0.2 + 0.3, f"{took:.2f} s; 0.3 s of it for this busy machine"
        if stream:
            assert '"code": "deadline_exceeded"' in answer.text and "[DONE]" not in answer.text
        else:
            assert answer.status_code == 504 and answer.json()["error"]["code"] == "deadline_exceeded"
        assert running.engine.counts.encoded == encoded, "it was not read"
        assert running.engine.counts.ended["expired"] + running.engine.counts.ended["cancelled"] == 1


def test_a_deadline_while_decoding(monkeypatch):
    with serving(limits=Limits(request_seconds=0.4)) as running, running.client() as client:
        served = running.service.models[MODEL]
        prepare = served.reader.prepare
        monkeypatch.setattr(served.reader, "prepare", lambda *a: (time.sleep(1.0), prepare(*a))[1])
        assert client.post("/v1/chat/completions", json=chat()).status_code == 504


# --- gone ---


def leave(port: int, content: bytes, condition):
    """Sends a request, waits until it has come so far, and leaves with a reset."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(content)
        wait_until(condition, 10)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def test_a_hundred_clients_vanish_from_the_queue(monkeypatch):
    with serving(limits=Limits(queue=200)) as running:
        encoded, content = running.engine.counts.encoded, request_bytes(chat(), running.port)
        with Held(running.engine, monkeypatch):
            for _ in range(100):
                leave(running.port, content, lambda: running.engine.waiting > 0)
            wait_until(lambda: running.service.images.inside == 0, 10)
        wait_until(running.idle, 1)
        assert running.engine.counts.encoded - encoded <= 5, "at most 5 of 100 reach the device"
        assert running.count("vanished_total") >= 95
        with running.client() as client:
            assert client.post("/v1/chat/completions", json=chat()).status_code == 200


@pytest.mark.parametrize("large", [False, True])
def test_the_bytes_of_images_that_nobody_waits_for_are_not_kept(large):
    """Every thread is at an image that takes its time; others come and are left before their turn."""
    done, content = threading.Event(), bytes(10_000)

    def decode(_, most):
        if large and most == SMALL:
            return Picture(error=TOO_LARGE)
        done.wait(10)
        return Picture([Prepared(np.zeros((1, 1, 3), np.uint8))])

    async def begin(pictures, content, count):
        asked = [asyncio.create_task(pictures.prepare(RequestImage(content, "x"), decode)) for _ in range(count)]
        await asyncio.sleep(0.2)
        return asked

    async def leave(asked):
        for task in asked:
            task.cancel()
        await asyncio.wait(asked)

    async def ask():
        pictures = Pictures(Limits(), [], lambda: None)
        busy = await begin(pictures, b"x", usable_cores())
        await leave(await begin(pictures, content, 20))
        gc.collect()
        kept = sys.getrefcount(content)
        done.set()
        assert all(isinstance(item, Picture) for item in await asyncio.gather(*busy))
        await pictures.close()
        return kept

    before = sys.getrefcount(content)
    assert asyncio.run(ask()) == before


def test_a_hundred_clients_vanish_in_flight():
    with serving() as running:
        content = request_bytes(chat(PICTURES[0], n=8, temperature=2.0), running.port)
        for _ in range(100):
            leave(running.port, content, lambda: running.engine.running > 0)
            wait_until(running.idle, 1)  # slots are free again within a second
        assert running.count("vanished_total") >= 95 and running.engine.counts.ended["cancelled"] >= 95 * 4
        with running.client() as client:
            assert client.post("/v1/chat/completions", json=chat()).status_code == 200


def test_a_client_that_stops_reading_is_dropped(monkeypatch):
    """A stream whose reader sleeps fills the sockets' buffers; then the server gives it up."""
    monkeypatch.setattr("trocr_jax.serve.api.chat._Chat.chunk", lambda *_: b"data: {}\n\n" + b" " * 4_000_000)
    with serving(limits=Limits(send_seconds=0.5)) as running:
        with socket.create_connection(("127.0.0.1", running.port)) as client:
            client.sendall(request_bytes(chat(stream=True), running.port))
            wait_until(lambda: running.count("vanished_total") >= 1, 20)


def test_a_client_that_reads_late_gets_all_of_it(monkeypatch):
    monkeypatch.setattr("trocr_jax.serve.api.chat._Chat.chunk", lambda *_: b"data: {}\n\n" + b" " * 4_000_000)
    with serving(limits=Limits(send_seconds=10)) as running:
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as client:
            client.sendall(request_bytes(chat(stream=True), running.port))
            time.sleep(0.5)  # the sockets' buffers are full by now
            size, end = 0, b""
            while b"data: [DONE]\n\n" not in end and (piece := client.recv(1 << 20)):
                size, end = size + len(piece), end[-20:] + piece
    assert b"data: [DONE]\n\n" in end and size > 2 * 4_000_000


def deaf(port: int) -> socket.socket:
    """A client that asks for more than sockets hold, and reads nothing of it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 600)
    return client


def test_connections_of_clients_that_read_nothing_are_closed():
    """What is left of their answers would keep them open for ever."""
    limits = Limits(send_seconds=0.5, connections=5)
    with serving(limits=limits) as running, ExitStack() as stack, running.client() as client:
        for _ in range(5):
            stack.enter_context(deaf(running.port))
        wait_until(lambda: len(running.server.server_state.connections) == 5, 5)
        wait_until(lambda: not running.server.server_state.connections, 5)
        assert client.get("/healthz").status_code == 200


def test_a_client_that_reads_nothing_does_not_hold_up_the_end():
    running = Running(limits=Limits(send_seconds=0.5))
    with deaf(running.port):
        wait_until(lambda: any(connection.flow.write_paused for connection in running.server.server_state.connections), 5)
        start = time.monotonic()
        running.stop()
    assert time.monotonic() - start < 10


# --- slow ---


def test_slow_headers_and_bodies_are_closed():
    limits = Limits(header_seconds=0.6, body_seconds=0.6)
    with serving(limits=limits) as running:
        start = time.monotonic()
        body = socket.create_connection(("127.0.0.1", running.port), timeout=10)
        body.sendall(b"POST /v1/ocr HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nab")
        header = socket.create_connection(("127.0.0.1", running.port), timeout=10)
        header.sendall(b"POST /v1/ocr HTTP/1.1\r\nHost:")
        silent = socket.create_connection(("127.0.0.1", running.port), timeout=10)
        with body, header, silent:
            assert body.recv(4096).startswith(b"HTTP/1.1 408 ")
            for connection in (header, silent):
                with pytest.raises(ConnectionError):
                    assert connection.recv(4096) == b""
                    raise ConnectionResetError
            assert time.monotonic() - start < 3


def test_connections_are_bounded():
    with serving(limits=Limits(connections=5, header_seconds=20)) as running, ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(socket.create_connection(("127.0.0.1", running.port)))
        wait_until(lambda: len(running.server.server_state.connections) == 5, 5)
        sixth = stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=5))
        with pytest.raises(ConnectionError):
            assert sixth.recv(10) == b""
            raise ConnectionResetError


@pytest.mark.parametrize(
    ("seconds", "tries"), [pytest.param(2, 3, id="short"), pytest.param(20, 1, id="long", marks=pytest.mark.slow)]
)
def test_two_hundred_slow_sockets_hold_up_nobody(server, seconds, tries):
    """Whatever else the machine does comes and goes; what slow sockets do to a server is there in every try."""
    for _ in range(tries):
        alone, beside = latencies_beside_slow_sockets(server, seconds)
        if beside < 1.2 * alone + 20:  # ms for the threads of this test, which share the machine
            return
    pytest.fail(f"a median of {beside:.1f} ms beside slow sockets, {alone:.1f} without")


def latencies_beside_slow_sockets(server, seconds) -> tuple[float, float]:
    """Median milliseconds of a request alone, and beside 200 slow sockets, which the server must close."""
    with server.client() as client:
        alone = latencies(client, seconds)
        stop, sockets = threading.Event(), [Dribbler(server.port, number % 2 == 0) for number in range(200)]
        dribbling = threading.Thread(target=dribble, args=(sockets, stop))
        dribbling.start()
        try:
            beside = latencies(client, seconds)
            wait_until(lambda: all(s.closed for s in sockets), 20)
        finally:
            stop.set()
            dribbling.join()
        ages = [s.age for s in sockets]
    p99 = [1000 * statistics.quantiles(times, n=100)[98] for times in (alone, beside)]
    median = [1000 * statistics.median(times) for times in (alone, beside)]
    print(
        f"\nalone {median[0]:.1f} ms (median) {p99[0]:.1f} ms (p99), beside 200 slow sockets {median[1]:.1f} and "
        f"{p99[1]:.1f} ms, {len(alone)} and {len(beside)} requests; sockets closed after {min(ages):.1f} to {max(ages):.1f} s"
    )
    assert max(ages) < 6
    return median[0], median[1]


class Dribbler:
    """A client that sends a byte now and then: of a header that never ends, or of a body."""

    def __init__(self, port: int, header: bool):
        head = b"POST /v1/ocr HTTP/1.1\r\nHost: a\r\n"
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.sendall(head if header else head + b"Content-Length: 100000\r\n\r\n")
        self.socket.setblocking(False)
        self.opened, self.age, self.closed = time.monotonic(), 0.0, False

    def send(self):
        try:
            self.socket.send(b"x")
            self.closed = self.socket.recv(4096) == b""
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True
        if self.closed:
            self.age = time.monotonic() - self.opened
            self.socket.close()


def dribble(sockets: list[Dribbler], stop: threading.Event):
    """A byte of each every 0.3 s, one after the other, as clients that know nothing of each other send."""
    while not stop.is_set():
        for one in sockets:
            if not one.closed:
                one.send()
            time.sleep(0.3 / len(sockets))
    for one in sockets:
        one.socket.close()


def latencies(client, seconds: float) -> list[float]:
    times, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        start = time.perf_counter()
        assert client.post("/v1/chat/completions", json=chat()).status_code == 200
        times.append(time.perf_counter() - start)
    return times


# --- compiled ahead ---


def test_nothing_is_compiled_after_ready():
    jax.clear_caches()  # of what other tests have compiled
    with serving() as running, running.client() as client:
        compiled = running.count("compilations_total")
        for count in (1, 2, 3, SLOTS, 2 * SLOTS + 1):
            images = [data_url(PICTURES[i % len(PICTURES)].read_bytes()) for i in range(count)]
            for options in ({}, {"num_beams": 2}, {"max_tokens": 3}):
                assert client.post("/v1/ocr", json={"images": images, **options}).status_code == 200
        for fields in ({"temperature": 1.0, "top_p": 0.5, "n": 3}, {"logprobs": True, "top_logprobs": 20}, {"stream": True}):
            assert client.post("/v1/chat/completions", json=chat(*PICTURES[:3], **fields)).status_code == 200
        assert running.count("compilations_total") == compiled
