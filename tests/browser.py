"""A real browser: headless Chromium, driven by its own driver over the W3C WebDriver protocol.

Debian's packages chromium and chromium-driver; without them the test is skipped.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import urllib.request
from typing import TYPE_CHECKING, Any

from rig.programs import find
from rig.waiting import wait_until

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # The key that the protocol has for elements.
_TIMEOUT_SECONDS = 60


class Browser:
    """One window, 1280 by 900; gone at the end of the `with` block."""

    def __init__(self) -> None:
        chromium = find("chromium", "chromium")
        driver = find("chromedriver", "chromium-driver")
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        self._driver = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._driver.stdout
        # "ChromeDriver was started successfully on port 12345."
        for line in self._driver.stdout:
            if "successfully on port" in line:
                self._base = f"http://127.0.0.1:{line.rstrip('. ' + chr(10)).rpartition(' ')[2]}"
                break
        arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--window-size=1280,900",
            f"--user-data-dir={self._profile}",
        ]
        options = {"binary": chromium, "args": arguments}
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        self._session = ""
        self._session = "/session/" + self._call("POST", "/session", wanted)["sessionId"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._call("DELETE", "")
        finally:
            self._driver.terminate()
            self._driver.wait(10)
            if self._driver.stdout:
                self._driver.stdout.close()
            shutil.rmtree(self._profile, ignore_errors=True)

    def _call(self, method: str, path: str, document: Any = None) -> Any:
        data = None if method != "POST" else json.dumps(document or {}).encode()
        request = urllib.request.Request(  # noqa: S310 - of our own driver
            self._base + self._session + path,
            data,
            {"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310
            return json.load(answer)["value"]

    def open(self, url: str) -> None:
        """Go to a page."""
        self._call("POST", "/url", {"url": url})

    def _element(self, selector: str) -> str:
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        return str(found[_ELEMENT])

    def write(self, selector: str, text: str) -> None:
        """Type into a field."""
        self._call("POST", f"/element/{self._element(selector)}/value", {"text": text})

    def tick(self, selector: str) -> None:
        """Click on a box that stays on its page."""
        self._call("POST", f"/element/{self._element(selector)}/click")

    def click(self, selector: str) -> None:
        """Click on what leads to another page; returns when that page is loaded.

        The protocol lets a click return before the browser has begun to leave the page, so the old
        document is marked, and the mark must have gone with it.
        """
        self._run("window.isBeingLeft = true")
        self._call("POST", f"/element/{self._element(selector)}/click")
        arrived = "return !window.isBeingLeft && document.readyState === 'complete'"
        wait_until(lambda: self._run(arrived), f"a click on {selector} leads to a page", 30)

    def _run(self, script: str) -> Any:
        return self._call("POST", "/execute/sync", {"script": script, "args": []})

    def text(self, selector: str = "body") -> str:
        """What a part of the page shows."""
        return str(self._call("GET", f"/element/{self._element(selector)}/text"))

    def screenshot(self, path: str) -> None:
        """Write a picture of the window."""
        with open(path, "wb") as file:
            file.write(base64.b64decode(self._call("GET", "/screenshot")))
