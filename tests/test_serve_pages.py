"""Pages sent to the server: the lines that `read_page` reads, by every route, within the limits that hold for lines."""

import threading
import time
from io import BytesIO

import numpy as np
import openai
import pytest
from pages import printed
from PIL import Image
from serving import MODEL, PICTURES, chat, data_url, message, reader, serving, wait_until

from trocr_jax.page import read_page
from trocr_jax.serve.api.gate import Gate
from trocr_jax.serve.api.limits import Limits

TEXTS = ("Dear Sir or Madam,", "27 boxes of paper were sent", "to your village on Friday.", "Best regards", "P.S. 1,350 pages")


@pytest.fixture(scope="module")
def server():
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def http(server):
    with server.client() as client:
        yield client


def png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


LETTER, NOTE, BLANK = png(printed(*TEXTS)), png(printed("See you on Monday")), png(Image.new("RGB", (700, 500), "white"))


def as_json(*images: bytes, **fields):
    return {"json": {"images": [data_url(image) for image in images], "page": True, **fields}}


def as_form(*images: bytes, **fields):
    return {"files": [("images", image) for image in images], "data": {"page": "true", **fields}}


@pytest.mark.parametrize("body", [as_json, as_form])
def test_every_line_with_its_place(http, server, body):
    answer = http.post("/v1/ocr", **body(LETTER, NOTE)).json()
    for result, image in zip(answer["results"], (LETTER, NOTE), strict=True):
        wanted = read_page(reader(), image)
        assert result["text"].split("\n") == [found.line.text for found in wanted.lines]
        assert (result["width"], result["height"], result["lost"], result["error"]) == (wanted.width, wanted.height, False, None)
        for line, found in zip(result["lines"], wanted.lines, strict=True):
            assert (line["polygon"], line["box"]) == ([list(point) for point in found.points], list(found.box))
            assert line["text"] == found.line.text and line["confidence"] == pytest.approx(found.line.confidence, rel=1e-3)
    assert tuple(answer["results"][0]["text"].split("\n")) == TEXTS, "or the drawn page is not what this test needs"
    assert answer["usage"]["prompt_tokens"] == 6 * server.service.models[MODEL].image_tokens, "as many images for the model"
    assert set(answer["results"][0]["lines"][0]) == {"polygon", "box", "text", "confidence", "words", "finish_reason", "flags"}


def test_a_page_that_cannot_be_read_hinders_no_other_and_a_blank_one_has_no_lines(http):
    bad, blank, head, good = http.post("/v1/ocr", **as_json(b"no image", BLANK, upside_down(LETTER), NOTE)).json()["results"]
    assert bad["error"]["code"] == "invalid_image" and bad["error"]["param"] == "images[0]"
    assert (bad["text"], bad["lines"], bad["width"]) == ("", [], None)
    assert (blank["text"], blank["lines"], blank["width"], blank["error"]) == ("", [], 700, None)
    assert head["lost"] and not good["lost"] and good["text"] == "See you on Monday"


def upside_down(page: bytes) -> bytes:
    return png(Image.open(BytesIO(page)).rotate(180))


def test_max_tokens_and_beams_hold_for_each_line(http):
    (result,) = http.post("/v1/ocr", **as_form(LETTER, max_tokens="4", num_beams="2")).json()["results"]
    wanted = read_page(reader(), LETTER, max_new_tokens=4, num_beams=2)
    assert [line["text"] for line in result["lines"]] == [found.line.text for found in wanted.lines]
    assert {line["finish_reason"] for line in result["lines"]} == {"length"} and len(result["lines"]) == len(TEXTS)


@pytest.mark.parametrize("stream", [False, True])
def test_openais_clients_get_the_lines_in_order(server, stream):
    more = {"extra_body": {"trocr": {"page": True}}, "stream": stream}
    text, lines = "\n".join((*TEXTS, "See you on Monday")), []
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        chat = client.chat.completions.create(model=MODEL, messages=message(LETTER, NOTE), **more)
        if stream:
            parts = [chunk.choices[0] for chunk in chat]
            assert "".join(part.delta.content or "" for part in parts) == text
            lines = parts[-1].trocr["lines"]
        else:
            assert chat.choices[0].message.content == text
            lines = chat.choices[0].trocr["lines"]
        image = {"type": "input_image", "image_url": data_url(LETTER)}
        answer = client.responses.create(model=MODEL, input=[{"role": "user", "content": [image]}], **more)
        assert (list(answer)[-1].response if stream else answer).output_text == "\n".join(TEXTS)
    assert [line["text"] for line in lines] == text.split("\n")


def test_a_blank_page_is_an_empty_answer(http):
    answer = http.post("/v1/chat/completions", json=chat(BLANK, trocr={"page": True})).json()
    assert answer["choices"][0]["message"]["content"] == "" and answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["trocr"]["lines"] == [] and answer["usage"]["total_tokens"] == 0


def test_the_budget_of_a_conversation_is_for_all_lines(http):
    answer = http.post("/v1/chat/completions", json=chat(LETTER, max_tokens=12, trocr={"page": True})).json()
    assert answer["usage"]["completion_tokens"] == 12 and answer["choices"][0]["finish_reason"] == "length"
    assert "\n".join(TEXTS).startswith(answer["choices"][0]["message"]["content"])


@pytest.mark.parametrize(
    ("path", "request_", "param"),
    [
        ("/v1/ocr", as_form(NOTE, page="yes"), "page"), ("/v1/ocr", as_json(NOTE, page=1), "page"),
        ("/v1/chat/completions", {"json": chat(NOTE, trocr={"page": "true"})}, "trocr.page"),
    ],
)  # fmt: skip
def test_page_is_true_or_false(http, path, request_, param):
    answer = http.post(path, **request_)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


# --- within the limits ---


def test_a_page_with_more_lines_than_fit_is_refused_and_takes_nothing():
    with serving(limits=Limits(queue=4)) as running, running.client() as client:
        decoded = running.engine.counts.encoded
        answer = client.post("/v1/chat/completions", json=chat(LETTER, trocr={"page": True}))
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "too_large"
        results = client.post("/v1/ocr", **as_json(LETTER, NOTE)).json()["results"]
        assert results[0]["error"]["code"] == "too_large" and results[1]["text"] == "See you on Monday"
        assert client.post("/v1/ocr", **as_json(png(printed(*TEXTS[:4])))).json()["results"][0]["text"].count("\n") == 3
        assert running.engine.counts.encoded - decoded == 1 + 4


def test_a_page_for_which_there_is_no_room_now_may_come_again(monkeypatch):
    """Lines of others are inside when its own are counted; what it had taken is given back."""
    with serving(limits=Limits(queue=6)) as running, running.client() as client:
        enter, crowded = Gate.enter, threading.Event()

        def crowd(gate, units, held=0):
            if held and not crowded.is_set():
                crowded.set()
                enter(gate, 3)
            enter(gate, units, held)

        monkeypatch.setattr(Gate, "enter", crowd)
        answer = client.post("/v1/chat/completions", json=chat(LETTER, trocr={"page": True}))
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1 and crowded.is_set()
        wait_until(lambda: running.service.images.inside == 3, 5)
        running.service.images.leave(3)
        assert client.post("/v1/chat/completions", json=chat(LETTER, trocr={"page": True})).status_code == 200


def test_lines_that_are_found_after_the_deadline_take_no_room(monkeypatch):
    found = threading.Event()
    with serving(limits=Limits(request_seconds=0.3)) as running, running.client() as client:
        monkeypatch.setattr("trocr_jax.page.find_lines", lambda image: (time.sleep(1.0), found.set(), [np.zeros((4, 2))] * 9)[2])
        assert client.post("/v1/chat/completions", json=chat(LETTER, trocr={"page": True})).status_code == 504
        assert found.wait(10)
        wait_until(running.idle, 5)
        time.sleep(0.2)
        assert running.idle()


def test_a_page_costs_a_key_as_many_images_as_it_has_lines():
    with serving(limits=Limits(rate=1.0, burst=8)) as running, running.client() as client:
        assert client.post("/v1/ocr", **as_json(LETTER)).status_code == 200
        statuses = [client.post("/v1/ocr", files={"image": PICTURES[0].read_bytes()}).status_code for _ in range(4)]
        assert statuses == [200, 200, 200, 429]


def test_noise_is_looked_through_in_time(http):
    """The largest page that any other may have to wait for: what a core's thread and the one for large images decode."""
    noise = np.random.default_rng(0).integers(0, 256, (3500, 3500), np.uint8)
    began = time.monotonic()
    (result,) = http.post("/v1/ocr", **as_json(png(Image.fromarray(noise)))).json()["results"]
    assert result["error"] is None and time.monotonic() - began < 30, "half of a request's time"
