"""Who gets in: every route asks for the key but the page and the two probes, whatever a request is made to look like."""

import hashlib
import hmac
import http.client
import re

import openai
import pytest
from serving import MODEL, PICTURES, chat, lines, message, serving, wait_until

from trocr_jax.serve.api.errors import ApiError
from trocr_jax.serve.api.guard import OPEN
from trocr_jax.serve.api.keys import Keys, read_keys
from trocr_jax.serve.api.limits import Limits

KEY, OTHER = "sk-" + "a" * 24, "sk-" + "b" * 24
METHODS = ("GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND")


@pytest.fixture(scope="module")
def server():
    with serving(keys=[KEY, OTHER]) as running:
        yield running


def paths(server) -> list[str]:
    """Every path that the application has, by its own list."""
    found = {*server.app.openapi()["paths"], *(path for route in server.app.routes if (path := getattr(route, "path", None)))}
    assert {"/v1/chat/completions", "/v1/responses", "/v1/ocr", "/v1/models", "/metrics", "/openapi.json", *OPEN} <= found
    return sorted(re.sub(r"{.*?}", MODEL, path) for path in found) + ["/nothing"]


def status(server, method: str, path: str, headers=None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.putrequest(method, path, skip_host="Host" in (headers or {}))
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        connection.endheaders()
        return connection.getresponse().status
    finally:
        connection.close()


WRONG = {
    "absent": {}, "wrong": {"Authorization": f"Bearer {KEY[:-1]}x"}, "beginning": {"Authorization": f"Bearer {KEY[:12]}"},
    "longer": {"Authorization": f"Bearer {KEY}x"}, "empty": {"Authorization": "Bearer "}, "no scheme": {"Authorization": KEY},
    "basic": {"Authorization": f"Basic {KEY}"}, "both": {"Authorization": f"Bearer {KEY},{OTHER}"},
    "digest": {"Authorization": f"Bearer {hashlib.sha256(KEY.encode()).hexdigest()}"},
    "bytes": {"Authorization": "Bearer \xff\xfe"},
    "other header": {"X-Api-Key": KEY}, "bad host": {"Host": "127.0.0.1/healthz?"}, "host with path": {"Host": "a/healthz#"},
    "forwarded": {"X-Forwarded-For": "127.0.0.1", "X-Original-URL": "/healthz", "X-Rewrite-URL": "/healthz"},
}  # fmt: skip


@pytest.mark.parametrize("how", WRONG)
def test_every_route_and_method_asks_for_the_key(server, how):
    tried = 0
    for path in paths(server):
        for method in METHODS:
            if path in OPEN and method in ("GET", "HEAD"):
                continue
            assert status(server, method, path, WRONG[how]) == 401, (method, path)
            tried += 1
    assert tried >= 80


@pytest.mark.parametrize(
    "path",
    ["/healthz/", "/healthz/../v1/models", "//healthz", "/healthz%2f..%2fv1/models", "/v1/models?x=/healthz", "/HEALTHZ",
     "/.//metrics", "/v1/models;/healthz", "http://a/metrics", "http://a/v1/models", "/healthz/x"],
)  # fmt: skip
def test_paths_that_look_open(server, path):
    assert status(server, "GET", path) == 401


def test_the_open_ones_are_open_and_no_more(server):
    assert {path: status(server, "GET", path) for path in OPEN} == {path: 200 for path in OPEN}
    assert OPEN == {"/", "/healthz", "/readyz"}


def test_probes_answer_head_as_get_without_a_body(server):
    with server.client() as client:
        for path in OPEN:
            head, get = client.head(path), client.get(path)
            assert (head.status_code, head.content) == (200, b"") and head.headers["content-length"] == str(len(get.content))


def test_what_is_refused_at_the_door_is_counted_under_its_route(server):
    def counts(route):
        return server.count("requests_total", route=route, status="401")

    known = {
        "/v1/ocr": "/v1/ocr",
        "/v1/responses": "/v1/responses",
        "/metrics": "/metrics",
        "/openapi.json": "/openapi.json",
        "/v1/chat/completions": "/v1/chat/completions",
        "/v1/models": "/v1/models",
        "/v1/models/x/y": "/v1/models/{name:path}",
    }
    for path, route in (known | {"/v1/ocr/x": "other", "/made/up": "other"}).items():
        before = counts(route)
        assert status(server, "POST", path) == 401
        wait_until(lambda before=before, route=route: counts(route) == before + 1, 5)
    labels = {sample.labels.get("route") for metric in server.service.metrics.registry.collect() for sample in metric.samples}
    assert labels <= {None, "other", *OPEN, *known.values()}


def test_a_request_without_the_key_is_not_read(server):
    """The refusal comes before the body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    connection.putrequest("POST", "/v1/ocr")
    connection.putheader("Content-Length", "1000000")
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 401 and answer.getheader("www-authenticate") == "Bearer" and answer.getheader("x-request-id")
    connection.close()


def test_both_keys_open_every_door(server):
    for key in (KEY, OTHER):
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
            assert [model.id for model in client.models.list()] == [MODEL]
            answer = client.chat.completions.create(model=MODEL, messages=message(PICTURES[0]))
            assert answer.choices[0].message.content == lines()[0].text
        for path in ("/metrics", "/openapi.json"):
            assert status(server, "GET", path, {"Authorization": f"Bearer {key}"}) == 200
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_keys_are_compared_in_constant_time_and_all_of_them(monkeypatch):
    compared = []

    def watched(a, b, compare=hmac.compare_digest):
        compared.append((len(a), len(b)))
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    keys = Keys([KEY, OTHER])
    for given in (KEY, OTHER, "x", "x" * 1000):
        compared.clear()
        try:
            keys.name(f"Bearer {given}")
        except ApiError as error:
            assert error.status == 401
        assert compared == [(32, 32)] * 2, "always digests, always against every key"
    assert KEY not in repr(vars(keys)), "only digests are kept"
    name = hashlib.sha256(KEY.encode()).hexdigest()[:8]
    assert keys.name(f"Bearer {KEY}") == keys.name(f"bearer  {KEY} ") == name, "a scheme has no case"


def test_where_keys_come_from(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# of the shop\n{KEY}  # ours\n\n{OTHER}\n")
    assert read_keys(str(file), None) == [KEY, OTHER]
    file.write_text(f"{KEY}#1  # the first")
    assert read_keys(str(file), None) == [f"{KEY}#1"], "a key that a # is part of is not cut"
    file.write_text(f"# {KEY}\n{OTHER}\t# {KEY}")
    assert read_keys(str(file), None) == [OTHER]
    assert read_keys(None, f" {KEY} , {OTHER},") == [KEY, OTHER]
    assert read_keys(None, None) == read_keys(None, "") == [] and read_keys(None, "a" * 16) == ["a" * 16]
    wrong = {b"# nothing\n": "holds no API key", b"short\n": "at least 16", b"\xc3\xa9" * 20: "plain", b"\xff": "no UTF-8"}
    for content, why in wrong.items():
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"--api-key-file {file}: .*{why}"):
            read_keys(str(file), None)
    with pytest.raises(ValueError, match="--api-key-file .*nowhere: No such file"):
        read_keys(str(tmp_path / "nowhere"), None)
    with pytest.raises(ValueError, match="TROCR_API_KEY: .*at least 16"):
        read_keys(str(file), "a" * 15)


def test_without_keys_only_localhost_is_answered():
    """A web page elsewhere, whose name was made to lead here, gets nothing."""
    with serving(local_only=True) as running:
        own, foreign = ("localhost", "127.0.0.1:8000", "[::1]:80"), ("evil.example", "10.0.0.1", "localhost.evil.example")
        for host, wanted in [(name, 200) for name in own] + [(name, 421) for name in foreign]:
            assert status(running, "GET", "/v1/models", {"Host": host}) == wanted, host
            assert status(running, "GET", "/", {"Host": host}) == wanted, host


def test_without_keys_no_page_of_another_origin_may_post():
    """A form is sent without CORS, and costs a reading though its page never sees it."""
    own = ({}, {"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:8000"}, {"Sec-Fetch-Site": "none"},
           {"Origin": "http://localhost"}, {"Origin": "http://[::1]:80"})  # fmt: skip
    foreign = ({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:3000"},
               {"Origin": "https://evil.example"}, {"Origin": "http://127.0.0.1.evil.example"}, {"Origin": "null"})  # fmt: skip
    with serving(local_only=True) as running, running.client() as client:
        for headers, code in [(headers, None) for headers in own] + [(headers, "cross_site") for headers in foreign]:
            answer = client.post("/v1/ocr", files={"a": PICTURES[0].read_bytes()}, headers=headers)
            assert answer.status_code == (403 if code else 200), headers
            assert answer.json().get("error", {}).get("code") == code
        assert running.count("images_decoded_total") == len(own)
        assert client.get("/v1/models", headers=foreign[0]).status_code == 200


def test_no_other_page_may_call(server):
    """There are no CORS headers: a browser keeps answers from other origins."""
    with server.client(headers={"authorization": f"Bearer {KEY}", "origin": "https://evil.example"}) as client:
        for answer in (client.get("/v1/models"), client.options("/v1/models"), client.post("/v1/chat/completions", json=chat())):
            assert not [name for name in answer.headers if name.startswith("access-control")]
        policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy


def test_defaults_are_the_careful_ones():
    limits = Limits()
    assert limits.body_bytes <= 20 << 20 and limits.images <= 64 and limits.choices <= 8 and limits.pixels <= 16_000_000
    assert 0 < limits.queue <= 1024 and limits.request_seconds <= 120 and limits.header_seconds <= 10
