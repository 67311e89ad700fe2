"""Starting a Ray on this machine alone, or joining a cluster."""

from __future__ import annotations

import contextlib
import importlib
import ipaddress
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ntkmtl.bench.jobs.engine import EngineError

__all__ = ["LOOPBACK", "connected", "described", "first_line", "nodes"]

# Without clusters, which Ray leaves out on Windows and macOS, it binds to 127.0.0.1 only. It reads
# the first variable when it is imported.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}

_STARTS = 3
"""Attempts to start a local Ray: each component has 15 s, too little on a busy machine."""


@contextlib.contextmanager
def connected(address: str | None, processors: int, say: Callable[[str], None]) -> Iterator[None]:
    """Start or join Ray, and end or leave it; one that is in use already is used, and left alone.

    Args:
        address: See :class:`ntkmtl.bench.jobs.ray_engine.RayEngine`.
        processors: Of a local Ray.
        say: Called with lines for the user.

    Raises:
        EngineError: Ray cannot be started or joined.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield
        return
    with contextlib.ExitStack() as stack:
        if address is None:
            # Not below TMPDIR: paths of sockets must be short.
            place = "/tmp" if os.name == "posix" else None
            folder = tempfile.mkdtemp(prefix="ntkmtl-ray-", dir=place)
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            _start(folder, processors, say)
        else:
            _join(address)
        stack.callback(sys.modules["ray"].shutdown)
        yield


def _start(folder: str, processors: int, say: Callable[[str], None]) -> None:
    environment = {
        **LOOPBACK,
        "RAY_TMPDIR": folder,
        # In no file; Ray would write a token into the user's home.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    settings = {
        "num_cpus": processors,
        # Just above the least that Ray allows: nothing large goes through it.
        "object_store_memory": 80 * 2**20,
        "include_dashboard": False,
    }
    for left in reversed(range(_STARTS)):
        error = _failure(environment, address="local", **settings)
        if error is None:
            return
        if not left or isinstance(error, EngineError):
            raise EngineError(f"Ray cannot be started: {error}") from error
        say(f"Ray did not start, trying again: {first_line(error)}")


def _failure(environment: Mapping[str, str], **settings: Any) -> Exception | None:
    """Start Ray; return why it did not start."""
    try:
        _initialize(environment, **settings)
    # Ray raises a bare Exception if a node was not up in time.
    except Exception as error:  # noqa: BLE001
        return error
    return None


def _join(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        if address != "auto":
            # Where nobody answers Ray would try for minutes.
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        _initialize(LOOPBACK if _is_loopback(host) else {}, address=address)
    except Exception as error:
        raise EngineError(f"Ray cannot be joined at {address}: {error}") from error


def _initialize(environment: Mapping[str, str], **settings: Any) -> None:
    """Start or join Ray, with variables that are set meanwhile, and keep the signals' handlers.

    Raises:
        EngineError: A Ray that was imported earlier does not bind to 127.0.0.1 only.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # Ray sets the mode itself where it finds a token.
    before = {name: os.environ.get(name) for name in (*environment, "RAY_AUTH_MODE")}
    os.environ.update(environment)
    try:
        ray: Any = importlib.import_module("ray")
        ray.init(log_to_driver=False, logging_level="ERROR", **settings)
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        for number, handler in handlers.items():
            # None stands for a handler that was not installed from Python and cannot be put back.
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
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


def nodes() -> list[dict[str, float]]:
    """Return the resources of the living nodes."""
    return [node["Resources"] for node in sys.modules["ray"].nodes() if node["Alive"]]


def described(found: list[dict[str, float]]) -> str:
    """Describe nodes by their resources, for a message."""
    each = [f"{n.get('CPU', 0):g} processors and {n.get('GPU', 0):g} GPUs" for n in found]
    return f"{len(found)} nodes: {', '.join(each)}" if found else "no node"


def first_line(error: Exception) -> str:
    """Return the name of an error and the first line of its message."""
    text = str(error).strip().partition("\n")[0].rstrip(".:")[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
