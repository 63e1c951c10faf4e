"""Hostile images and URLs: a clean refusal, nothing told about the inside, no memory lost, no connection made."""

import asyncio
import json
import re
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import hostile
import httpcore2
import pytest
from serving import MODEL, PICTURES, chat, data_url, lines, process, serving

from trocr_jax.serve.api.errors import ApiError
from trocr_jax.serve.api.fetch import Fetcher, is_public
from trocr_jax.serve.api.limits import Limits

LEAK = re.compile(r"0x[0-9a-f]{6,}|Traceback|/home|/usr|site-packages|\.py\b|object at", re.IGNORECASE)
CODES = {"invalid_image", "invalid_base64", "invalid_data_url", "url_not_allowed"}
JSON = {"content-type": "application/json"}
COUNTS = [pytest.param(240, id="short"), pytest.param(5000, id="long", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def server():
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def http(server):
    with server.client() as client:
        yield client


def told(answer) -> str:
    """What an answer says without the texts that were read, which may look like anything."""
    return re.sub(r'"(text|content)":"(\\.|[^"\\])*"', "", answer.text)


def check(answer, statuses: Counter):
    """One answer of the chat route: a text or a clean refusal."""
    statuses[answer.status_code] += 1
    assert not LEAK.search(told(answer)), answer.text
    if answer.status_code == 200:
        assert isinstance(answer.json()["choices"][0]["message"]["content"], str)
    else:
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["code"] in CODES and error["param"] == "messages[0].content[1].image_url.url"


@pytest.mark.filterwarnings("ignore")  # Pillow remarks on odd metadata
@pytest.mark.parametrize("count", COUNTS)
def test_bad_images_by_data_url(server, http, count):
    statuses: Counter = Counter()
    with ThreadPoolExecutor(4) as pool:
        for answer in pool.map(lambda url: http.post("/v1/chat/completions", json=chat(url)), hostile.data_urls(count)):
            check(answer, statuses)
    assert set(statuses) == {200, 400} and min(statuses.values()) > count / 20, statuses
    assert server.service.state == "ready"
    print(f"\n{count} images by data: URL: {dict(statuses)}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [pytest.param(93, id="short"), COUNTS[1]])
def test_bad_images_by_upload(http, count):
    """32 a request, one of them good: its text is right whatever its neighbours are."""
    good, outcomes = PICTURES[0].read_bytes(), Counter()
    batch: list[bytes] = []
    for number, data in enumerate(hostile.images(count, seed=1), 1):
        batch.append(data)
        if len(batch) == 31 or number == count:
            answer = http.post("/v1/ocr", files=[("images", (f"{i}.png", d)) for i, d in enumerate([*batch, good])])
            assert answer.status_code == 200 and not LEAK.search(told(answer)), answer.text
            *results, last = answer.json()["results"]
            assert last["text"] == lines()[0].text and len(results) == len(batch)
            outcomes.update(result["error"]["code"] if result["error"] else "read" for result in results)
            batch = []
    assert set(outcomes) == {"read", "invalid_image"} and outcomes.total() == count
    print(f"\n{count} images by upload: {dict(outcomes)}")


def test_names_of_files_are_never_opened(http, tmp_path):
    """A path is no image, wherever a client writes it."""
    path = str(PICTURES[0])
    urls = [path, f"file://{path}", f"file:{path}", f"data:image/png;base64,{path}", "/proc/self/environ", "../README.md\0.png"]
    for url in urls:
        answer = http.post("/v1/chat/completions", json=chat(url))
        assert answer.status_code == 400 and not LEAK.search(answer.text)
    answer = http.post("/v1/ocr", files={"images": (path, b"not an image")})
    assert answer.json()["results"][0]["error"]["code"] == "invalid_image" and path not in answer.text


# --- memory ---


@pytest.fixture(scope="module")
def server_process():
    with process("--limits.queue", "64") as running:
        yield running


@pytest.mark.parametrize("count", [pytest.param(32, id="short"), pytest.param(100, id="long", marks=pytest.mark.slow)])
def test_bombs_cost_no_memory_and_no_time(server_process, count):
    """The largest images that are allowed are read beside them: those two things at once are the worst that can come."""
    bombs = [chat(data_url(bomb)) for bomb in hostile.bombs()]
    bodies = [json.dumps(bombs[i % len(bombs)]).encode() for i in range(count)]
    with server_process.client(JSON) as client, ThreadPoolExecutor(8) as pool:
        client.post("/v1/chat/completions", json=chat())
        idle = server_process.memory()
        server_process.forget_peak()
        answers = list(pool.map(lambda body: client.post("/v1/chat/completions", content=body), bodies))
        growth = server_process.memory("VmHWM") - idle
        assert {answer.status_code for answer in answers} == {400}
        assert {answer.json()["error"]["code"] for answer in answers} == {"invalid_image"}
        assert growth <= 300, f"{growth:.0f} MB for bombs"
        seconds = sorted(_seconds(client, body) for body in bodies)
    median, most = (1000 * seconds[at] for at in (len(seconds) // 2, -1))
    print(f"\n{count} bombs: {growth:.0f} MB over {idle:.0f} MB; refused in {median:.1f} ms (median), {most:.1f} ms (most)")
    assert median < 50, "the most is a matter of what else this machine does"


def _seconds(client, body: bytes) -> float:
    start = time.perf_counter()
    client.post("/v1/chat/completions", content=body)
    return time.perf_counter() - start


def test_the_largest_allowed_images_stay_within_the_bound(server_process):
    side = 3999
    colours = hostile.png(side, side, bytes((side * 4 + 1) * side), colour=6)
    greys = hostile.png(side, side, bytes((side * 2 + 1) * side), depth=16, colour=0)
    with server_process.client() as client, ThreadPoolExecutor(8) as pool:
        client.post("/v1/chat/completions", json=chat())
        idle = server_process.memory()
        server_process.forget_peak()
        answers = list(pool.map(lambda i: client.post("/v1/ocr", files={"a": (colours, greys)[i % 2]}), range(8)))
        growth = server_process.memory("VmHWM") - idle
    assert [answer.json()["results"][0]["error"] for answer in answers] == [None] * 8
    print(f"\n8 images of 16 million pixels: {growth:.0f} MB over {idle:.0f} MB")
    assert growth <= 300, f"{growth:.0f} MB"


def test_bodies_are_bounded_one_by_one_and_together():
    limits = Limits(body_bytes=100_000, bodies_bytes=150_000)
    with serving(limits=limits) as running, running.client() as client:
        big = client.post("/v1/chat/completions", content=b"x" * 100_001)
        assert big.status_code == 413 and big.json()["error"]["code"] == "body_too_large"
        assert client.post("/v1/chat/completions", content=iter([b"x" * 60_000] * 2)).status_code == 413
        with socket.create_connection(("127.0.0.1", running.port)) as held:
            held.sendall(b"POST /v1/ocr HTTP/1.1\r\nHost: a\r\nContent-Length: 90000\r\n\r\n" + b"x" * 80_000)
            deadline = time.monotonic() + 5
            while running.service.bodies.inside < 80_000 and time.monotonic() < deadline:
                time.sleep(0.01)
            second = client.post("/v1/chat/completions", content=b"x" * 90_000)
            assert second.status_code == 503 and int(second.headers["retry-after"]) >= 1
        assert running.count("images_decoded_total") == 0


# --- framing ---


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST /v1/ocr HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /v1/ocr HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400),
        (b"POST /v1/ocr HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 300_000 + b"\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 100_000 + b"\r\n", 400),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n", 400),
        (b"GET /../../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n", 404),
        (b"GET /v1/models/..%2f..%2fetc%2fpasswd HTTP/1.1\r\nHost: a\r\n\r\n", 404),
    ],
    ids=["both", "two lengths", "negative", "long header", "many headers", "tls", "dots", "encoded dots"],
)
def test_malformed_requests(server, head, status):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        try:
            connection.sendall(head)
            answer = connection.recv(65536)
        except ConnectionError:  # closed while we were still sending
            answer = b""
    if answer or status == 404:
        assert answer.startswith(b"HTTP/1.1 %d " % status) and not LEAK.search(answer.decode())
    with server.client() as client:
        assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Transfer-Encoding: chunked\r\nContent-Length: 50\r\n\r\n0\r\n\r\n", 400),
        (b"Content-Length: 99999999\r\n\r\n", 413), (b"Content-Length: 9\r\n\r\n", 408),
    ],
    ids=["two lengths", "too long", "too slow"],
)  # fmt: skip
def test_behind_a_body_whose_end_nobody_knows_nothing_is_answered(head, status):
    """A proxy that reads the lengths otherwise would give the answer to another client."""
    with serving(limits=Limits(body_bytes=1000, body_seconds=0.3)) as running:
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
            connection.sendall(b"POST /v1/ocr HTTP/1.1\r\nHost: localhost\r\n" + head)
            if status == 400:
                connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answers = b"".join(iter(partial(connection.recv, 65536), b""))
    assert answers.startswith(b"HTTP/1.1 %d " % status) and answers.count(b"HTTP/1.1") == 1
    assert b"\r\nconnection: close\r\n" in answers


# --- URLs ---


class Recorder(httpcore2.AsyncNetworkBackend):
    """Notes where connections would go, and lets none through."""

    def __init__(self):
        self.connections: list[tuple[str, int]] = []

    async def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        self.connections.append((host, port))
        raise httpcore2.ConnectError("recorded")


@pytest.fixture
def recorded(monkeypatch):
    """A fetcher for allowed.example, its connections recorded; names resolve as `answers` says, one answer a question."""
    recorder, answers, asked = Recorder(), [["93.184.216.34"]], []

    async def resolve(_, host, port, **options):
        asked.append(host)
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", resolve)
    fetcher = Fetcher(["allowed.example"], 1000, 5)
    fetcher._pool._network_backend._backend = recorder
    return fetcher, recorder, answers, asked


def fetch(fetcher, url) -> ApiError:
    async def attempt():
        await fetcher.fetch(url, "x")

    with pytest.raises(ApiError) as error:
        asyncio.run(attempt())
    return error.value


@pytest.mark.parametrize("url", hostile.HOSTILE_URLS)
def test_hostile_urls_reach_nothing(recorded, url):
    fetcher, recorder, _, asked = recorded
    assert fetch(fetcher, url).status == 400
    assert recorder.connections == [] and asked == [], "refused before any name is looked up"


def test_there_are_many_of_them():
    assert len(set(hostile.HOSTILE_URLS)) >= 60


PRIVATE = """
127.0.0.1 127.255.255.254 10.1.2.3 172.31.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 255.255.255.255 224.0.0.1 198.18.0.1
192.0.0.8 192.0.2.1 203.0.113.9 240.0.0.1 ::1 :: fe80::1 fc00::1 ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 64:ff9b::7f00:1
64:ff9b:1::1 2002:7f00:1:: 2001:db8::1 2001::1 100::1 fec0::1 3fff::1 ::7f00:1 fe80::1%eth0 nonsense
""".split()


@pytest.mark.parametrize("address", PRIVATE)
def test_a_name_that_leads_inside_is_not_followed(recorded, address):
    fetcher, recorder, answers, _ = recorded
    for resolved in ([address], ["93.184.216.34", address], [address, "93.184.216.34"]):
        answers[:] = [resolved]
        assert fetch(fetcher, "http://allowed.example/a.png").code == "url_unreachable"
    assert recorder.connections == []
    assert not is_public(address)


def test_a_name_that_changes_is_connected_to_as_it_was_checked(recorded):
    fetcher, recorder, answers, asked = recorded
    answers[:] = [["93.184.216.34"], ["127.0.0.1"]]
    fetch(fetcher, "http://allowed.example/a.png")
    assert recorder.connections == [("93.184.216.34", 80)] and len(asked) == 1
    fetch(fetcher, "http://ALLOWED.example/a.png")
    assert len(recorder.connections) == 1


def test_the_standard_port_may_be_written_and_no_other(recorded):
    fetcher, *_ = recorded
    for scheme, port in (("http", 80), ("https", 443), ("HTTPS", 443)):
        fetcher.check(f"{scheme}://allowed.example:{port}/a.png", "x")
        for other in ({80, 443} - {port}) | {22, 8080, 65535}:
            with pytest.raises(ApiError, match="standard ports"):
                fetcher.check(f"{scheme}://allowed.example:{other}/a.png", "x")


REDIRECT = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n"
PLENTY = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5000
LIE = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nx"


def answering(reply: bytes, fetch_with):
    """Runs fetch_with() while a server on a free port answers every request with `reply`."""

    async def serve():
        seen, writers = [], []

        async def handle(reader, writer):
            writers.append(writer)
            seen.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(reply)
            await writer.drain()
            if reply != LIE:
                writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        try:
            return await fetch_with(server.sockets[0].getsockname()[1]), seen
        finally:
            server.close()
            for writer in writers:
                writer.close()
            await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)

    return asyncio.run(serve())


@pytest.mark.parametrize(
    ("reply", "code"), [(REDIRECT, "url_unreachable"), (PLENTY, "image_too_large"), (LIE, "url_unreachable")],
    ids=["redirect", "too many bytes", "never ends"],
)  # fmt: skip
def test_what_answers_is_not_believed(monkeypatch, reply, code):
    async def attempt(port):
        monkeypatch.setattr("trocr_jax.serve.api.fetch._PORTS", {"http": port, "https": port})
        fetcher = Fetcher(["localhost"], 1000, 1, allowed=lambda address: True)
        start = time.monotonic()
        with pytest.raises(ApiError) as error:
            await fetcher.fetch(f"http://localhost:{port}/a.png", "x")
        await fetcher.close()
        assert time.monotonic() - start < 3
        return error.value

    error, seen = answering(reply, attempt)
    assert error.code == code and len(seen) == 1
    assert b"cookie" not in seen[0].lower() and b"authorization" not in seen[0].lower()


def test_an_allowed_url_is_read(monkeypatch):
    content = PICTURES[0].read_bytes()
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content

    async def attempt(port):
        monkeypatch.setattr("trocr_jax.serve.api.fetch._PORTS", {"http": port})
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        fetcher = Fetcher(["localhost"], 1 << 20, 5, allowed=lambda address: True)
        try:
            return await fetcher.fetch(f"http://localhost:{port}/a.png", "x")
        finally:
            await fetcher.close()

    assert answering(reply, attempt)[0] == content


def test_urls_are_off_by_default(http):
    for url in ("https://example.org/a.png", *hostile.HOSTILE_URLS[:20]):
        error = http.post("/v1/chat/completions", json=chat(url)).json()["error"]
        assert error["code"] == "url_not_allowed"
    error = http.post("/v1/chat/completions", json=chat("iVBORw0KGgoA" * 1000 + "==")).json()["error"]
    assert error["code"] == "invalid_data_url" and "put data:image/png;base64, before it" in error["message"]
    assert http.post("/v1/ocr", json={"images": ["http://127.0.0.1/"], "model": MODEL}).json()["results"][0]["error"]
