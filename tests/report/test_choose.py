"""Which items have pictures: a bounded number, with the first and the newest, whatever the session's length."""

from __future__ import annotations

import itertools

import pytest

from streamprep.report.choose import due, surplus, wanted


@pytest.mark.parametrize("most", [1, 2, 6, 12, 60])
def test_the_choice_is_bounded_and_keeps_the_first_the_newest_and_what_stands_out(most: int) -> None:
    for count in (*range(1, 130), 5000):
        chosen = wanted(count, most, odd=[count // 2])
        assert len(chosen) == len(set(chosen)) <= most
        assert set(chosen) <= set(range(count))
        assert chosen[0] == count - 1
        assert len(chosen) >= min(count, most // 2)
        if most >= 6:
            assert {*range(min(count, most // 6)), count // 2, count - 1} <= set(chosen)
            assert set(range(max(0, count - most // 3), count)) <= set(chosen)


def test_the_spread_leaves_no_great_gap() -> None:
    chosen = sorted(wanted(5000, 60))
    assert max(after - before for before, after in itertools.pairwise(chosen)) <= 5000 / 60 * 4


def test_pictures_keep_within_bounds_while_a_session_grows_faster_than_they_are_made() -> None:
    made: set[int] = set()
    for count in range(1, 3000, 7):
        left = due(count, 12, made)
        assert not made & set(left)
        if left:
            made.add(left[0])
        made -= set(surplus(count, 12, made))
        assert len(made) <= 12
        assert {0, count - 1} <= made
    gaps = [after - before for before, after in itertools.pairwise(sorted(made))]
    assert max(gaps) < 1500, "what was the newest once stays as a spread over the session"


def test_nothing_is_removed_while_there_is_room() -> None:
    assert surplus(100, 12, {3, 7, 99}) == []
