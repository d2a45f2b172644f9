"""Headless Chromium with its log of requests, for tests of pages as users see them."""

from __future__ import annotations

import json
import shutil
import time
from typing import TYPE_CHECKING, Any

import pytest
from selenium import webdriver

if TYPE_CHECKING:
    from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
SECONDS = 20.0

needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)",
)


class Browser:
    """One Chromium, showing one page at a time."""

    def __init__(self) -> None:
        options = webdriver.ChromeOptions()
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.add_argument("--hide-scrollbars")
        options.binary_location = str(CHROMIUM)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(executable_path=str(DRIVER))
        self.driver = webdriver.Chrome(options=options, service=service)

    def open(self, page: Path, *, width: int = 1200, scheme: str = "light") -> None:
        """Open a file at a width and in a colour scheme, and wait until its charts are drawn."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        self.command("Emulation.setEmulatedMedia", features=[feature])
        self.messages()
        self.requests()
        self.driver.get(page.resolve().as_uri())
        charts = "document.querySelectorAll('figure[data-chart]')"
        drawn = "document.querySelectorAll('figure[data-chart] :is(svg, canvas)')"
        self.until(f"{charts}.length === {drawn}.length")

    def command(self, name: str, **parameters: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, parameters)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a function body in the page and return its result."""
        return self.driver.execute_script(script, *arguments)

    def until(self, condition: str) -> None:
        """Wait until an expression is true."""
        begin = time.monotonic()
        while not self.run(f"return {condition}"):
            assert time.monotonic() - begin < SECONDS, f"not true after {SECONDS} s: {condition}"
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
        return list(self.run(script, selector))

    def type(self, selector: str, value: object) -> None:
        """Set an input's value, as typing or dragging does."""
        script = (
            "const input = document.querySelector(arguments[0]); input.value = arguments[1];"
            "input.dispatchEvent(new Event('input', { bubbles: true }));"
        )
        self.run(script, selector, str(value))

    def messages(self) -> list[str]:
        """Console messages since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """URLs requested since the last call."""
        events = [
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        ]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def close(self) -> None:
        self.driver.quit()
