"""Run one target, the readers instrumented as they are imported; without a name, list the targets."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["streamprep.formats"]):
    from tests.fuzz.fuzz_formats import TARGETS, fuzz

if len(sys.argv) < 2:
    print(*TARGETS)
else:
    fuzz(TARGETS[sys.argv[1]], sys.argv[2:])
