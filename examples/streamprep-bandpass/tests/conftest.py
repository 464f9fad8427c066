"""What the tests share: a fixture that runs a test once on every array backend."""

from streamprep.testing import array_backend

__all__ = ["array_backend"]
