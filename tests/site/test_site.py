"""The site is built without a warning, and every page of it is opened in a browser."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag
from zipfile import ZipFile

import pytest
from bs4 import BeautifulSoup
from site_browser import BROWSER, in_browser

ROOT = Path(__file__).parents[2]
WIDTHS = (390, 1400)
MIB = 1 << 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not BROWSER, reason="needs a browser of the Chromium family"),
]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a built site: that in the environment's SITE, or a new one."""
    if built := os.environ.get("SITE"):
        return Path(built)
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-c", "docs", "-b", "html", "-q", "-W"]
    done = subprocess.run(
        [*command, "--keep-going", ".", str(out)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[str, BeautifulSoup]:
    found = sorted(site.rglob("*.html"))
    return {
        path.relative_to(site).as_posix(): BeautifulSoup(path.read_text("utf-8"), "html.parser")
        for path in found
        if "_downloads" not in path.parts
    }


def test_every_link_image_and_anchor_exists(site: Path, pages: dict[str, BeautifulSoup]) -> None:
    anchors = {
        name: {tag["id"] for tag in page.find_all(id=True)} | {"", "top"}
        for name, page in pages.items()
    }
    wrong = []
    for name, page in pages.items():
        targets = [tag["href"] for tag in page.find_all(href=True)]
        targets += [tag["src"] for tag in page.find_all(src=True)]
        for target in targets:
            path, anchor = urldefrag(target)
            if re.match(r"[a-z]+:", path):
                continue
            other = (
                site / Path(name).parent / unquote(path).partition("?")[0] if path else site / name
            )
            relative = os.path.relpath(other, site)
            if not other.is_file() or (anchor and anchor not in anchors.get(relative, {anchor})):
                wrong.append(f"{name}: {target}")
    assert not wrong, wrong[:20]


def test_nothing_comes_from_another_host(pages: dict[str, BeautifulSoup]) -> None:
    loaded = [
        f"{name}: {tag}"
        for name, page in pages.items()
        for tag in page.find_all(["script", "img", "link", "iframe", "source"])
        if re.match(r"(https?:)?//", tag.get("src") or tag.get("href") or "")
        and tag.get("rel") != ["canonical"]
    ]
    assert not loaded


def test_each_example_is_one_click_from_the_landing_page(
    site: Path, pages: dict[str, BeautifulSoup]
) -> None:
    assert (
        pages["index.html"]
        .find("meta", attrs={"http-equiv": "refresh"})["content"]
        .endswith("url=docs/index.html")
    )
    tags = pages["docs/index.html"].select("article table a[href]")
    links = {os.path.normpath(f"docs/{tag['href']}") for tag in tags}
    examples = sorted((ROOT / "docs" / "gallery").glob("plot_*.py"))
    assert len(examples) >= 12
    for example in examples:
        name = f"docs/examples/{example.stem}.html"
        assert name in links
        page = pages[name]
        assert page.select(".highlight-Python pre")
        downloads = [tag["href"] for tag in page.select("a.download[href$='.py']")]
        texts = [(site / "docs" / "examples" / href).read_text("utf-8") for href in downloads]
        assert texts == [example.read_text("utf-8")]


def test_every_measured_number_can_be_downloaded(
    site: Path, pages: dict[str, BeautifulSoup]
) -> None:
    contents = []
    for tag in pages["docs/measurements.html"].select("article a[href]"):
        file = site / "docs" / tag["href"]
        if file.suffix == ".json":
            contents.append(file.read_bytes())
        elif file.suffix == ".zip":
            with ZipFile(file) as archive:
                for name in archive.namelist():
                    contents.append(archive.read(name))
                    assert contents[-1] == (ROOT / name).read_bytes()
    measured = [
        path
        for path in (ROOT / "docs").rglob("*.json")
        if not {"examples", "work"} & set(path.relative_to(ROOT).parts)
    ]
    assert len(measured) > 60
    assert [path for path in measured if path.read_bytes() not in contents] == []


def test_every_page_in_a_browser(site: Path, pages: dict[str, BeautifulSoup]) -> None:
    names = [name for name in pages if name != "index.html"]
    body = f"""
      const seen = [];
      for (const width of {json.dumps(WIDTHS)})
        for (const name of {json.dumps(names)}) {{
          const [inner, errors] = await open("/" + name, width);
          const page = inner.document;
          for (const image of page.images) {{ image.loading = "eager"; await image.decode()
            .catch(() => errors.push("image " + image.src)); }}
          const wide = page.documentElement.scrollWidth - page.documentElement.clientWidth;
          let weight = inner.performance.getEntriesByType("navigation")[0].decodedBodySize;
          for (const entry of inner.performance.getEntriesByType("resource"))
            weight += entry.decodedBodySize;
          const broken = [...page.querySelectorAll("table.docutils code .pre")].filter((word) =>
            /^\\w+$/.test(word.textContent) && word.getClientRects().length > 1);
          const words = broken.map((word) => word.textContent);
          seen.push({{ name, width, wide, weight, errors, words }});
        }}
      return seen;
    """
    seen, asked = in_browser(site, body)
    assert len(seen) == len(WIDTHS) * len(names)
    assert len(asked) > len(names)
    assert [page for page in seen if page["errors"]] == []
    assert [page for page in seen if page["wide"] > 0] == []
    assert [page for page in seen if page["words"]] == []
    heavy = [page for page in seen if page["weight"] > MIB and "/examples/" not in page["name"]]
    assert heavy == []


def test_the_search_finds_the_page_for_each_question(site: Path) -> None:
    rows = re.findall(
        r"^\| ([^|]+) \| `([^`]+)` \| \[[^]]*\]\(([^)]+)\)",
        (ROOT / "docs" / "questions.md").read_text("utf-8"),
        flags=re.MULTILINE,
    )
    assert len(rows) >= 15
    body = f"""
      const found = [];
      for (const words of {json.dumps([words for _, words, _ in rows])}) {{
        const [inner] = await open("/search.html?q=" + encodeURIComponent(words), 1400,
          (w) => /finished|did not match/.test(w.document.body.textContent));
        const links = inner.document.querySelectorAll("#search-results li > a");
        found.push([...links].map((link) => new URL(link.href).pathname));
      }}
      return found;
    """
    found, _ = in_browser(site, body)
    for (question, _, target), results in zip(rows, found, strict=True):
        page = urldefrag(target)[0]
        wanted = os.path.normpath(f"/docs/{re.sub('[.](md|py|rst)$', '', page)}.html")
        wanted = wanted.replace("/docs/gallery/", "/docs/examples/")
        assert wanted in results[:5], f"{question}: {wanted} is not in {results[:5]}"
