"""Loading a page in a headless browser of any width, and asking it what a reader would see."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    # Any name but that of a file leads nowhere, so that a page that loads something fails.
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
    "--v=0",
    "--virtual-time-budget=20000",
    "--dump-dom",
)
DARK = "--blink-settings=preferredColorScheme=0"

# A window is 500 pixels wide at least, a frame in it as narrow as a phone.
FRAME = """<!DOCTYPE html>
<pre id="seen"></pre>
<script>addEventListener("message", (event) => {
  document.getElementById("seen").textContent = event.data;
});</script>
<iframe src="{page}" style="border: 0; width: {width}px; height: 1000px"></iframe>
"""
ASK = """
addEventListener("load", () => setTimeout(async () => {
  let seen;
  try { seen = await (async () => { %s })(); }
  catch (error) { seen = { error: String(error && error.stack) }; }
  parent.postMessage(JSON.stringify(seen), "*");
}, 500));
"""


@cache
def browser() -> str:
    for name in BROWSERS:
        found = shutil.which(name)
        if found:
            return found
    pytest.skip(f"no browser on this machine (looked for {', '.join(BROWSERS)})")


def dump(page: Path, profile: Path, *flags: str) -> tuple[str, list[str]]:
    """Load a page and return its document and what it wrote to the console."""
    done = subprocess.run(
        [browser(), *FLAGS, *flags, f"--user-data-dir={profile}", page.as_uri()],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def ask(
    page: Path, script: str, tmp_path: Path, *, width: int = 1280, dark: bool = False
) -> dict[str, Any]:
    """Run a script in a copy of a page after its own, and return what it returns."""
    text = page.read_text(encoding="utf-8")
    script = ASK % script
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = text.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    text = text.replace("</body>", f"<script>{script}</script></body>")
    copy, frame = tmp_path / "asked.html", tmp_path / "frame.html"
    copy.write_text(text, encoding="utf-8")
    frame.write_text(
        FRAME.replace("{page}", copy.as_uri()).replace("{width}", str(width)), encoding="utf-8"
    )
    flags = [f"--window-size={max(width, 500) + 40},1100", *([DARK] if dark else [])]
    document, lines = dump(frame, tmp_path / "profile", *flags)
    assert lines == []
    found = re.search(r'<pre id="seen">(.*?)</pre>', document, re.DOTALL)
    assert found, "the page did not finish loading"
    assert found[1], "the page did not finish loading"
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    assert "error" not in seen, seen["error"]
    return seen
