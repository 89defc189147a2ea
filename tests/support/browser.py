"""Headless Chromium, driven over its DevTools protocol: for tests of pages."""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--no-default-browser-check", "--hide-scrollbars", "--remote-debugging-port=0",
)  # fmt: skip
#: Seconds: a busy machine starts a browser slowly.
_PATIENCE_S = 300.0


def require_chromium() -> str:
    """The browser's path; without one the test is skipped."""
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if found is None:
        pytest.skip("no Chromium on PATH: install Debian's package chromium")
    return found


@contextlib.contextmanager
def open_browser(folder: Path, *, width: int = 1280, height: int = 800) -> Iterator["Browser"]:
    """A browser with one blank page; it is ended with the block.

    Args:
        folder: for its profile and its log.
        width: of the window, in pixels.
        height: of the window, in pixels.
    """
    websocket = pytest.importorskip("websocket", reason="websocket-client is missing: pip install medloss[test]")
    profile = folder / "chromium"
    profile.mkdir(parents=True)
    command = [
        require_chromium(),
        *_FLAGS,
        f"--user-data-dir={profile}",
        f"--window-size={width},{height}",
        "about:blank",
    ]
    # Not what other programs of the session run on: it would look for them, and tell of it.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DBUS_")}
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment
        )
    try:
        address = _page_address(profile, process, folder / "chromium.log")
        # Chromium refuses who names an origin that it was not told of.
        socket = websocket.create_connection(address, suppress_origin=True, timeout=_PATIENCE_S)
        try:
            browser = Browser(socket)
            for domain in ("Page", "Runtime", "Network", "Log"):
                browser.call(f"{domain}.enable")
            browser.resize(width, height)
            yield browser
        finally:
            socket.close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _page_address(profile: Path, process: "subprocess.Popen[bytes]", log: Path) -> str:
    port_file = profile / "DevToolsActivePort"
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"chromium ended: {log.read_text(errors='replace')[-2000:]}"
        with contextlib.suppress(OSError, IndexError, StopIteration):
            port = port_file.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=5) as answer:
                targets = json.load(answer)
            return str(next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page"))
        time.sleep(0.1)
    raise AssertionError(f"chromium opened no port: {log.read_text(errors='replace')[-2000:]}")


@dataclass
class Browser:
    """One page of a headless browser.

    Attributes:
        console: what the page said: `error: text`, `warning: text`, `log: text`, and `exception: text` for an uncaught
            one; since the last `open`.
        requests: the addresses of all requests that it made, since the last `open`; `data:` and `blob:` are none.
        failed: requests that got no answer, or one from 400 on: `404 address`, `net::ERR_... address`.
    """

    socket: Any
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    _last: int = 0
    _loaded: bool = False
    _addresses: dict[str, str] = field(default_factory=dict)

    def open(self, address: str | Path, *, timeout: float = _PATIENCE_S) -> None:
        """Load a page, and wait for its `load` event.

        Args:
            address: a URL, or a file's path.
            timeout: seconds.
        """
        self.console.clear()
        self.requests.clear()
        self.failed.clear()
        url = address.resolve().as_uri() if isinstance(address, Path) else address
        self._loaded = False
        answer = self.call("Page.navigate", url=url)
        assert not answer.get("errorText"), f"{url}: {answer['errorText']}"
        if "loaderId" not in answer:
            return  # only the part after # differs: nothing is loaded
        deadline = time.monotonic() + timeout
        while not self._loaded:
            assert time.monotonic() < deadline, f"{url} was not loaded in {timeout:g} s"
            self._take(self._receive(deadline))

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited. An exception in it fails the test."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{script}: {_exception(answer['exceptionDetails'])}")
        return answer["result"].get("value")

    def wait_for(self, script: str, *, timeout: float = _PATIENCE_S, what: str = "") -> Any:
        """Wait until a JavaScript expression is truthy; returns its value."""
        deadline = time.monotonic() + timeout
        while not (value := self.evaluate(script)):
            if time.monotonic() > deadline:
                shown = str(self.evaluate("document.body.innerText"))[:3000]
                raise AssertionError(f"not in {timeout:g} s: {what or script}; the page says: {shown}")
            time.sleep(0.1)
        return value

    def wait_for_text(self, text: str, *, timeout: float = _PATIENCE_S) -> None:
        """Wait until a text is seen on the page."""
        self.wait_for(
            f"document.body.innerText.includes({json.dumps(text)})", timeout=timeout, what=f"the text '{text}'"
        )

    def text(self) -> str:
        """What a reader sees."""
        return str(self.evaluate("document.body.innerText"))

    def click(self, selector: str, text: str | None = None, *, timeout: float = _PATIENCE_S) -> None:
        """Click the first element that a CSS selector finds, as a mouse does; waits until it is there.

        Args:
            selector: of CSS.
            text: that the element, trimmed, must have.
            timeout: seconds.
        """
        found = f"[...document.querySelectorAll({json.dumps(selector)})]"
        if text is not None:
            found += f".filter(e => e.textContent.trim() === {json.dumps(text)})"
        found += ".filter(e => e.getClientRects().length)[0]"
        self.wait_for(f"!!{found}", timeout=timeout, what=f"{selector} {text or ''}")
        x, y = self.evaluate(
            f"(() => {{ const e = {found}; e.scrollIntoView({{block: 'center', behavior: 'instant'}});"
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def resize(self, width: int, height: int) -> None:
        """Give the page a window of this many CSS pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def set_media(self, *, dark: bool = False, print_: bool = False) -> None:
        """What the page is told of its reader: a dark or light mode, a printer or a screen."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="print" if print_ else "screen", features=[scheme])

    def screenshot(self, path: Path, *, whole: bool = False) -> Path:
        """Write a PNG of the window, or of the whole page; returns its path."""
        params: dict[str, Any] = {}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
            params = {"captureBeyondViewport": True, "clip": clip}
        answer = self.call("Page.captureScreenshot", format="png", **params)
        path.write_bytes(base64.b64decode(answer["data"]))
        return path

    def pdf(self, path: Path) -> Path:
        """Write what a printer would get, as PDF on A4; returns its path."""
        answer = self.call("Page.printToPDF", printBackground=True, paperWidth=8.27, paperHeight=11.69)
        path.write_bytes(base64.b64decode(answer["data"]))
        return path

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Any command of the protocol; its events that come meanwhile are noted."""
        self._last += 1
        self.socket.send(json.dumps({"id": self._last, "method": method, "params": params}))
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            message = self._receive(deadline)
            if message.get("id") == self._last:
                assert "error" not in message, f"{method}: {message['error']}"
                return dict(message["result"])
            self._take(message)

    def _receive(self, deadline: float) -> dict[str, Any]:
        self.socket.settimeout(max(0.1, deadline - time.monotonic()))
        return dict(json.loads(self.socket.recv()))

    def _take(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.consoleAPICalled":
            said = " ".join(str(part.get("value", part.get("description", ""))) for part in params["args"])
            self.console.append(f"{params['type']}: {said}")
        elif method == "Runtime.exceptionThrown":
            self.console.append(f"exception: {_exception(params['exceptionDetails'])}")
        elif method == "Log.entryAdded":
            entry = params["entry"]
            self.console.append(f"{entry['level']}: {entry['text']} {entry.get('url', '')}".strip())
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            self._addresses[params["requestId"]] = url
            if not url.startswith(("data:", "blob:")):
                self.requests.append(url)
        elif method == "Network.responseReceived" and params["response"]["status"] >= 400:
            self.failed.append(f"{params['response']['status']} {params['response']['url']}")
        elif method == "Network.loadingFailed" and not params.get("canceled"):
            self.failed.append(f"{params['errorText']} {self._addresses.get(params['requestId'], '')}")


def _exception(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details["text"])
