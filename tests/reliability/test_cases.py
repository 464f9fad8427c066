"""Each of the thirty cases has a test, and the page that says so is the one made from the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability.cases import CASES, covered, table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guarantees.md"


def test_every_case_has_a_test() -> None:
    numbers = {number for each in covered() for number in each.cases}
    assert numbers == set(CASES)


def test_the_table_of_the_docs_is_made_from_the_tests() -> None:
    said = PAGE.read_text(encoding="utf-8")
    for line in table().splitlines():
        assert f"{line}\n" in said, "make it anew with: python -m tests.reliability.cases"


def test_markers_are_found_wherever_they_stand(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\npytestmark = [pytest.mark.slow, pytest.mark.case(4)]\n"
        "@pytest.mark.case(1, 2, where='root')\ndef test_one(): ...\n"
        "class TestMore:\n    @pytest.mark.parametrize('x', [pytest.param(1, marks=pytest.mark.case(3))])\n"
        "    def test_two(self, x): ...\n"
    )
    assert [(each.test, each.cases, each.where) for each in covered(tmp_path)] == [
        ("test_one", (1, 2), "root"),
        ("test_one", (4,), "CI"),
        ("test_two", (3, 4), "CI"),
    ]
    (tmp_path / "test_some.py").write_text("import pytest\n@pytest.mark.case(1, where='moon')\ndef test_one(): ...\n")
    with pytest.raises(ValueError, match="moon"):
        covered(tmp_path)
