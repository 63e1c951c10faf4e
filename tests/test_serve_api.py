"""The API as OpenAI's own client sees it, and the native route: the Reader's text by every way in, and refusals by name."""

import json
import time

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response
from PIL import Image, ImageDraw, ImageFont
from serving import MODEL, PICTURES, chat, data_url, lines, message, reader, serving, wait_until

from trocr_jax.batching import device, search
from trocr_jax.engine import Job

LONGEST = max(range(len(PICTURES)), key=lambda i: len(lines()[i].tokens))


@pytest.fixture(scope="module")
def server():
    with serving(models=(MODEL, "second/model")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def http(server):
    with server.client() as client:
        yield client


def responses_input(*pictures):
    return [{"role": "user", "content": [{"type": "input_image", "image_url": data_url(p.read_bytes())} for p in pictures]}]


# --- the right text through every route ---


@pytest.mark.parametrize("index", range(len(PICTURES)), ids=lambda i: PICTURES[i].stem)
def test_every_route_gives_the_readers_text(client, http, index):
    picture, line = PICTURES[index], lines()[index]
    plain = client.chat.completions.create(model=MODEL, messages=message(picture))
    assert plain.choices[0].message.content == line.text and plain.choices[0].finish_reason == line.finish_reason
    stream = client.chat.completions.create(model=MODEL, messages=message(picture), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == line.text
    assert client.responses.create(model=MODEL, input=responses_input(picture)).output_text == line.text
    events = client.responses.create(model=MODEL, input=responses_input(picture), stream=True)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == line.text
    for answer in (
        http.post("/v1/ocr", json={"images": [data_url(picture.read_bytes())]}),
        http.post("/v1/ocr", files={"image": picture.read_bytes()}),
    ):
        result = answer.json()["results"][0]
        assert result["text"] == line.text and result["confidence"] == pytest.approx(line.confidence, rel=1e-3)


def test_models(client):
    assert [model.id for model in client.models.list()] == [MODEL, "second/model"]
    assert client.models.retrieve("second/model").id == "second/model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("third")


def test_models_by_name(client, server):
    before = server.count("lines_total", model="second/model", finish_reason="stop")
    answer = client.chat.completions.create(model="second/model", messages=message(PICTURES[0]))
    assert answer.model == "second/model"
    # counted once the answer has left
    wait_until(lambda: server.count("lines_total", model="second/model", finish_reason="stop") == before + 1, 10)


# --- chat ---


def test_a_completion_is_openais(http):
    answer = http.post("/v1/chat/completions", json=chat(logprobs=True, top_logprobs=3))
    assert answer.headers["content-type"] == "application/json"
    body = ChatCompletion.model_validate(answer.json(), strict=True)
    choice, line = body.choices[0], lines()[0]
    shown = choice.logprobs.content
    assert "".join(token.token for token in shown) == line.text == bytes(b for t in shown for b in t.bytes).decode()
    for token, own in zip(shown, line.tokens, strict=False):
        assert token.logprob == pytest.approx(own.logprob, abs=1e-4)
        assert len(token.top_logprobs) == 3 and token.top_logprobs[0].token == token.token
    assert body.usage.completion_tokens == len(line.tokens)
    assert body.usage.total_tokens == body.usage.prompt_tokens + body.usage.completion_tokens
    own = answer.json()["choices"][0]["trocr"]["lines"][0]
    assert [word["text"] for word in own["words"]] == line.text.split()
    assert own["confidence"] == pytest.approx(line.confidence, rel=1e-3)


def test_several_images_in_order(client):
    pictures = [PICTURES[i] for i in (4, 0, LONGEST, 1)]
    read = [lines()[PICTURES.index(picture)] for picture in pictures]
    wanted = "\n".join(line.text for line in read)
    assert client.chat.completions.create(model=MODEL, messages=message(*pictures)).choices[0].message.content == wanted
    stream = client.chat.completions.create(model=MODEL, messages=message(*pictures), stream=True, logprobs=True)
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == wanted
    tokens = [token.token for chunk in chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content]
    assert "".join(tokens) == wanted, "what stands between lines included"


def long_line(path):
    """Three times as long as the model's image."""
    picture = Image.new("L", (1500, 50), 255)
    text = "the quick brown fox jumps over a lazy dog while many small boxes of paper"
    ImageDraw.Draw(picture).text((10, 5), text, fill=0, font=ImageFont.load_default(36))
    picture.save(path)
    return path


def test_a_long_line_is_read_in_pieces_and_shown_as_one(http, tmp_path):
    """Beside another image, cut by a budget, streamed."""
    picture = long_line(tmp_path / "long.png")
    line = reader().read(picture)
    assert len(reader().prepare(picture).pieces) >= 3 and line.text.count(" ") == 14
    for sources in ([picture], [PICTURES[0], picture], [picture, PICTURES[0]]):
        read = [reader().read(source) for source in sources]
        body = http.post("/v1/chat/completions", json=chat(*sources)).json()
        assert body["choices"][0]["message"]["content"] == "\n".join(one.text for one in read)
        assert [one["text"] for one in body["choices"][0]["trocr"]["lines"]] == [one.text for one in read]
        assert body["usage"]["completion_tokens"] == sum(len(one.tokens) for one in read)
    budget = len(line.tokens) - 5
    body = http.post("/v1/chat/completions", json=chat(picture, PICTURES[0], max_tokens=budget)).json()
    choice, (cut,) = body["choices"][0], body["choices"][0]["trocr"]["lines"]
    assert choice["finish_reason"] == cut["finish_reason"] == "length"
    assert line.text.startswith(choice["message"]["content"]) and cut["text"] == choice["message"]["content"]
    result = http.post("/v1/ocr", files={"image": picture.read_bytes()}).json()["results"][0]
    assert result["text"] == line.text and [word["text"] for word in result["words"]] == line.text.split()


def test_only_the_last_turn_is_read(client):
    history = [
        {"role": "system", "content": "You are helpful."}, *message(PICTURES[0]),
        {"role": "assistant", "content": "14 March 2024", "refusal": None, "annotations": []},
        *message(PICTURES[1]), {"role": "user", "content": "only the digits, please"},
    ]  # fmt: skip
    answer = client.chat.completions.create(model=MODEL, messages=history)
    assert answer.choices[0].message.content == lines()[1].text


def test_stream_of_chunks(http):
    body = chat(stream=True, stream_options={"include_usage": True}, n=2, temperature=1.2, seed=5, logprobs=True)
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events[-1] == "[DONE]"
    raw = list(map(json.loads, events[:-1]))
    chunks = [ChatCompletionChunk.model_validate(chunk, strict=True) for chunk in raw]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    *with_choices, last = chunks
    assert last.choices == [] and last.usage.completion_tokens > 0
    assert all(chunk["usage"] is None for chunk in raw[:-1])
    for index in (0, 1):
        own = [chunk.choices[0] for chunk in with_choices if chunk.choices[0].index == index]
        assert own[0].delta.role == "assistant" and own[0].delta.content == ""
        assert own[-1].finish_reason in ("stop", "length") and not own[-1].delta.content
        assert all(choice.finish_reason is None for choice in own[:-1])
        text = "".join(choice.delta.content or "" for choice in own)
        assert text == "".join(token.token for choice in own if choice.logprobs for token in choice.logprobs.content)


def test_without_usage_every_chunk_has_a_choice(http):
    with http.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer:
        chunks = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    assert all(len(chunk["choices"]) == 1 and "usage" not in chunk for chunk in chunks)


def test_sampling_is_the_readers_and_repeatable(client):
    wanted = reader().read(PICTURES[0], do_sample=True, temperature=1.5, top_p=0.95, seed=11).text
    for _ in range(2):
        answer = client.chat.completions.create(model=MODEL, messages=message(PICTURES[0]), temperature=1.5, top_p=0.95, seed=11)
        assert answer.choices[0].message.content == wanted
    many = client.chat.completions.create(model=MODEL, messages=message(PICTURES[0]), temperature=2, n=8, seed=1)
    assert [choice.index for choice in many.choices] == list(range(8))
    assert len({choice.message.content for choice in many.choices}) > 1


def test_several_images_draw_as_the_reader_does(http):
    wanted = reader().read(PICTURES[:3], do_sample=True, temperature=1.5, seed=4)
    body = chat(*PICTURES[:3], temperature=1.5, seed=4)
    content = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    assert content == "\n".join(line.text for line in wanted)


def test_without_a_temperature_the_text_is_certain(client):
    answers = [client.chat.completions.create(model=MODEL, messages=message(PICTURES[2])) for _ in range(3)]
    assert {answer.choices[0].message.content for answer in answers} == {lines()[2].text}


def test_beams(client):
    wanted, beams = reader().read(PICTURES[5], num_beams=2).text, {"trocr": {"num_beams": 2}}
    answer = client.chat.completions.create(model=MODEL, messages=message(PICTURES[5]), n=2, extra_body=beams)
    assert answer.choices[0].message.content == wanted
    assert answer.choices[1].message.content != wanted
    for wrong, name in (({"num_beams": 3}, "trocr.num_beams"), ({"num_beams": 2}, "temperature")):
        with pytest.raises(openai.BadRequestError) as error:
            client.chat.completions.create(model=MODEL, messages=message(PICTURES[5]), temperature=1, extra_body={"trocr": wrong})
        assert error.value.param == name


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_budgets_hold_for_the_whole_answer(client, field):
    line = lines()[LONGEST]
    answer = client.chat.completions.create(model=MODEL, messages=message(PICTURES[LONGEST]), **{field: 5})
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 5
    assert answer.choices[0].message.content == reader().tokenizer.decode([token.id for token in line.tokens[:5]])
    budget = len(lines()[0].tokens) + 2
    both = client.chat.completions.create(model=MODEL, messages=message(PICTURES[0], PICTURES[1]), **{field: budget})
    assert both.usage.completion_tokens == budget and both.choices[0].finish_reason == "length"
    whole = client.chat.completions.create(model=MODEL, messages=message(PICTURES[0]), **{field: 100_000})
    assert whole.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_a_budget_that_the_first_line_spends_leaves_no_trace_of_the_second(http, stream):
    first = lines()[0]
    for budget, text in ((len(first.tokens), first.text), (len(first.tokens) + 1, f"{first.text}\n")):
        body = chat(*PICTURES[:2], max_tokens=budget, stream=stream, logprobs=True)
        answer = http.post("/v1/chat/completions", json=body)
        if stream:
            chunks = [json.loads(line[6:])["choices"][0] for line in answer.text.splitlines() if line.startswith("data: {")]
            content, choice = "".join(chunk["delta"].get("content", "") for chunk in chunks), chunks[-1]
        else:
            choice = answer.json()["choices"][0]
            content = choice["message"]["content"]
        assert choice["finish_reason"] == "length" and choice["trocr"]["lines"][0]["text"] == first.text
        assert content == text if budget == len(first.tokens) else content.startswith(text)
        assert len(choice["trocr"]["lines"]) == budget - len(first.tokens) + 1


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_end_the_text_and_are_not_in_it(http, stream):
    text = lines()[LONGEST].text
    stop = text[9:12]
    body = chat(PICTURES[LONGEST], stop=["no such text", stop], stream=stream)
    if stream:
        with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            chunks = [json.loads(line[6:])["choices"][0] for line in answer.iter_lines() if line.startswith("data: {")]
        content, reason = "".join(chunk["delta"].get("content", "") for chunk in chunks), chunks[-1]["finish_reason"]
    else:
        choice = http.post("/v1/chat/completions", json=body).json()["choices"][0]
        content, reason = choice["message"]["content"], choice["finish_reason"]
    assert content == text[: text.index(stop)] and reason == "stop"


def test_stop_at_a_newline_gives_the_first_line(client):
    answer = client.chat.completions.create(model=MODEL, messages=message(*PICTURES[:2]), stop="\n", logprobs=True)
    assert answer.choices[0].message.content == lines()[0].text
    assert "".join(token.token for token in answer.choices[0].logprobs.content) == lines()[0].text


def test_a_blank_image_gives_no_text_and_says_so(http, tmp_path):
    Image.new("RGB", (200, 32), "white").save(tmp_path / "blank.png")
    with http.stream("POST", "/v1/chat/completions", json=chat(tmp_path / "blank.png", stream=True)) as answer:
        chunks = [json.loads(line[6:])["choices"][0] for line in answer.iter_lines() if line.startswith("data: {")]
    assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == ""
    assert chunks[-1]["trocr"]["lines"][0]["flags"] == ["no_text"]


# --- responses ---


def test_a_response_is_openais(http):
    body = {"model": MODEL, "input": responses_input(PICTURES[0]), "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    answer = http.post("/v1/responses", json=body).json()
    response = Response.model_validate(answer)
    assert response.output_text == lines()[0].text and response.status == "completed"
    logprobs = response.output[0].content[0].logprobs
    assert "".join(token.token for token in logprobs) == lines()[0].text and len(logprobs[0].top_logprobs) == 2
    assert response.usage.output_tokens == len(lines()[0].tokens)
    cut = Response.model_validate(http.post("/v1/responses", json={**body, "max_output_tokens": 3}).json())
    assert cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens"


def test_events_of_a_response(client):
    events = list(client.responses.create(model=MODEL, input=responses_input(PICTURES[0]), stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events if event.type != "response.output_text.delta"]
    assert kinds == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert events[-1].response.output_text == lines()[0].text
    with client.responses.stream(model=MODEL, input=responses_input(PICTURES[0])) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == lines()[0].text


# --- /v1/ocr ---


def test_a_bad_image_hinders_no_other(http):
    good = data_url(PICTURES[0].read_bytes())
    images = [good, data_url(b"no image"), "data:image/png;base64,???", "https://example.org/a.png", data_url(b""), good]
    body = http.post("/v1/ocr", json={"images": images, "model": MODEL}).json()
    assert [result["index"] for result in body["results"]] == list(range(6))
    assert [result["text"] for result in body["results"]] == [lines()[0].text, "", "", "", "", lines()[0].text]
    codes = [result["error"] and result["error"]["code"] for result in body["results"]]
    assert codes == [None, "invalid_image", "invalid_base64", "url_not_allowed", "invalid_image", None]
    assert body["usage"]["completion_tokens"] == 2 * len(lines()[0].tokens)


def test_a_form_of_files_with_options(http):
    files = [("a", (picture.name, picture.read_bytes())) for picture in PICTURES]
    answer = http.post("/v1/ocr", files=files, data={"num_beams": "2", "model": MODEL}).json()
    wanted = reader().read(PICTURES, num_beams=2)
    assert [result["text"] for result in answer["results"]] == [line.text for line in wanted]
    short = http.post("/v1/ocr", files=files[:1], data={"max_tokens": "3"}).json()["results"][0]
    assert short["finish_reason"] == "length" and len(short["text"]) <= 3


FORM = {"content-type": "multipart/form-data; boundary=a"}
FIELD_ONLY = b'--a\r\nContent-Disposition: form-data; name="model"\r\n\r\nx\r\n--a--\r\n'


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ({"json": {"images": []}}, 400, "invalid_value"),
        ({"json": {"images": ["data:,"], "prompt": "x"}}, 400, "unsupported_parameter"),
        ({"json": {}}, 400, "missing_parameter"),
        ({"params": {"page": "true"}, "files": {"a": b"x"}}, 400, "unsupported_parameter"),
        ({"content": b"[" * 10_000, "headers": {"content-type": "application/json"}}, 400, "invalid_json"),
        ({"content": b"\xff", "headers": {"content-type": "application/json"}}, 400, "invalid_json"),
        ({"content": b"x", "headers": {"content-type": "image/png"}}, 415, "unsupported_media_type"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "invalid_form"),
        ({"content": b"x", "headers": FORM}, 400, "invalid_form"),
        ({"content": FIELD_ONLY, "headers": FORM}, 400, "image_required"),
        ({"data": {"num_beams": "two"}, "files": {"a": b"x"}}, 400, "invalid_value"),
        ({"files": [("a", b"x")] * 33}, 400, "invalid_form"),
        ({"json": {"images": ["data:,"] * 33}}, 400, "too_many_images"),
        ({"json": {"images": ["data:,"], "model": "none"}}, 404, "model_not_found"),
    ],
)
def test_bad_requests_to_ocr(http, options, status, code):
    answer = http.post("/v1/ocr", **options)
    assert answer.status_code == status and answer.json()["error"]["code"] == code


def test_an_error_names_the_field_as_its_route_has_it(http):
    answer = http.post("/v1/ocr", json={"images": ["data:,"], "num_beams": 3})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "num_beams"


# --- refusals ---


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/ocr"])
@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "text/plain; charset=utf-8"])
def test_json_that_does_not_say_so_is_told_which_header_to_send(http, path, kind):
    """As `curl -d` sends it, and fetch in a browser."""
    answer = http.post(path, content=json.dumps(chat()), headers={"content-type": kind} if kind else {})
    error = answer.json()["error"]
    assert answer.status_code == 415 and error["code"] == "unsupported_media_type"
    assert error["type"] == "invalid_request_error" and "header Content-Type: application/json" in error["message"]


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        ("chat/completions", {"stop": list("abcde")}, "stop should have at most 4 items"),
        ("chat/completions", {"stop": ["a" * 65]}, "stop[0] should have at most 64 characters"),
        ("chat/completions", {"tools": [{}]}, "tools should be empty"),
        ("chat/completions", {"messages": []}, "messages should have at least 1 item"),
        ("chat/completions", {"presence_penalty": 0.5}, "presence_penalty should be 0"),
        ("responses", {"store": True}, "store should be false"),
        ("responses", {"conversation": "conv_1"}, "conversation should be null"),
        ("responses", {"input": []}, "input should have at least 1 item"),
    ],
)
def test_refusals_say_what_is_allowed(http, path, fields, message):
    body = {**(chat() if path == "chat/completions" else {"model": MODEL, "input": responses_input(PICTURES[0])}), **fields}
    assert http.post(f"/v1/{path}", json=body).json()["error"]["message"] == message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty"), ({"presence_penalty": -1}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"), ({"tools": [{"type": "function"}]}, "tools"), ({"top_k": 3}, "top_k"),
        ({"tool_choice": "required"}, "tool_choice"), ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"modalities": ["audio"]}, "modalities[0]"), ({"store": True}, "store"), ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"), ({"n": 0}, "n"), ({"n": 9}, "n"), ({"n": 5_000_000}, "n"), ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"), ({"temperature": 2.1}, "temperature"),
        ({"top_p": -0.1}, "top_p"), ({"trocr": {"x": 1}}, "trocr.x"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"), ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"), ({"seed": 2**64}, "seed"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0]"),
        ({"messages": [*message(PICTURES[0]), {"role": "tool", "content": "x"}]}, "messages"),
        ({"audio": {"voice": "x"}}, "audio"), ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"messages": "x"}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": "read"}]}, "messages"), ({"model": ""}, "model"),
    ],
)  # fmt: skip
def test_what_cannot_be_obeyed_is_refused_by_name(client, fields, param):
    body = {**chat(), **fields}
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=body.pop("model"), messages=body.pop("messages"), extra_body=body)
    assert error.value.param == param and error.value.type == "invalid_request_error"


NULLS = ("audio", "prediction", "web_search_options", "moderation", "context_management")
HINTS = {
    "prompt_cache_key": "a",
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {"mode": "explicit"},
    "service_tier": "flex",
}


def test_what_asks_for_nothing_is_taken(client):
    """As agents send it: fields that are null, hints about caches and prices, and what tools said in earlier turns."""
    (turn,), breakpoint = message(PICTURES[0]), {"prompt_cache_breakpoint": {"mode": "explicit"}}
    turn["content"] = [{**part, **breakpoint} for part in turn["content"]]
    turn["content"][1]["image_url"]["detail"] = "original"
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}],
    }
    history = [*message(PICTURES[1]), call, {"role": "tool", "tool_call_id": "1", "content": "x"}]
    history += [{"role": "function", "name": "f", "content": "x"}, turn]
    fields = {**dict.fromkeys(NULLS), **HINTS}
    answer = client.chat.completions.create(model=MODEL, messages=history, extra_body=fields)
    assert answer.choices[0].message.content == lines()[0].text


def test_what_asks_for_nothing_is_taken_by_responses(client):
    (turn,) = responses_input(PICTURES[0])
    turn["content"] = [{**part, "file_id": None, "prompt_cache_breakpoint": {"mode": "explicit"}} for part in turn["content"]]
    work = [
        {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "x"},
        {"type": "function_call_output", "output": "x"},
    ]
    work[1:1] = [{"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}]
    fields = {**dict.fromkeys(NULLS), **HINTS}
    items, include = [*responses_input(PICTURES[1]), *work, turn], ["reasoning.encrypted_content"]
    answer = client.responses.create(model=MODEL, input=items, include=include, extra_body=fields)
    assert answer.output_text == lines()[0].text and answer.output[0].content[0].logprobs is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"instructions": "\ud800"}, "instructions"), ({"metadata": {"a": "\udfff"}}, "metadata.a"),
     ({"metadata": {"\ud800": ""}}, "metadata")],
    ids=["instructions", "metadata", "key"],
)  # fmt: skip
def test_half_a_surrogate_pair_that_an_answer_would_repeat_is_refused_before_it_is_read(server, http, fields, param):
    decoded = server.count("images_decoded_total")
    for path, body in (("responses", {"model": MODEL, "input": responses_input(PICTURES[0])}), ("chat/completions", chat())):
        if param == "instructions" and path != "responses":
            continue
        content = json.dumps({**body, **fields})
        answer = http.post(f"/v1/{path}", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param
    assert server.count("images_decoded_total") == decoded


@pytest.mark.parametrize("path", ["chat/completions", "responses"])
def test_a_body_that_is_missing_is_called_so(http, path):
    answer = http.post(f"/v1/{path}", content=b"", headers={"content-type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["message"] == "the body is missing"


ODD = ['{"model":"m","temperature":NaN}', '{"model":"m","top_p":1e999}', "[]", "null", "", "{", '{"a":"\\ud800"}', "[" * 9999]


@pytest.mark.parametrize("content", ODD, ids=range(len(ODD)))
def test_odd_json(http, content):
    answer = http.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"), ({"store": True}, "store"), ({"input": "Read."}, "input"),
        ({"background": True}, "background"), ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "input[0].content[0].image_url"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"), ({"input": [{"role": ["user"]}]}, "input[0]"),
        ({"input": [*responses_input(PICTURES[0]), {"type": "function_call_output"}]}, "input"),
        ({"include": ["web_search_call.results"]}, "include[0]"), ({"context_management": [{}]}, "context_management"),
        ({"top_logprobs": 3, "include": ["reasoning.encrypted_content"]}, "top_logprobs"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.type"),
    ],
)  # fmt: skip
def test_what_responses_cannot_obey(client, fields, param):
    body = {"input": responses_input(PICTURES[0]), **fields}
    with pytest.raises(openai.BadRequestError) as error:
        client.responses.create(model=MODEL, input=body.pop("input"), extra_body=body)
    assert error.value.param == param


def test_a_top_p_of_0_reads_the_best_tokens(http):
    answer = http.post("/v1/chat/completions", json=chat(temperature=2, top_p=0, seed=1))
    assert answer.json()["choices"][0]["message"]["content"] == lines()[0].text
    answer = http.post("/v1/responses", json={"model": MODEL, "input": responses_input(PICTURES[0]), "top_p": 0})
    assert answer.json()["top_p"] == 0


def test_errors_and_ids(client, http):
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="none", messages=message(PICTURES[0]))
    assert error.value.code == "model_not_found" and error.value.request_id
    for path, method, allowed in (("/v1/nothing", "GET", None), ("/v1/ocr", "GET", "POST"), ("/v1/models", "POST", "GET")):
        answer = http.request(method, path)
        assert answer.status_code == (405 if allowed else 404) and answer.headers.get("allow") == allowed
        assert answer.json()["error"]["type"] == "invalid_request_error"
    assert http.get("/healthz", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert http.get("/healthz", headers={"x-request-id": "no spaces"}).headers["x-request-id"].startswith("req_")


def test_a_device_error_is_a_500_without_details(server, http, monkeypatch):
    submit = server.engine.submit

    def failing(jobs: list[Job]):
        submit(jobs)
        raise RuntimeError("secret 0xdeadbeef")

    monkeypatch.setattr(server.engine, "submit", failing)
    answer = http.post("/v1/chat/completions", json=chat())
    assert answer.status_code == 500 and "secret" not in answer.text and answer.json()["error"]["code"] == "internal_error"


def test_metrics_tell_what_happened(server, http):
    before = server.count("images_decoded_total")
    http.post("/v1/ocr", json={"images": [data_url(picture.read_bytes()) for picture in PICTURES[:3]]})
    assert server.count("images_decoded_total") == before + 3
    wait_until(lambda: server.count("requests_total", route="/v1/ocr", status="200") > 0, 10)  # counted once the answer has left
    text = http.get("/metrics").text
    for name in ("requests_total", "request_seconds_bucket", "slots_busy", "slot_steps_total", "compilations_total"):
        assert f"trocr_{name}" in text


def test_a_long_line_counts_as_one(server, http, tmp_path):
    """Whatever it is made of, and an answer that the budget cut too."""
    picture, reasons = long_line(tmp_path / "long.png"), ("stop", "length")
    wait_until(server.idle, 10)

    def counts():
        return [server.count("lines_total", model=MODEL, finish_reason=reason) for reason in reasons]

    stop, length = counts()
    http.post("/v1/chat/completions", json=chat(picture, PICTURES[0]))
    wait_until(lambda: counts() == [stop + 2, length], 10)  # counted once the answer has left
    http.post("/v1/chat/completions", json=chat(picture, max_tokens=len(reader().read(picture).tokens) - 5))
    wait_until(lambda: counts() == [stop + 2, length + 1], 10)


@pytest.mark.parametrize(
    ("module", "name", "fields"),
    [(device, "advance", {}), (search, "advance", {"trocr": {"num_beams": 2}})],
    ids=["greedy", "beams"],
)
def test_the_time_to_the_first_token_holds_the_decoding_of_it(server, http, monkeypatch, module, name, fields):
    """A device that is slow to give tokens, to an image that did not wait for a slot."""
    decode = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *arguments: (time.sleep(0.3), decode(*arguments))[1])
    measured = ("first_token_seconds_sum", {}), ("queue_seconds_sum", {"model": MODEL})
    before = [server.count(name, **labels) for name, labels in measured]
    http.post("/v1/chat/completions", json=chat(**fields))
    wait_until(server.idle, 10)
    first, queued = (server.count(name, **labels) - start for (name, labels), start in zip(measured, before, strict=True))
    assert queued < 0.3 <= first
