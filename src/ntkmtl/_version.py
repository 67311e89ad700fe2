"""The installed version, in a module without imports so that every part can read it."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("ntkmtl")
except PackageNotFoundError:  # a source tree on PYTHONPATH that nobody installed
    __version__ = "0+unknown"
