"""The page as a person meets it, in a real browser: drop, watch the text come, see what is unsure, be told what is wrong.

Set PAGE_SCREENSHOTS to a folder to keep what was seen.
"""

import base64
import json
import os
import re
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, chromium
from pages import printed
from PIL import Image, ImageOps
from serving import MODEL, PICTURES, lines, reader, serving, wait_until

from trocr_jax.serve.api.limits import Limits

KEY = "sk-" + "d" * 24
DONE = "document.querySelector('.line') && !document.querySelector('.waiting')"
LONGEST = max(range(len(PICTURES)), key=lambda i: len(lines()[i].text))


@pytest.fixture(scope="module")
def browser():
    window = Browser(chromium())
    yield window
    window.close()


@pytest.fixture(scope="module")
def server(browser):
    with serving(models=(MODEL, "second/model"), limits=Limits(rate=0)) as running:
        yield running


@pytest.fixture
def page(browser, server):
    browser.look(1000, 800)
    browser.open(server.url)
    browser.until("document.querySelectorAll('#model option').length")
    yield browser
    assert browser.problems == []
    outside = [url for url in browser.requested if not url.startswith((f"{server.url}/", "data:", f"blob:{server.url}/"))]
    assert outside == [], "no outside assets"


def shown(line) -> str:
    return line.text or "No text seen."


def keep(browser, name: str):
    if folder := os.environ.get("PAGE_SCREENSHOTS"):
        browser.screenshot(Path(folder) / f"{name}.png")


def test_dropped_lines_are_read(page):
    assert page.run("document.getElementById('copy').offsetParent") is None, "nothing to copy yet"
    page.drop(*PICTURES[:4])
    page.until(f"{DONE} && document.querySelectorAll('.line').length === 4")
    assert page.text(".text") == [shown(line) for line in lines()[:4]]
    for note, picture, line in zip(page.text(".note"), PICTURES, lines(), strict=False):
        assert picture.name in note and (not line.text or f"{100 * line.confidence:.0f} % sure" in note)
    keep(page, "light")


def test_text_comes_while_it_is_read(page, server, monkeypatch):
    dispatch = type(server.engine).dispatch
    monkeypatch.setattr(type(server.engine), "dispatch", lambda engine: (time.sleep(0.1), dispatch(engine))[1])
    page.run("""{ window.seen = []; new MutationObserver(() => {
        const text = document.querySelector(".text"); if (text) seen.push(text.textContent);
    }).observe(document.body, { subtree: true, childList: true, characterData: true }); }""")
    page.drop(PICTURES[LONGEST])
    page.until(DONE)
    seen = list(dict.fromkeys(text for text in page.run("seen") if text))
    final = lines()[LONGEST].text
    assert seen[-1] == final and len(seen) >= 4
    assert all(final.startswith(text) for text in seen)


def test_words_are_coloured_by_confidence(page):
    page.drop(*PICTURES)
    page.until(f"{DONE} && document.querySelectorAll('.line').length === {len(PICTURES)}")
    words = "[...document.querySelectorAll('.text')].map(t => [...t.querySelectorAll('.word')])"
    levels = set()
    found_words = page.run(f"{words}.map(line => line.map(w => [w.textContent, w.dataset.level]))")
    for found, line in zip(found_words, lines(), strict=True):
        wanted = [[word.text, level(word.confidence)] for word in line.words]
        assert found == wanted
        levels |= {name for _, name in wanted}
    assert len(levels) > 1, "pictures of which some words are doubtful, or this proves little"
    colours = page.run(f"Object.fromEntries({words}.flat().map(w => [w.dataset.level, getComputedStyle(w).color]))")
    assert len(set(colours.values())) == len(levels)


def level(confidence: float) -> str:
    return "sure" if confidence >= 0.9 else "unsure" if confidence >= 0.6 else "doubtful"


def test_whole_pages_and_lines_that_turn_out_to_be_pages(page, tmp_path):
    texts = ("Dear Sir or Madam,", "27 boxes of paper were sent", "to your village on Friday.")
    printed(*texts).save(tmp_path / "letter.png")
    page.drop(tmp_path / "letter.png")
    page.until(DONE)
    assert "several lines" in page.text(".note")[0]
    assert page.run("[...document.querySelectorAll('.foot button')].map(b => b.textContent)") == ["Copy", "Read as a page"]
    page.run("[...document.querySelectorAll('.foot button')].at(-1).click()")
    page.until(f"{DONE} && document.querySelector('.note').textContent.includes('3 lines')")
    page.run("document.getElementById('pages').click()")
    assert page.text("#kind") == ["All lines of each are found and read."]
    page.drop(tmp_path / "letter.png")
    page.until(f"{DONE} && document.querySelectorAll('.line').length === 2")
    assert page.text(".text") == ["\n".join(texts)] * 2 and "3 lines" in page.text(".note")[1]
    assert page.run("document.querySelectorAll('.word').length") == 2 * sum(len(text.split()) for text in texts)
    downloaded = page.run("results.map(result => result.lines.map(line => line.text))")
    assert downloaded == [list(texts)] * 2 and page.run("results[0].flags") is None, "nothing is left of the line"
    keep(page, "pages")


def test_a_bad_file_says_so_and_hinders_no_other(page, tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    page.drop(tmp_path / "notes.png", PICTURES[0])
    page.until(f"{DONE} && document.querySelectorAll('.line').length === 2")
    bad, good = page.text(".text")
    assert page.text("#status") == ["1 read, 1 failed."]
    assert "not a" in bad.lower() and "image" in bad and good == shown(lines()[0])
    assert page.run("document.querySelectorAll('.text.error').length") == 1
    page.events[:] = [e for e in page.events if e.get("method") != "Log.entryAdded"]  # the 400 itself, which Chromium notes


@pytest.mark.parametrize("letters", ["black", "white"])
def test_letters_on_transparency_survive_scaling(page, tmp_path, letters):
    """The server sees what the picture's own size would show: JPEG would put them on black."""
    grey = ImageOps.autocontrast(ImageOps.invert(Image.open(PICTURES[LONGEST]).convert("L")))
    grey = grey.resize((3600, round(3600 * grey.height / grey.width)))
    picture = Image.new("RGBA", grey.size, letters)
    picture.putalpha(grey.point(lambda ink: 0 if ink < 60 else ink))
    picture.save(tmp_path / "letters.png")
    (sent,) = sent_for(page, tmp_path / "letters.png")
    assert sent.format == "PNG" and sent.size[0] == 3200
    at_full_size = reader().read([tmp_path / "letters.png"])[0].text
    assert len(at_full_size) > 5 and page.text(".text") == [at_full_size]


def test_a_large_photograph_is_sent_as_jpeg(page, tmp_path):
    picture = Image.open(PICTURES[0]).convert("RGB")
    picture.resize((3600, round(3600 * picture.height / picture.width))).save(tmp_path / "large.png")
    (sent,) = sent_for(page, tmp_path / "large.png")
    assert sent.format == "JPEG" and sent.size[0] == 3200


def test_a_file_larger_than_a_server_takes_is_sent_as_jpeg(page, tmp_path):
    Image.new("RGB", (2700, 2000), "white").save(tmp_path / "large.bmp")
    (sent,) = sent_for(page, tmp_path / "large.bmp")
    assert sent.format == "JPEG" and sent.size == (2700, 2000) and page.text(".text.error") == []


def test_transparency_too_large_to_send_is_put_on_white(page, tmp_path):
    rng = np.random.default_rng(0)
    pixels = np.concatenate([rng.integers(0, 256, (1200, 3600, 3)), rng.integers(0, 2, (1200, 3600, 1)) * 255], axis=2)
    pixels[:100] = (0, 0, 0, 0)
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "noise.png")
    (sent,) = sent_for(page, tmp_path / "noise.png")
    assert sent.format == "JPEG" and min(sent.getpixel((1600, 20))) > 240


def sent_for(page, *files) -> list[Image.Image]:
    """The pictures that the page sends when these are dropped."""
    page.run("""{ window.sent = []; const real = fetch; window.fetch = (path, options) => {
        if (options?.body) sent.push(JSON.parse(options.body).messages[0].content[0].image_url.url);
        return real(path, options);
    }; }""")
    page.drop(*files)
    page.until(DONE)
    return [Image.open(BytesIO(base64.b64decode(url.partition(",")[2]))) for url in page.run("sent")]


def test_text_dropped_or_pasted_is_refused(page):
    only = ["Only images can be dropped or pasted here."]
    page.drop_text("hello")
    assert page.text("#status") == only and page.text("#said p") == only
    page.run("document.getElementById('clear').click()")
    page.run("""{ const data = new DataTransfer(); data.setData("text/plain", "hello");
        dispatchEvent(new ClipboardEvent("paste", { clipboardData: data })); }""")
    assert page.text("#status") == only and page.run("document.querySelectorAll('.line').length") == 0
    page.drop(PICTURES[0])
    page.until(DONE)
    assert page.text("#status") == ["1 read."]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_white_pictures_have_an_edge(page, tmp_path, dark):
    page.look(1000, 800, dark=dark)
    Image.new("RGB", (400, 40), "white").save(tmp_path / "white.png")
    page.drop(tmp_path / "white.png")
    page.until(DONE)
    style = "getComputedStyle(document.querySelector('.line img'))"
    width, edge, inside = [page.run(f"{style}.{name}") for name in ("borderTopWidth", "borderTopColor", "backgroundColor")]
    assert width == "1px" and contrast(edge, inside) > 1.3


def test_download_copy_and_clear(page):
    page.run("URL.createObjectURL = (make => blob => { window.saved = blob; return make.call(URL, blob); })(URL.createObjectURL)")
    page.drop(*PICTURES[:2])
    page.until(f"{DONE} && document.querySelectorAll('.line').length === 2")
    page.run("document.execCommand = () => { window.copied = document.activeElement.value; return true; }")
    page.run("Object.defineProperty(navigator, 'clipboard', { value: { writeText: async text => { window.copied = text; } } })")
    page.run("document.getElementById('copy').click()")
    assert page.until("window.copied") == "\n".join(line.text for line in lines()[:2])
    page.run("HTMLAnchorElement.prototype.click = () => {}; document.getElementById('download').click()")
    saved = json.loads(page.run("saved.text()"))
    assert [entry["text"] for entry in saved] == [line.text for line in lines()[:2]]
    assert saved[0]["name"] == PICTURES[0].name and saved[0]["words"] and saved[0]["model"] == MODEL
    page.run("document.getElementById('clear').click()")
    assert page.run("document.querySelectorAll('.line').length") == 0


def test_clear_stops_what_is_read(page, server, monkeypatch):
    """What comes later is read at once, what was cleared is given up on the server, and nothing of it is kept or counted."""
    dispatch = type(server.engine).dispatch
    monkeypatch.setattr(type(server.engine), "dispatch", lambda engine: (time.sleep(0.25), dispatch(engine))[1])
    page.run("""{ window.made = new Set(); const { createObjectURL, revokeObjectURL } = URL;
        URL.createObjectURL = blob => { const url = createObjectURL.call(URL, blob); made.add(url); return url; };
        URL.revokeObjectURL = url => { made.delete(url); revokeObjectURL.call(URL, url); }; }""")
    page.drop(*PICTURES[:6])
    page.until("[...document.querySelectorAll('.text')].some(text => text.textContent)")
    assert page.text("#status") == ["Reading: 0 of 6 done."] and page.run("made.size") == 6
    page.run("document.getElementById('clear').click()")
    assert page.text("#status") == [""] and page.run("made.size") == 0
    wait_until(server.idle, 3)
    page.drop(PICTURES[0])
    assert page.text("#status") == ["Reading: 0 of 1 done."]
    page.until(DONE)
    assert page.text(".text") == [shown(lines()[0])] and page.text("#status") == ["1 read."]


@pytest.mark.parametrize("status, code, why", [
    (503, "overloaded", "The server is busy"), (503, "not_ready", "The server is not ready"), (503, None, "The server is busy"),
    (429, "rate_limit_exceeded", "This key has sent too many images"),
])  # fmt: skip
def test_waiting_for_a_busy_server_is_seen(page, status, code, why):
    """And is no part of the time that reading took. (A proxy's answer has no code.)"""
    answer_first(page, 1, status, json.dumps({"error": {"message": "later", "code": code}}) if code else "<h1>Busy</h1>", 4)
    page.drop(PICTURES[0])
    seen = [page.until(f"document.querySelector('.text').textContent.endsWith(' {left} s.') && "
                       "document.querySelector('.text').textContent") for left in (4, 3, 2)]  # fmt: skip
    assert seen == [f"{why}. Next try in {left} s." for left in (4, 3, 2)]
    keep(page, "busy")
    page.until(DONE)
    assert page.text(".text") == [shown(lines()[0])]
    assert int(re.search(r"(\d+) ms", page.text(".note")[0])[1]) < 4000
    assert not page.run("document.querySelector('.text').classList.contains('nothing')")


def test_waiting_has_an_end(page):
    answer_first(page, 100, 503, json.dumps({"error": {"message": "too many images are waiting", "code": "overloaded"}}), 0.01)
    page.drop(PICTURES[0])
    page.until(DONE)
    assert page.text(".text.error") == ["Too many images are waiting"]


def test_clear_ends_waiting(page):
    answer_first(page, 100, 503, "{}", 1)
    page.drop(PICTURES[0])
    page.until("document.querySelectorAll('.text.nothing').length")
    page.run("document.getElementById('clear').click(); window.asked = 0")
    time.sleep(1.5)
    assert page.run("asked") == 0


def answer_first(page, times: int, status: int, body: str, retry_after: float):
    """The server's first answers to images are these."""
    page.run(f"""{{ window.asked = 0; const real = fetch; window.fetch = (path, options) =>
        path.includes("chat") && asked++ < {times} ? Promise.resolve(new Response({json.dumps(body)},
            {{ status: {status}, headers: {{ "retry-after": "{retry_after}" }} }})) : real(path, options); }}""")


def test_the_chosen_model_reads(page, server):
    labels = {"model": "second/model", "finish_reason": lines()[0].finish_reason}
    before = server.count("lines_total", **labels)
    page.run("document.getElementById('model').value = 'second/model'")
    page.drop(PICTURES[0])
    page.until(DONE)
    wait_until(lambda: server.count("lines_total", **labels) == before + 1, 10)


def test_by_keyboard(page):
    """Tab reaches everything, in the order of the page, and what has the focus shows it."""
    page.drop(PICTURES[0])
    page.until(DONE)
    page.run("document.activeElement.blur()")
    reached, script = [], "document.activeElement.id || document.activeElement.textContent.trim()"
    for _ in range(12):
        page.key("Tab")
        reached.append(page.run(script))
        outlined = "[document.activeElement, document.activeElement.nextElementSibling].some(e => e && "
        outlined += "getComputedStyle(e).outlineStyle !== 'none') || document.activeElement === document.body"
        assert page.run(outlined), reached
    order = [name for name in reached if name in ("model", "choose", "copy", "download", "clear")]
    assert order[:5] == ["model", "choose", "copy", "download", "clear"]


def test_by_ear(page, tmp_path):
    """Texts, doubt, errors and the end are said; buttons tell which image they are for; nothing of it is in the text itself."""
    (tmp_path / "notes.png").write_text("no image")
    page.run("""{ window.said = []; const log = document.querySelector("[role=log]");
        new MutationObserver(changes => {
            for (const { addedNodes } of changes) for (const node of addedNodes) said.push(node.textContent);
        }).observe(log, { childList: true }); }""")
    page.drop(tmp_path / "notes.png", *PICTURES)
    page.until(f"{DONE} && document.querySelectorAll('.line').length === {1 + len(PICTURES)}")
    said, heard = page.run("said"), page.heard()
    assert said[0] == f"Reading: 0 of {1 + len(PICTURES)} done." and said[-1] == f"{len(PICTURES)} read, 1 failed."
    assert any(text.startswith("notes.png: ") and "image" in text for text in said)
    doubts = set()
    for picture, line in zip(PICTURES, lines(), strict=True):
        (text,) = [text for text in said if text.startswith(f"{picture.name}: ")]
        if not line.text:
            assert "No text seen." in text
        for word in line.words:
            name = level(word.confidence)
            assert name == "sure" or f"{word.text} ({name})" in text
            doubts |= {name} - {"sure"}
        assert not line.text or ("button", f"Copy: {picture.name}") in heard
    assert ("button", "Try again: notes.png") in heard
    assert doubts and all(("StaticText", f"({name})") in heard for name in doubts), "also where the text itself is read"
    assert page.text(".text")[1:] == [shown(line) for line in lines()]
    page.events[:] = [e for e in page.events if e.get("method") != "Log.entryAdded"]


def test_focus_stays_where_the_work_is(page):
    answer_first(page, 1, 400, json.dumps({"error": {"message": "no"}}), 1)
    page.drop(PICTURES[0])
    page.until(DONE)
    page.run("document.querySelector('.foot button').focus()")
    page.key("Enter", "\r")
    assert page.run("document.activeElement.className").startswith("line")
    page.until("document.querySelector('.note').textContent.includes(' ms')")
    page.run("document.getElementById('clear').focus()")
    page.key("Enter", "\r")
    assert page.run("document.activeElement.id") == "choose"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_on_a_phone(page, dark):
    page.look(375, 720, dark=dark, phone=True)
    page.drop(*PICTURES[:3])
    page.until(f"{DONE} && document.querySelectorAll('.line').length === 3")
    assert page.run("document.documentElement.scrollWidth") <= 375, "nothing is wider than the screen"
    sizes = page.run("[...document.querySelectorAll('button, .button, select')].filter(e => e.offsetParent)"
                     ".map(e => [e.textContent, e.getBoundingClientRect().height])")  # fmt: skip
    assert all(height >= 40 for _, height in sizes), sizes
    keep(page, "phone-dark" if dark else "phone")


@pytest.mark.parametrize("width", [320, 1200])
def test_long_names_make_nothing_wider_than_the_screen(page, tmp_path, width):
    page.look(width, 800)
    page.run(f"document.getElementById('model').add(new Option('owner/{'model' * 40}', 'second/model', true, true))")
    long = tmp_path / f"{'scan' * 60}.png"
    long.write_bytes(PICTURES[LONGEST].read_bytes())
    page.drop(long)
    page.until(DONE)
    assert page.run("document.documentElement.scrollWidth") <= width
    keep(page, f"long-{width}")


def test_a_picture_opens_in_full_size(page):
    """By keyboard, in a window of its own, under the page's policy."""
    page.drop(PICTURES[LONGEST])
    page.until(DONE)
    assert ("link", f"Open: {PICTURES[LONGEST].name}") in page.heard()
    page.run("document.querySelector('.picture').focus()")
    page.key("Enter", "\r")
    address = page.run("document.querySelector('.line img').src")
    with Image.open(PICTURES[LONGEST]) as picture:
        size = f"{picture.width}×{picture.height}"
    try:
        wait_until(lambda: any(size in window["title"] for window in windows(page, address)), 20)
    finally:  # it has the keyboard
        for window in windows(page, address):
            page.call("Target.closeTarget", targetId=window["targetId"])


def windows(page, address: str) -> list[dict]:
    return [target for target in page.call("Target.getTargets")["targetInfos"] if target["url"] == address]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_buttons_and_boxes_have_an_edge_that_is_seen(page, dark):
    """At least 3 to 1 against what is inside and around it, as WCAG asks."""
    page.look(1000, 800, dark=dark)
    page.drop(PICTURES[0])
    page.until(DONE)
    edges = page.run("""[...document.querySelectorAll('button, .button, select')].filter(e => e.offsetParent).flatMap(e => {
        let b = e.parentElement; while (getComputedStyle(b).backgroundColor === 'rgba(0, 0, 0, 0)') b = b.parentElement;
        const [edge, inside] = ["borderTopColor", "backgroundColor"].map(name => getComputedStyle(e)[name]);
        return [[edge, getComputedStyle(b).backgroundColor], ...(edge === inside ? [] : [[edge, inside]])]; })""")
    assert len(edges) > 10 and all(contrast(*pair) >= 3 for pair in edges), edges


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_contrast(page, dark):
    """Every text against its own background: at least 4.5 to 1, as WCAG asks."""
    page.look(1000, 800, dark=dark)
    page.drop(*PICTURES[:6])
    page.until(f"{DONE} && document.querySelectorAll('.line').length === 6")
    pairs = page.run("""[...document.querySelectorAll('h1, p, span, button, .button, select, .word')].filter(e => e.offsetParent
        && e.textContent.trim()).map(e => { let b = e; while (getComputedStyle(b).backgroundColor === 'rgba(0, 0, 0, 0)'
        && b.parentElement) b = b.parentElement; return [e.textContent.slice(0, 20), getComputedStyle(e).color,
        getComputedStyle(b).backgroundColor]; })""")
    assert len(pairs) > 10
    for text, front, back in pairs:
        assert contrast(front, back) >= 4.5, (text, front, back)
    keep(page, "contrast-dark" if dark else "contrast")


def contrast(*colours: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted(map(luminance, colours))
    return (light + 0.05) / (dark + 0.05)


def test_it_asks_for_the_key(browser):
    browser.look(1000, 800)
    with serving(keys=[KEY]) as running:
        browser.open(running.url)
        browser.until("document.getElementById('ask').open")
        keep(browser, "key")
        enter_key(browser, "sk-wrong")
        browser.until("document.getElementById('ask').open && document.getElementById('ask-why').textContent")
        assert browser.text("#ask-why") == ["This key is not valid."]
        enter_key(browser, KEY)
        browser.until("document.querySelectorAll('#model option').length")
        browser.drop(PICTURES[0])
        browser.until(DONE)
        assert browser.text(".text") == [lines()[0].text]
        browser.open("about:blank")
        wait_until(running.idle, 10)


def test_a_key_refused_once_can_be_given_later(browser):
    browser.look(1000, 800)
    with serving(keys=[KEY]) as running:
        browser.open(running.url)
        cancel_key(browser)
        browser.until("document.getElementById('status').textContent === 'An API key is needed.'")
        browser.drop(*PICTURES[:6])
        cancel_key(browser)
        browser.until(f"{DONE} && document.querySelectorAll('.line').length === 6")
        assert browser.text(".text.error") == ["An API key is needed."] * 6
        assert not browser.run("document.getElementById('ask').open"), "asked once, not for each image"
        browser.run("document.querySelector('.foot button').click()")
        browser.until("document.getElementById('ask').open")
        enter_key(browser, KEY)
        browser.until("document.querySelector('.note').textContent.includes(' ms')")
        assert browser.text(".text")[0] == shown(lines()[0]) and browser.text("#model option") == [MODEL]
        browser.open("about:blank")
        wait_until(running.idle, 10)


def test_a_key_that_is_none_is_asked_for_again(browser):
    """No HTTP header can carry such a key. Only one that the server took is kept."""
    browser.look(1000, 800)
    with serving(keys=[KEY]) as running:
        browser.open(running.url)
        for wrong in ("sk\u2013schl\u00fcssel\u20ac", "sk two words", "   ", "sk-wrong"):
            browser.until("document.getElementById('ask').open")
            browser.run("document.getElementById('ask-why').textContent = ''")
            enter_key(browser, wrong)
            browser.until("document.getElementById('ask').open && document.getElementById('ask-why').textContent")
            assert "not a valid key" in browser.text("#ask-why")[0] or wrong == "sk-wrong"
            assert browser.run("sessionStorage.getItem('key')") is None, wrong
        browser.run("sessionStorage.setItem('key', 'sk\u2013\u20ac')")  # as kept by an earlier version
        browser.open(running.url)
        browser.until("document.getElementById('ask').open")
        enter_key(browser, KEY)
        browser.until("document.querySelectorAll('#model option').length")
        assert browser.run("sessionStorage.getItem('key')") == KEY
        browser.open(running.url)
        browser.until("document.querySelectorAll('#model option').length")
        browser.run("sessionStorage.clear()")


def test_a_server_that_was_away_at_first(browser):
    browser.look(1000, 800)
    with serving() as running:
        browser.call("Network.setBlockedURLs", urls=["*/v1/models"])
        browser.open(running.url)
        browser.until("document.getElementById('status').textContent === 'The server cannot be reached.'")
        browser.drop(PICTURES[0])
        browser.until(DONE)
        assert browser.text(".text.error") == ["The server cannot be reached."]
        browser.call("Network.setBlockedURLs", urls=[])
        browser.drop(*PICTURES[1:3])
        browser.until(f"{DONE} && document.querySelectorAll('.line').length === 3")
        assert browser.text(".text")[1:] == [shown(line) for line in lines()[1:3]]
        assert browser.text("#model option") == [MODEL], "listed once"


def cancel_key(browser):
    browser.until("document.getElementById('ask').open")
    browser.key("Escape")
    browser.until("!document.getElementById('ask').open")


def enter_key(browser, key: str):
    browser.run(f"document.getElementById('key').value = {key!r}; document.getElementById('key').focus(); true")
    browser.key("Enter", "\r")


def test_a_server_that_goes_away_is_said(browser):
    browser.look(1000, 800)
    with serving() as running:
        browser.open(running.url)
        browser.until("document.querySelectorAll('#model option').length")
    browser.drop(PICTURES[0])
    browser.until(DONE)
    assert browser.text(".text.error") == ["The server cannot be reached."]
