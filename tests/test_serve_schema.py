"""What /openapi.json promises holds for requests that schemathesis makes up, valid ones and broken ones."""

import re

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance
from serving import MODEL, PICTURES, chat, data_url, serving

ROUTES = [
    ("POST", "/v1/chat/completions"), ("POST", "/v1/responses"), ("POST", "/v1/ocr"), ("GET", "/v1/models/{name}"),
    ("GET", "/v1/models"),
]  # fmt: skip
CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
EXAMPLES = [pytest.param(40, id="short"), pytest.param(500, id="long", marks=pytest.mark.slow)]
LEAK = re.compile(r"0x[0-9a-f]{6,}|Traceback|site-packages|pydantic|\.py\b", re.IGNORECASE)


@pytest.fixture(scope="module")
def server():
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def schema(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.mark.filterwarnings("ignore")  # of schemathesis and hypothesis themselves
@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize(("method", "path"), ROUTES, ids=lambda value: value)
def test_made_up_requests(server, schema, method, path, examples):
    operation, statuses = schema[path][method], []

    @hypothesis.settings(max_examples=examples, deadline=None, database=None, derandomize=examples < 500,
                         suppress_health_check=list(hypothesis.HealthCheck))  # fmt: skip
    @hypothesis.given(case=operation.as_strategy(), known=hypothesis.strategies.booleans())
    def run(case, known):
        if known and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = MODEL  # a made-up name is a made-up 404
        answer = case.call()
        case.validate_response(answer, checks=list(CHECKS))
        assert not LEAK.search(answer.text)
        statuses.append(answer.status_code)

    run()
    assert len(statuses) >= (examples if path != "/v1/models" else 1)
    print(f"\n{method} {path}: {len(statuses)} cases, {dict.fromkeys(sorted(set(statuses)))}")


def valid() -> list[dict]:
    image = data_url(PICTURES[0].read_bytes())
    return [chat(PICTURES[0]), chat(PICTURES[0], logprobs=True, n=1, max_tokens=4), {"model": MODEL, "images": [image]}]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("examples", EXAMPLES)
def test_requests_with_one_thing_changed(server, examples):
    """From requests that are read: a value anywhere in them becomes another, or goes away. Nothing of it is a server's error."""
    anything = hypothesis.strategies.recursive(
        hypothesis.strategies.none() | hypothesis.strategies.booleans() | hypothesis.strategies.integers()
        | hypothesis.strategies.floats(allow_nan=False, allow_infinity=False) | hypothesis.strategies.text(),
        lambda inner: hypothesis.strategies.lists(inner, max_size=3)
        | hypothesis.strategies.dictionaries(hypothesis.strategies.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    )  # fmt: skip
    statuses = []

    @hypothesis.settings(max_examples=2 * examples, deadline=None, database=None,
                         suppress_health_check=list(hypothesis.HealthCheck))  # fmt: skip
    @hypothesis.given(body=hypothesis.strategies.sampled_from(range(3)), draw=hypothesis.strategies.data())
    def run(body, draw):
        content = valid()[body]
        holder, key = place(content, draw.draw)
        if draw.draw(hypothesis.strategies.booleans()):
            holder[key] = draw.draw(anything)
        else:
            del holder[key]
        path = "/v1/ocr" if body == 2 else "/v1/chat/completions"
        answer = client.post(path, json=content)
        assert answer.status_code < 500 and not LEAK.search(answer.text), answer.text
        statuses.append(answer.status_code)

    with server.client() as client:
        run()
    assert {200, 400} <= set(statuses)
    print(f"\n{len(statuses)} changed requests: {sorted(set(statuses))}")


def place(content, draw):
    """A random place in nested lists and objects: what holds it and its key there."""
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        key = draw(hypothesis.strategies.sampled_from(keys))
        deeper = content[key]
        if not (isinstance(deeper, dict | list) and deeper) or draw(hypothesis.strategies.booleans()):
            return content, key
        content = deeper
