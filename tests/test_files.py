"""Files that are written in one piece, and what stands at their place before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ntkmtl.files import atomic_write, write_text


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_half(path: Path) -> None:
    with atomic_write(path) as file:
        file.write(b"half")
        raise ValueError("no more")


@pytest.fixture
def link(tmp_path: Path) -> Path:
    """A link to ``there/page.html``, relative to its own folder."""
    (tmp_path / "there").mkdir()
    made = tmp_path / "link.html"
    try:
        made.symlink_to(Path("there") / "page.html")
    except OSError:
        pytest.skip("links may not be made here")
    return made


@pytest.mark.parametrize("before", ["earlier", None])
def test_a_link_is_written_through(link: Path, before: str | None) -> None:
    page = link.parent / "there" / "page.html"
    if before is not None:
        page.write_text(before)
    write_text(link, "new")
    assert link.is_symlink()
    assert page.read_text() == "new"
    assert not page.is_symlink()
    assert listed(page.parent) == ["page.html"]
    assert listed(link.parent) == ["link.html", "there"]


def test_a_link_to_a_file_is_left_whole_by_an_error(link: Path) -> None:
    page = link.parent / "there" / "page.html"
    page.write_text("earlier")
    with pytest.raises(ValueError, match="no more"):
        write_half(link)
    assert page.read_text() == "earlier"
    assert listed(page.parent) == ["page.html"]


def test_a_link_is_kept_as_the_previous_file(link: Path) -> None:
    page = link.parent / "there" / "page.html"
    page.write_text("earlier")
    previous = link.with_name("previous.html")
    with atomic_write(link, previous) as file:
        file.write(b"new")
    assert (link.read_text(), previous.read_text(), page.read_text()) == (
        *("new", "earlier", "earlier"),
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_is_written_to(tmp_path: Path, linked: bool) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    path = pipe
    if linked:
        path = tmp_path / "link"
        path.symlink_to(pipe)
    # Open before it is written to, so that writing does not wait.
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(path, "whole")
        assert os.read(reader, 100) == b"whole"
        with pytest.raises(ValueError, match="no more"):
            write_half(path)
        assert os.read(reader, 100) == b""
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert listed(tmp_path) == (["link", "pipe"] if linked else ["pipe"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_a_device_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    # By a link: were it replaced, it would be this one and not the device.
    path = tmp_path / "full"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: .*full"):
        write_text(path, "text")
    assert path.is_symlink()
