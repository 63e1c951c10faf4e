"""From start to end: alive while it compiles, ready after that, drained by SIGTERM, and logs that keep secrets."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx2
import pytest
from serving import MODEL, PICTURES, Running, chat, data_url, lines, process, serving, wait_until

from trocr_jax.serve.api import launch
from trocr_jax.serve.api.config import Config
from trocr_jax.serve.api.limits import Limits
from trocr_jax.terminal import UsageError

KEY = "sk-" + "c" * 24


@pytest.fixture(scope="module")
def life():
    """One server's whole life: everything that the tests below look at, noted while it happens."""
    seen = {"answers": [], "ready": []}
    with process("--drain-pause", "1.5", "--log-level", "INFO", keys=KEY) as server:
        body = chat(PICTURES[0])
        with server.client() as client:
            seen["health"] = client.get("/healthz").status_code
            seen["first"] = client.post("/v1/chat/completions", json=body, headers={"x-request-id": "life-1"})
            client.post("/v1/chat/completions", json=chat(data_url(b"secret image")))
            client.post("/v1/chat/completions?secret=query", content=b"secret body")
            seen["compilations"] = server.metric("compilations_total")
        stop = threading.Event()

        def load():
            while not stop.is_set():
                try:
                    with server.client() as client:
                        while not stop.is_set():
                            answer = client.post("/v1/chat/completions", json=body)
                            seen["answers"].append((answer.status_code, answer.json()))
                            if answer.headers.get("connection") == "close":
                                break
                except httpx2.TransportError as error:
                    seen["answers"].append((type(error).__name__, None))
                    return

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(seen["answers"]) > 8, 30)
        server.terminate()
        start = time.monotonic()
        with server.client() as client:
            while time.monotonic() - start < 5:
                try:
                    answer = client.get("/readyz")
                    seen["ready"].append(answer.status_code)
                except httpx2.TransportError:
                    break
                time.sleep(0.1)
        stop.set()
        for thread in threads:
            thread.join()
        seen["exit"], seen["took"] = server.wait(30), time.monotonic() - start
        seen["log"], seen["text"] = server.log, server.text()
    return seen


def test_it_served(life):
    assert life["health"] == 200
    assert life["first"].json()["choices"][0]["message"]["content"] == lines()[0].text


def test_sigterm_loses_no_accepted_request(life):
    outcomes = [status for status, _ in life["answers"]]
    wrong = [status for status in outcomes if status != 200]
    # after the pause the socket is closed: a client that comes then is refused, or reset where the kernel had its connection and
    # the server had not; of neither was a request accepted, so that what the server has logged are those that were answered
    assert set(wrong) <= {"ConnectError", "ReadError"}, wrong
    read = [e for e in life["log"] if e.get("route") == "/v1/chat/completions" and e.get("tokens")]
    assert len(read) == 1 + len(outcomes) - len(wrong), "the first, and each that a client saw answered"
    assert {body["choices"][0]["message"]["content"] for status, body in life["answers"] if status == 200} == {lines()[0].text}


def test_a_connection_taken_before_the_end_may_still_send_its_request():
    running = Running()
    with socket.create_connection(("127.0.0.1", running.port)) as early:
        wait_until(lambda: running.server.server_state.connections, 10)
        running.server.handle_exit(signal.SIGTERM, None)
        wait_until(lambda: _refuses(running.port), 10)
        early.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = early.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 200 ") and b"connection: close" in answer and answer.endswith(b"ok")
    running.stop()


def _refuses(port):
    with socket.socket() as late:
        return late.connect_ex(("127.0.0.1", port)) != 0


def test_readyz_says_no_before_the_socket_closes(life):
    assert life["ready"].count(503) >= 3 and life["ready"][-1] == 503


def test_it_ends_with_0_in_time(life):
    assert life["exit"] == 0 and life["took"] < 10


def test_logs_are_json_with_ids_and_without_secrets(life):
    events = [entry["event"] for entry in life["log"]]
    assert events[0] == "ready" and "draining" in events and events[-1] == "stopped"
    first = next(entry for entry in life["log"] if entry.get("id") == "life-1")
    assert first["status"] == 200 and first["route"] == "/v1/chat/completions" and first["model"] == MODEL and first["tokens"] > 0
    text = life["text"]
    assert KEY not in text and "secret" not in text and lines()[0].text not in text and "base64" not in text


def test_ready_means_compiled(life):
    ready = next(entry for entry in life["log"] if entry["event"] == "ready")
    assert ready["compilations"] == life["compilations"], "a request made the server compile"


def test_alive_but_not_ready_while_it_compiles(monkeypatch):
    held = threading.Event()
    monkeypatch.setattr("trocr_jax.engine.Engine.warm_up", lambda *_: held.wait(30))
    with serving(wait=False) as running, running.client() as client:
        try:
            assert client.get("/healthz").status_code == 200 and client.get("/readyz").status_code == 503
            early = client.post("/v1/chat/completions", json=chat())
            assert early.status_code == 503 and early.json()["error"]["code"] == "not_ready" and early.headers["retry-after"]
            assert client.get("/v1/models").status_code == 200
        finally:
            held.set()
        wait_until(lambda: client.get("/readyz").status_code == 200, 10)


def test_it_serves_whether_or_not_somebody_reads_where():
    """A program that starts servers may close its end of their stdout, or write it to a disk that is full."""
    with process(wait=False) as server:
        server.process.stdout.close()
        wait_until(lambda: server.log and server.log[-1]["event"] == "nobody reads stdout", 120)
        time.sleep(0.5)
        assert server.process.poll() is None
        server.terminate()
        assert server.wait() == 0 and server.log[-1]["event"] == "stopped"


def test_a_device_that_fails_at_the_start_ends_the_server(monkeypatch):
    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("trocr_jax.engine.Engine.warm_up", fail)
    running = Running(wait=False)
    wait_until(lambda: running.service.state == "failed", 10)
    running.stop()


@contextmanager
def failing(monkeypatch, *programs: str):
    """A server whose device fails from now on, in these of its programs; and what is set once it wants to end."""
    running, ended = Running(), threading.Event()
    running.service.on_failed = ended.set

    def fail(*_):
        raise RuntimeError("device lost")

    for program in programs:
        monkeypatch.setattr(f"trocr_jax.batching.device.{program}", fail)
    yield running, ended
    running.stop()


def test_a_device_that_fails_for_good_is_told_and_ends_the_server(monkeypatch):
    with failing(monkeypatch, "advance", "empty") as (running, ended), running.client() as client:
        assert client.post("/v1/chat/completions", json=chat(PICTURES[0])).status_code == 500
        assert ended.wait(10)
        assert (client.get("/healthz").status_code, client.get("/readyz").status_code) == (500, 503)
        late = client.post("/v1/chat/completions", json=chat(PICTURES[0]))
        assert late.status_code == 503 and "lost its device" in late.json()["error"]["message"]


def test_a_device_that_gives_nothing_but_errors_ends_the_server(monkeypatch):
    """Though it can always start anew: 500 for everybody would go on for ever, behind a /readyz that says yes."""
    with failing(monkeypatch, "advance") as (running, ended), running.client() as client:
        for _ in range(3):
            assert not ended.is_set()
            assert client.post("/v1/chat/completions", json=chat(PICTURES[0])).status_code == 500
        assert ended.wait(10) and running.service.state == "failed"


def stuck(module: str, name: str) -> str:
    """A server in which one function says so and takes a minute."""
    return f"""
import sys, time
from trocr_jax import cli
from trocr_jax.{module} import {name.partition(".")[0]}
{name} = lambda *_, **__: (print("stuck", flush=True), time.sleep(60))
sys.exit(cli.main())
"""


def test_an_image_that_takes_its_time_does_not_hold_up_the_end():
    """Its thread cannot be stopped, and Python would wait for it at exit."""
    with process("--drain-pause", "0", "--drain-seconds", "1", program=stuck("reader", "Reader.prepare")) as server:
        body = json.dumps({"images": [data_url(b"x")]}).encode()
        with socket.create_connection(("127.0.0.1", server.port)) as asking:
            asking.sendall(b"POST /v1/ocr HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            asking.sendall(b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert server.process.stdout.readline() == "stuck\n"
            server.terminate()
            assert server.wait(20) == 0
        assert server.log[-1]["event"] == "stopped" and server.log[-1]["left_behind"] == "an image"


def test_nor_does_a_device_that_hangs_or_a_compiler():
    with process(program=stuck("engine", "Engine.warm_up"), wait=False) as server:
        assert server.process.stdout.readline() == "stuck\n"
        server.terminate()
        assert server.wait(30) == 0
        assert server.log[-1]["event"] == "stopped" and server.log[-1]["left_behind"] == "the device or its compiler"


def test_no_slot_is_lost_over_many_rounds():
    """Readers, leavers and latecomers in turns; after each round everything is free again."""
    with serving(limits=Limits(request_seconds=5)) as running, running.client() as client:
        for _ in range(5):
            for fields in ({}, {"n": 3, "temperature": 1.0}, {"stream": True}, {"max_tokens": 1}, {"trocr": {"num_beams": 2}}):
                assert client.post("/v1/chat/completions", json=chat(*PICTURES[:2], **fields)).status_code == 200
            with socket.create_connection(("127.0.0.1", running.port)) as gone:
                content = json.dumps(chat(*PICTURES)).encode()
                gone.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n")
                gone.sendall(b"Content-Length: %d\r\n\r\n" % len(content) + content)
            wait_until(running.idle, 10)


@pytest.mark.slow
def test_steady_load_leaves_memory_flat_and_loses_no_slot():
    """A minute, or STEADY_SECONDS: readers, streams, bad images and leavers; memory after the first fifth is the level."""
    seconds, bodies = float(os.environ.get("STEADY_SECONDS", "60")), [chat(p, stream=i % 2 == 0) for i, p in enumerate(PICTURES)]
    bodies += [chat(data_url(b"no image")), chat(*PICTURES[:4], n=2, temperature=1.0)]
    with process() as server, server.client() as client, ThreadPoolExecutor(4) as pool:
        start, levels, done = time.monotonic(), [], 0
        while (age := time.monotonic() - start) < seconds:
            answers = pool.map(lambda body: client.post("/v1/chat/completions", json=body), bodies)
            done += sum(answer.status_code in (200, 400) for answer in answers)
            with socket.create_connection(("127.0.0.1", server.port)) as gone:
                gone.sendall(b"POST /v1/ocr HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + bytes(500_000))
            levels.append((age, server.memory()))
        wait_until(lambda: server.metric("slots_busy") == server.metric("waiting") == server.metric("images") == 0, 10)
        compiled, ready = server.metric("compilations_total"), next(entry for entry in server.log if entry["event"] == "ready")
    settled = [memory for age, memory in levels if age > seconds / 5]
    told = f"{settled[0]:.0f} after a fifth, {settled[-1]:.0f} at the end, {max(settled):.0f} at most"
    print(f"\n{done} requests in {seconds:.0f} s, MB: {told}")
    assert done == len(levels) * len(bodies) and compiled == ready["compilations"]
    assert settled[-1] - settled[0] < 30 and max(settled) - settled[0] < 60


# --- the command line ---


def serve(*arguments, **environment) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "trocr_jax.cli", "serve", *arguments]
    environment = os.environ | {"TROCR_API_KEY": "", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.parametrize(
    ("limits", "flag"),
    [({"queue": 0}, "--limits.queue"), ({"images": -1}, "--limits.images"),
     ({"body_seconds": float("nan")}, "--limits.body-seconds"),
     ({"rate": -1.0}, "--limits.rate")],
    ids=lambda value: str(value),
)  # fmt: skip
def test_a_limit_that_lets_nothing_in_is_refused(limits, flag):
    with pytest.raises(UsageError, match=f"{flag} must"):
        launch.launch(Config(limits=Limits(**limits)))
    Limits().check()


@pytest.mark.parametrize("name", ["https://example.org", "example.org:443", "example.org/a", "", "a b"])
def test_what_no_url_has_as_its_host_is_refused(name):
    with pytest.raises(UsageError, match="--image-host .* is no host's name"):
        launch.launch(Config(image_host=("images.example.org", name)))


def test_a_path_with_an_equals_sign_is_a_path(tmp_path):
    model = tmp_path / "lr=3e-4" / "model"
    model.mkdir(parents=True)
    assert launch._named(str(model)) == ("", str(model))
    assert launch._named(f"a={model}") == ("a", str(model)) and launch._named("owner/model") == ("", "owner/model")
    assert launch._named("name=") == ("name", None) and launch._named(None) == ("", None)


def test_what_cannot_be_is_one_line(tmp_path):
    """Wrong use gives 2, what this machine does not have or let us use 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken, ThreadPoolExecutor(4) as pool:
        port = str(taken.getsockname()[1])
        uses = (
            ["--port", port],
            ["--host", "a" * 70, "--no-key"],
            ["--host", "0.0.0.0"],
            ["--api-key-file", str(tmp_path / "none")],
        )
        weak = pool.submit(serve, TROCR_API_KEY="short")
        in_use, no_host, exposed, no_file = pool.map(lambda arguments: serve(*arguments), uses)
        short = weak.result()
    for run, code, message in (
        (in_use, 1, f"cannot listen on 127.0.0.1:{port}: Address already in use"),
        (no_host, 1, f"cannot listen on {'a' * 70}:8000: no such host"),
        (exposed, 2, "other machines can reach 0.0.0.0: set TROCR_API_KEY or --api-key-file, or say --no-key"),
    ):
        assert run.returncode == code and message in run.stderr and run.stderr.count("\n") == 1 and not run.stdout
    assert no_file.returncode == 1 and no_file.stderr.count("\n") == 1 and "none" in no_file.stderr
    assert short.returncode == 1 and "at least 16" in short.stderr and "short" not in short.stderr.replace("short enough", "")
