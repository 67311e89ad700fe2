"""The version, apart from the public names so that parts of the package can read it."""

__version__ = "0.1.0"
