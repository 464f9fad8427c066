"""Run targets, given with commas between, the readers instrumented as they are imported; without any, list them."""

from __future__ import annotations

import os
import sys

import atheris

with atheris.instrument_imports(include=["streamprep.formats"]):
    from tests.fuzz.fuzz_formats import TARGETS, fuzz

if len(sys.argv) < 2:
    print(*TARGETS)
    sys.exit()
*before, last = sys.argv[1].split(",")
for name in before:  # libFuzzer ends its process
    child = os.fork()
    if not child:
        fuzz(TARGETS[name], sys.argv[2:])
    if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        sys.exit(f"{name}: exit code {code}")
fuzz(TARGETS[last], sys.argv[2:])
