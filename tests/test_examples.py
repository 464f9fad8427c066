"""The examples in docstrings are true, and the plugins in ``examples/`` pass their own tests."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import streamprep
from tests.conftest import ROOT
from tests.packages import install, run_tests

MODULES = sorted(found.name for found in pkgutil.walk_packages(streamprep.__path__, "streamprep."))


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    modules = [importlib.import_module(name) for name in MODULES]
    assert sum(bool(found.examples) for module in modules for found in finder.find(module)) > 30


def test_the_example_plugins_pass_their_own_tests(tmp_path: Path) -> None:
    packages = sorted((ROOT / "examples").iterdir())
    assert [package.name for package in packages] == ["streamprep-bandpass", "streamprep-hdf5"]
    for package in packages:
        install(package, tmp_path / "site")
    assert " failed" not in run_tests(tmp_path / "site", packages)
