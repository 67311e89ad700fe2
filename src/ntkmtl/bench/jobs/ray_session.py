"""Ray: joining a cluster or starting one at 127.0.0.1, and what its workers have in common."""

from __future__ import annotations

import contextlib
import importlib
import ipaddress
import os
import platform
import secrets
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ntkmtl.bench.compute.environment import versions
from ntkmtl.bench.jobs.engine import EngineError, handlers_kept
from ntkmtl.files import write_text

__all__ = ["LOOPBACK", "Surroundings", "first_line", "ray_session", "shared_surroundings"]

# Without clusters, which Ray leaves out on Windows and macOS, it binds to 127.0.0.1 only. It reads
# the first variable when it is imported.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}

_STARTS = 3
"""Attempts to start a local Ray: each component has 15 s, too little on a busy machine."""


@contextlib.contextmanager
def ray_session(address: str | None, cpus: int, say: Callable[[str], None]) -> Iterator[None]:
    """Connect to Ray, and disconnect afterwards; one that is in use already is left alone.

    Args:
        address: Of a cluster to join, ``host:port`` or ``"auto"``; None starts a local Ray, and
            ends it afterwards.
        cpus: Processors of a local Ray.
        say: Called with lines for the user.

    Raises:
        EngineError: The cluster cannot be joined, or the local Ray cannot be started.
    """
    with contextlib.ExitStack() as stack:
        if "ray" not in sys.modules or not sys.modules["ray"].is_initialized():
            _join(address) if address else _start(stack, cpus, say)
            stack.callback(sys.modules["ray"].shutdown)
        yield


def _join(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        if address != "auto":
            # Without an answer Ray would try for minutes.
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        _initialize(LOOPBACK if _is_loopback(host) else {}, address=address)
    except Exception as error:
        raise EngineError(f"Ray cannot be joined at {address}: {error}") from error


def _start(stack: contextlib.ExitStack, cpus: int, say: Callable[[str], None]) -> None:
    # Not below TMPDIR: paths of sockets must be short.
    place = "/tmp" if os.name == "posix" else None
    folder = tempfile.TemporaryDirectory(None, "ntkmtl-ray-", place, ignore_cleanup_errors=True)
    # The token is in no file; Ray would write one into the user's home.
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    variables = {**LOOPBACK, **token, "RAY_TMPDIR": stack.enter_context(folder)}
    settings = {
        "num_cpus": cpus,
        # Just above the least that Ray allows: nothing large goes through it.
        "object_store_memory": 80 * 2**20,
        "include_dashboard": False,
    }
    for left in reversed(range(_STARTS)):
        try:
            _initialize(variables, address="local", **settings)
            break
        # Ray raises a bare Exception if a node was not up in time.
        except Exception as error:
            if not left or isinstance(error, EngineError):
                raise EngineError(f"Ray cannot be started: {error}") from error
            say(f"Ray did not start, trying again: {first_line(error)}")


def _initialize(environment: Mapping[str, str], **settings: Any) -> None:
    """Start or join Ray, with variables that are set meanwhile.

    Raises:
        EngineError: A Ray that was imported earlier does not bind to 127.0.0.1 only.
    """
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        ray: Any = importlib.import_module("ray")
        with handlers_kept():
            ray.init(log_to_driver=False, logging_level="ERROR", **settings)
    finally:
        # Ray sets variables of its own where it finds a token.
        for name in (*environment, "RAY_AUTH_MODE"):
            os.environ.pop(name, None)
        os.environ.update(before)
    hosts = [node["NodeManagerAddress"] for node in ray.nodes()]
    if LOOPBACK.items() <= environment.items() and not all(map(_is_loopback, hosts)):
        ray.shutdown()
        raise EngineError(
            f"Ray was imported before and listens at {', '.join(hosts)}; set "
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 before Python starts, or do not import Ray first"
        )


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return host == "localhost"


def first_line(error: Exception) -> str:
    """Return the name of an error and the first line of its message."""
    text = str(error).strip().partition("\n")[0].rstrip(".:")[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# ------------------------------------------------------------------------------------------------
# What a process on another machine must have in common with the one that started a comparison


@dataclass(frozen=True)
class Surroundings:
    """The surroundings of the process that started a comparison.

    Attributes:
        mark: A file in the folder of the runs, by which another machine sees that it is the same
            folder.
        folder: The working directory.
        path: ``sys.path``.
        environment: Variables of this library.
        versions: Of the packages that decide the numbers.
    """

    mark: Path
    folder: Path
    path: tuple[str, ...]
    environment: Mapping[str, str]
    versions: Mapping[str, str]

    def adopt(self) -> None:
        """Make this process like the one that started the comparison.

        Raises:
            EngineError: This machine lacks the folder or has other versions.
        """
        node = platform.node()
        if not self.mark.exists():
            raise EngineError(
                f"the node {node} does not see {self.mark.parent}: put the folder of the runs "
                "where every node finds it under the same path"
            )
        if versions() != self.versions:
            raise EngineError(
                f"the node {node} has {versions()}, the comparison was started with "
                f"{dict(self.versions)}: install the same on every node"
            )
        if self.folder.is_dir():
            os.chdir(self.folder)
        sys.path.extend(entry for entry in self.path if entry not in sys.path)
        os.environ.update(self.environment)


@contextlib.contextmanager
def shared_surroundings(out: Path) -> Iterator[Surroundings]:
    """Mark the folder of the runs, and yield the surroundings of this process.

    Args:
        out: The folder, which exists.

    Raises:
        OSError: The mark cannot be written.
    """
    own = {name: value for name, value in os.environ.items() if name.startswith("NTKMTL_")}
    mark = out.resolve() / f".ntkmtl-ray-{secrets.token_hex(8)}"
    write_text(mark, mark.name)
    try:
        yield Surroundings(mark, Path.cwd(), tuple(sys.path), own, versions())
    finally:
        mark.unlink(missing_ok=True)
