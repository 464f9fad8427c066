"""Whatever happens, and in whichever order: no input is lost, none is doubled, and nothing that was done is undone."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.reliability.model import Machine

EXAMPLES = int(os.environ.get("STREAMPREP_MODEL_EXAMPLES", "20"))


def test_model() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
