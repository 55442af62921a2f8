"""A report in a real browser: nothing asked of the network, no error, nothing wider than the screen.

    python benchmarks/report_browser.py FOLDER [--out DIR] [--browser chromium]

Opens ``FOLDER/report.html`` in headless Chromium as wide as a telephone and as a desk, light and dark, with every
section unfolded, and prints it. Fails if the page asks for anything but itself, if the console shows an error or a
warning, if it is wider than the window, or if letters come out smaller than can be read. Writes a screenshot of each,
and ``report.pdf``. Chromium is driven over its debugging pipe, so that nothing but the browser has to be installed.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Any

WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")
SMALLEST = 9.0
"""CSS pixels that letters of a chart must have on a telephone."""

# What a reader would see go wrong, asked of the laid-out page.
LOOK = """
(() => {
  const width = document.documentElement.clientWidth;
  const scrolls = e => { for (; e; e = e.parentElement) if (getComputedStyle(e).overflowX === 'auto') return true; };
  const outside = [...document.body.querySelectorAll('*')].filter(e => {
    const box = e.getBoundingClientRect();
    return box.width && (box.right > width + 1 || box.left < -1) && !scrolls(e);
  }).map(e => e.tagName + '.' + (e.className.baseVal ?? e.className) + ': ' + e.textContent.trim().slice(0, 40));
  const letters = [...document.querySelectorAll('svg.chart .label')].map(e =>
    parseFloat(getComputedStyle(e).fontSize) * e.ownerSVGElement.getBoundingClientRect().width /
    e.ownerSVGElement.viewBox.baseVal.width);
  const boxes = svg => [...svg.querySelectorAll('.label')].map(e => [e, e.getBoundingClientRect()]);
  const overlapping = [...document.querySelectorAll('svg.chart')].flatMap(svg => boxes(svg).flatMap(([a, p], i) =>
    boxes(svg).slice(i + 1).filter(([b, q]) => p.left < q.right && q.left < p.right && p.top < q.bottom - 1 &&
      q.top < p.bottom - 1).map(([b]) => a.textContent + ' / ' + b.textContent)));
  const broken = [...document.querySelectorAll('svg image')].filter(e => !e.getBBox().width).length;
  return {scroll: document.documentElement.scrollWidth, width, outside, overlapping, broken,
          letters: letters.length ? Math.min(...letters) : null};
})()
"""


class Browser:
    """Chromium at the other end of its debugging pipe: one JSON message after another, each ended by a zero byte."""

    def __init__(self, writer: BufferedWriter, reader: BufferedReader) -> None:
        self.writer, self.reader = writer, reader
        self.numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []
        self.session: str | None = None
        self.held = b""

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; what happens meanwhile is kept in ``events``."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.writer.write(json.dumps(message).encode() + b"\0")
        self.writer.flush()
        while True:
            answer = self._next()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return dict(answer.get("result", {}))

    def wait_for(self, event: str) -> None:
        """Read on until the event has come."""
        while not any(e.get("method") == event for e in self.events):
            self._next()

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.held:
            piece = self.reader.read1(1 << 20)
            if not piece:
                raise RuntimeError("the browser ended; see whether it starts by itself.")
            self.held += piece
        held, _, self.held = self.held.partition(b"\0")
        message: dict[str, Any] = json.loads(held)
        if "method" in message:
            self.events.append(message)
        return message


@contextmanager
def browser(command: str) -> Iterator[Browser]:
    """A headless Chromium with a page of its own."""
    ours, theirs = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory() as profile:
        options = [
            command, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--disable-gpu",
            "--no-first-run", "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
        ]  # fmt: skip
        # Chromium reads commands from descriptor 3 and answers on 4.
        process = subprocess.Popen(
            ["sh", "-c", f'exec "$@" 3<&{ours[0]} 4>&{theirs[1]}', "sh", *options],
            pass_fds=(ours[0], theirs[1]),
            stderr=subprocess.DEVNULL,
        )
        os.close(ours[0])
        os.close(theirs[1])
        try:
            with os.fdopen(ours[1], "wb") as writer, os.fdopen(theirs[0], "rb") as reader:
                page = Browser(writer, reader)
                target = page.ask("Target.createTarget", url="about:blank")["targetId"]
                page.session = page.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
                for domain in ("Page", "Runtime", "Network", "Log"):
                    page.ask(f"{domain}.enable")
                yield page
                page.session = None
                page.ask("Browser.close")
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(timeout=30)


def visit(page: Browser, url: str, width: int, scheme: str) -> list[str]:
    """Open the page; returns what is wrong with it."""
    page.events.clear()
    page.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
    page.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.ask("Page.navigate", url=url)
    page.wait_for("Page.loadEventFired")
    run(page, "document.querySelectorAll('details').forEach(d => d.open = true)")
    seen = run(page, LOOK)
    wrong = [f"asks for {u}" for u in requests(page.events) if not u.startswith("data:") and u != url]
    wrong += complaints(page.events)
    if seen["scroll"] > seen["width"]:
        wrong.append(f"is {seen['scroll']} pixels wide")
    wrong += [f"leaves the window: {what}" for what in seen["outside"]]
    wrong += [f"labels overlap: {what}" for what in seen["overlapping"]]
    if seen["broken"]:
        wrong.append(f"{seen['broken']} pictures are not shown")
    if seen["letters"] is not None and seen["letters"] < SMALLEST:
        wrong.append(f"letters of {seen['letters']:.1f} pixels")
    return wrong


def run(page: Browser, script: str) -> Any:
    """Evaluate JavaScript in the page."""
    return page.ask("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")


def requests(events: list[dict[str, Any]]) -> list[str]:
    """Addresses that were asked for."""
    return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


def complaints(events: list[dict[str, Any]]) -> list[str]:
    """What the console shows."""
    found = []
    for event in events:
        what = event["params"]
        if event["method"] == "Runtime.exceptionThrown":
            found.append(f"exception: {what['exceptionDetails']['text']}")
        elif event["method"] == "Runtime.consoleAPICalled" and what["type"] in ("error", "warning"):
            found.append(f"console: {what['args']}")
        elif event["method"] == "Log.entryAdded" and what["entry"]["level"] in ("error", "warning"):
            found.append(f"console: {what['entry']['text']}")
    return found


def picture(page: Browser, width: int, path: Path) -> None:
    """A screenshot of the whole page."""
    height = page.ask("Page.getLayoutMetrics")["cssContentSize"]["height"]
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot = page.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
    path.write_bytes(base64.b64decode(shot["data"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of an audit with its report")
    parser.add_argument("--out", type=Path, help="for the screenshots; beside the report by default")
    parser.add_argument("--browser", default="chromium")
    chosen = parser.parse_args()
    report = (chosen.folder / "report.html").resolve()
    out = chosen.out or chosen.folder / "screenshots"
    if not report.is_file():
        parser.error(f"{report} is missing; write it with: cease report {chosen.folder}")
    if shutil.which(chosen.browser) is None:
        parser.error(f"{chosen.browser} is not installed; install it, or name another one with --browser")
    out.mkdir(parents=True, exist_ok=True)
    failed = False
    with browser(chosen.browser) as page:
        for width, scheme in itertools.product(WIDTHS, SCHEMES):
            wrong = visit(page, report.as_uri(), width, scheme)
            picture(page, width, out / f"{width}-{scheme}.png")
            print(f"{width} {scheme}: {'good' if not wrong else ''}", *wrong, sep="\n  ")
            failed = failed or bool(wrong)
        pdf = page.ask("Page.printToPDF", printBackground=False)
        (out / "report.pdf").write_bytes(base64.b64decode(pdf["data"]))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
