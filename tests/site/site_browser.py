"""Opens pages of a built site in a headless browser and returns what a script sees there."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    # Any other host leads nowhere, so that a page that loads something from one fails.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


class _Handler(SimpleHTTPRequestHandler):
    answer: dict[str, Any]
    done: threading.Event
    script: str
    asked: list[str]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path != "/-":
            super().do_GET()
            return
        body = f'<!doctype html><meta charset="utf-8"><body><script>{self.script}</script>'
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(body.encode())

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer.update(json.loads(text))
        self.send_response(204)
        self.end_headers()
        self.done.set()


DRIVER = """
const open = (path, width, ready) => new Promise((resolve) => {
  const frame = document.createElement("iframe");
  frame.style = `width:${width}px;height:900px;border:0`;
  const errors = [];
  frame.src = path;
  document.body.replaceChildren(frame);
  const early = setInterval(() => {
    const inner = frame.contentWindow;
    if (inner && inner.location.href !== "about:blank" && !inner.watched) {
      inner.watched = true;
      inner.addEventListener("error", (e) => errors.push(
        e.message || `${e.target.tagName} ${e.target.src || e.target.href}`), true);
      const log = inner.console.error;
      inner.console.error = (...words) => { errors.push(words.join(" ")); log(...words); };
    }
  }, 0);
  frame.onload = async () => {
    clearInterval(early);
    const inner = frame.contentWindow;
    for (let i = 0; ready && i < 400 && !ready(inner); i++)
      await new Promise((next) => setTimeout(next, 25));
    resolve([inner, errors]);
  };
});
const run = async () => { BODY };
run().then((value) => ({ value }), (error) => ({ error: String(error.stack) })).then((answer) =>
  fetch("/answer", { method: "POST", body: JSON.stringify(answer) }));
"""


def in_browser(site: Path, body: str, timeout: float = 500.0) -> tuple[Any, list[str]]:
    """Run the body of an async function beside the site, and return its value and what was fetched.

    ``open(path, width, ready)`` opens a page there and resolves to its window and its errors.
    """
    asked: list[str] = []
    answer: dict[str, Any] = {}
    done = threading.Event()
    state = {
        "script": DRIVER.replace("BODY", body),
        "answer": answer,
        "done": done,
        "asked": asked,
    }
    handler = type("Handler", (_Handler,), state)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        address = f"http://127.0.0.1:{server.server_port}/-"
        command = [BROWSER, *FLAGS, "--window-size=1500,1000", f"--user-data-dir={profile}"]
        browser = subprocess.Popen(
            [*command, "--remote-debugging-port=0", address],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            if not done.wait(timeout):
                raise TimeoutError(f"the browser gave no answer in {timeout:.0f} s")
        finally:
            browser.terminate()
            browser.wait()
            server.shutdown()
            server.server_close()
    if "error" in answer:
        raise AssertionError(answer["error"])
    return answer["value"], asked
