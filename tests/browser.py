"""A headless Chromium, driven through the pipe of its own debugging protocol: nothing to install but the browser."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-extensions --disable-dev-shm-usage --mute-audio --hide-scrollbars
--force-color-profile=srgb --remote-debugging-pipe""".split()


def chromium() -> str:
    """The browser's path; skips the test where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("needs Chromium (Debian: apt-get install chromium), which is absent")


class Browser:
    """One window. `events` are the protocol's events so far, `problems` what the page's console complained about."""

    def __init__(self, binary: str):
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        commands, answers = os.pipe(), os.pipe()
        given = commands[0], answers[1]  # the browser reads from 3 and writes to 4: bash puts them there
        command = ["bash", "-c", f'exec "$0" "$@" 3<&{given[0]} 4>&{given[1]}', binary, *FLAGS]
        command += [f"--user-data-dir={self._profile.name}", "about:blank"]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, pass_fds=given, stdout=quiet, stderr=quiet)
        for end in given:
            os.close(end)
        self._out, self._in, self._rest, self._number = os.fdopen(commands[1], "wb", 0), os.fdopen(answers[0], "rb", 0), b"", 0
        os.set_blocking(self._in.fileno(), False)
        self.events: list[dict] = []
        self._session: str | None = None
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters) -> dict:
        """A command of the protocol and its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        until = time.monotonic() + 60
        while time.monotonic() < until:
            for answer in self._receive():
                if answer.get("id") == self._number:
                    assert "error" not in answer, answer
                    return answer["result"]
                self.events.append(answer)
        raise TimeoutError(method)

    def _receive(self) -> list[dict]:
        chunk = self._in.read(1 << 20)
        if not chunk:
            assert self._process.poll() is None, "the browser has ended"
            time.sleep(0.005)
            return []
        *messages, self._rest = (self._rest + chunk).split(b"\0")
        return [json.loads(message) for message in messages]

    def open(self, url: str):
        self.events.clear()
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def run(self, script: str):
        """The value of an expression in the page; promises are waited for."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str, seconds: float = 20):
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never came true: {script}\n{self.run('document.body.innerText')}"
            time.sleep(0.03)
        return value

    def text(self, selector: str) -> list[str]:
        return self.run(f"[...document.querySelectorAll({selector!r})].map(e => e.textContent)")

    def heard(self) -> list[tuple[str, str]]:
        """Role and name of all that a screen reader finds."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        seen = [node for node in nodes if not node["ignored"] and node["role"]["value"] != "InlineTextBox"]
        return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in seen]

    def drop(self, *files: Path):
        """Drags files from outside onto the page."""
        self._drop(items=[], files=[str(file) for file in files])

    def drop_text(self, text: str):
        """Drags text onto the page."""
        self._drop(items=[{"mimeType": "text/plain", "data": text}], files=[])

    def _drop(self, **what):
        data = {**what, "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=200, y=200, data=data)

    def key(self, name: str, text: str = ""):
        code = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32}[name]
        for kind in ("keyDown", "keyUp"):
            extra = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=name, windowsVirtualKeyCode=code, **extra)

    def look(self, width: int, height: int, *, dark: bool = False, phone: bool = False):
        """The window's size, and what its user prefers."""
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme, {"name": "prefers-reduced-motion", "value": "reduce"}])

    def screenshot(self, path: Path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    @property
    def requested(self) -> list[str]:
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]

    @property
    def problems(self) -> list[dict]:
        """Uncaught exceptions, and errors and warnings in the console."""
        exceptions = [e["params"] for e in self.events if e.get("method") == "Runtime.exceptionThrown"]
        entries = [e["params"]["entry"] for e in self.events if e.get("method") == "Log.entryAdded"]
        return exceptions + [e for e in entries if e["level"] in ("error", "warning")]

    def close(self):
        self._process.kill()
        self._process.wait()
        self._out.close()
        self._in.close()
        self._profile.cleanup()
