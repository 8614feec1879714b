"""A headless Chromium, driven through the DevTools protocol over a pipe: no port, and no package needed."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
_PATIENCE = 60.0


def executable() -> str | None:
    """The browser of this machine, if it has one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page of a browser.

    Attributes:
        heard: every event of the protocol, oldest first.
    """

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.heard: list[dict[str, Any]] = []
        self._in, self._out, self._rest, self._number = to_browser, from_browser, b"", 0
        self._session: str | None = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the protocol and waits for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._in, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self.heard.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._out], [], [], _PATIENCE)[0], "the browser does not answer"
            self._rest += os.read(self._out, 1 << 20)
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        answer = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 30.0) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < end, f"never true: {condition}"
            time.sleep(0.02)

    def open(self, file: Path, width: int = 1280, height: int = 900, *, dark: bool = False) -> None:
        """Opens a file and waits until its figures are drawn."""
        self.heard.clear()
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.prefer("dark" if dark else "light")
        self.ask("Page.navigate", url=file.resolve().as_uri())
        self.wait(f"location.href === {json.dumps(file.resolve().as_uri())}")
        self.wait("document.documentElement && document.documentElement.dataset.drawn")

    def prefer(self, scheme: str) -> None:
        """What the system is said to prefer."""
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def hover(self, x: float, y: float) -> None:
        """Moves the mouse."""
        for step in (3, 1, 0):  # a movement, as a hand makes it
            self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x - step, y=y - step)

    def screenshot(self, file: Path) -> None:
        """Writes a screenshot of the whole page."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(shot["data"]))

    def print_to(self, file: Path) -> None:
        """Prints the page."""
        paper = self.ask("Page.printToPDF", printBackground=False, paperWidth=8.27, paperHeight=11.69)
        file.write_bytes(base64.b64decode(paper["data"]))

    def events(self, *methods: str) -> list[Mapping[str, Any]]:
        """The parameters of what was heard since the page was opened."""
        return [event["params"] for event in self.heard if event.get("method") in methods]


@contextmanager
def browser(profile: Path, options: Callable[[], tuple[str, ...]] = lambda: ()) -> Iterator[Page]:
    """Starts a browser with a fresh profile, and ends it.

    Args:
        profile: an empty folder.
        options: more words of its command line.
    """
    program = executable()
    assert program is not None
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    # The protocol speaks over the descriptors 3 and 4.
    start = f'exec "$@" 3<&{to_read} 4>&{from_write}'
    words = ["bash", "-c", start, "bash", program, *OPTIONS, *options(), f"--user-data-dir={profile}"]
    with (profile.parent / "chromium.log").open("wb") as log:
        process = subprocess.Popen(words, pass_fds=(to_read, from_write), stdout=log, stderr=log)
    os.close(to_read)
    os.close(from_write)
    try:
        yield Page(to_write, from_read)
    finally:
        process.terminate()
        process.wait(timeout=20)
        os.close(to_write)
        os.close(from_read)
