"""Names: hostile ones become safe and stay different, and a table's name finds the micrograph that it means."""

from __future__ import annotations

import os
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from streamprep.naming import best_match, item_name, match_key, safe_part, stem_of, stems, unique_label

SAFE = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9._+-]*\Z")

any_name = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=150),
    st.binary(max_size=40).map(os.fsdecode),
    st.text("ab._-/ \n\0", max_size=6),
)
file_part = any_name.filter(lambda name: name not in ("", ".", "..") and "/" not in name and "\0" not in name)


# --- safe_part -------------------------------------------------------------------------------------------------------


@pytest.mark.case(20, 29)
@given(any_name)
@example("")
@example(".")
@example("..")
@example("../../etc/passwd")
@example(".hidden")
@example("-rf")
@example("a\nb")
@example(os.fsdecode(b"\xff\xfe.mrc"))
@example("<script>alert(1)</script>")
@example("x" * 300)
def test_a_safe_part_is_one_plain_visible_file_name(name: str) -> None:
    part = safe_part(name)
    assert SAFE.match(part)
    assert len(part) <= 120
    assert Path("folder", part).name == part


@given(st.from_regex(SAFE, fullmatch=True).filter(lambda name: len(name) <= 120))
@example("Ucsf_stack_1142_DW")
@example("FoilHole_123+4.5-x")
def test_a_safe_name_stays(name: str) -> None:
    assert safe_part(name) == name


@given(any_name, any_name)
@example("a b", "a_b")
@example("a b", "a\nb")
@example(".a", "a")
@example("..", ".")
@example("", "_")
@example("x" * 130, "x" * 131)
@example(os.fsdecode(b"\xff"), os.fsdecode(b"\xfe"))
@example("é", "e\u0301")
def test_different_names_stay_different(one: str, other: str) -> None:
    assume(one != other)
    assert safe_part(one) != safe_part(other)


# --- unique_label and item_name --------------------------------------------------------------------------------------


def test_a_label_is_as_wanted_or_numbered() -> None:
    taken: list[str] = []
    for wanted in ("Micrographs", "Micrographs", "Micrographs_2", "Coordinates"):
        taken.append(unique_label(wanted, taken))
    assert taken == ["Micrographs", "Micrographs_2", "Micrographs_2_2", "Coordinates"]


@pytest.mark.parametrize(
    ("relative", "name"),
    [
        ("mic_0001.mrc", "Micrographs/mic_0001"),
        ("grid1/square2/mic_0001.mrc", "Micrographs/grid1/square2/mic_0001"),
        ("./mic_0001.mrc.gz", "Micrographs/mic_0001"),
        ("mic_0.5A.tiff", "Micrographs/mic_0.5A"),
        ("picks.star", "Micrographs/picks"),
    ],
)
def test_an_item_is_named_by_its_folders_and_its_stem(relative: str, name: str) -> None:
    assert item_name("Micrographs", relative) == name


@pytest.mark.case(20, 29)
@given(st.lists(file_part, min_size=1, max_size=4))
@example(["..", "..", "x"])
@example(["a\\b"])
def test_an_items_name_stays_below_its_label(parts: list[str]) -> None:
    name = item_name("label", "/".join(parts) + ".mrc")
    assert name.startswith("label/")
    assert all(SAFE.match(part) for part in name.split("/"))


@given(st.lists(file_part, min_size=1, max_size=3), st.lists(file_part, min_size=1, max_size=3))
@example(["a\\b"], ["b"])
@example(["a", "b"], ["a\\b"])
@example(["a", "b"], ["a_b"])
def test_items_of_different_files_have_different_names(one: list[str], other: list[str]) -> None:
    endings = (".mrc", ".mrcs", ".map", ".tif", ".tiff", ".gz", ".bz2")  # they are no part of a stem
    assume(one != other and not any(parts[-1].lower().endswith(endings) for parts in (one, other)))
    assert item_name("label", "/".join(one) + ".mrc") != item_name("label", "/".join(other) + ".mrc")


# --- stems and keys --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("mic.mrc", "mic"),
        ("mic.MRC", "mic"),
        ("mic.mrc.bz2", "mic"),
        ("a/b.c/mic.1.star", "mic.1"),
        ("mic", "mic"),
        ("X:\\data\\Falcon_1.tif", "Falcon_1"),
        (".mrc", ".mrc"),
        ("", ""),
    ],
)
def test_a_stem_is_the_name_without_folders_and_endings(name: str, stem: str) -> None:
    assert stem_of(name) == stem


@pytest.mark.parametrize(
    ("name", "chain"),
    [
        ("mic_7.mrc", ["mic_7"]),
        ("mic_7_DW_autopick.star", ["mic_7_DW_autopick", "mic_7_DW", "mic_7"]),
        ("mic_7_autopick_DW.star", ["mic_7_autopick_DW", "mic_7_autopick", "mic_7"]),
        ("mic_7_picks.star", ["mic_7_picks", "mic_7"]),
        ("mic_7_DW_DW.mrc", ["mic_7_DW_DW", "mic_7_DW", "mic_7"]),
        ("_DW.mrc", ["_DW"]),
        ("mic_dw.mrc", ["mic_dw"]),
        ("folder_DW/mic.mrc", ["mic"]),
    ],
)
def test_suffixes_come_off_one_by_one(name: str, chain: list[str]) -> None:
    assert stems(name) == chain
    assert match_key(name) == chain[-1]


def test_suffixes_are_the_callers_to_choose() -> None:
    assert stems("mic_DW_fancy.star", ["_fancy"]) == ["mic_DW_fancy", "mic_DW"]
    assert stems("mic_DW.mrc", []) == ["mic_DW"]


@given(st.text("ab_DW", max_size=12), st.lists(st.text("_DWab", max_size=4), max_size=4))
def test_a_chain_of_stems_ends(name: str, suffixes: list[str]) -> None:
    chain = stems(name, suffixes)
    assert all(len(shorter) < len(longer) for longer, shorter in pairwise(chain))


# --- best_match ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "candidates", "chosen"),
    [
        ("x_autopick.star", ["x.mrc"], 0),
        ("x_DW_autopick.star", ["x.mrc", "x_DW.mrc"], 1),
        ("x_autopick.star", ["x.mrc", "x_DW.mrc"], 0),
        ("x.star", ["x_DW.mrc", "x.mrc"], 1),
        ("MotionCorr/job002/x_DW.mrc", ["other/x.mrc", "other/x_DW.mrc"], 1),
        ("grid1/x.star", ["Micrographs/grid1/x.mrc", "Micrographs/grid2/x.mrc"], 0),
        ("Coordinates/grid2/x_pick.star", ["Micrographs/grid1/x.mrc", "Micrographs/grid2/x.mrc"], 1),
        ("a/grid1/x.star", ["b/grid1/x.mrc", "a/grid2/x.mrc"], 0),
        ("a/grid1/x.star", ["b/grid1/x.mrc", "a/grid1/x.mrc"], 1),
        ("grid2\\x.tif", ["grid1/x.mrc", "grid2/x.mrc"], 1),
        ("grid1/x.star", ["grid1/x_DW.mrc", "grid2/x.mrc"], 1),
        ("x.star", ["grid1/x.mrc"], 0),
    ],
)
def test_the_nearest_stem_wins_then_the_nearest_folder(name: str, candidates: list[str], chosen: int) -> None:
    assert best_match(name, candidates) == (chosen, [])
    turned = best_match(name, candidates[::-1])
    assert turned == (len(candidates) - 1 - chosen, [])


@pytest.mark.parametrize(
    ("name", "candidates", "tied"),
    [
        ("x.star", ["grid1/x.mrc", "grid2/x.mrc"], [0, 1]),
        ("grid3/x.star", ["grid1/x.mrc", "grid2/x.mrc"], [0, 1]),
        ("Coordinates/x.star", ["grid1/x.mrc", "grid1/x_DW.mrc", "grid2/x.mrc"], [0, 2]),
        ("x_pick.star", ["x_DW.mrc", "x_ctf.mrc"], [0, 1]),
    ],
)
def test_a_tie_is_reported_and_never_guessed(name: str, candidates: list[str], tied: list[int]) -> None:
    assert best_match(name, candidates) == (None, tied)


def test_without_candidates_there_is_no_match() -> None:
    assert best_match("x.star", []) == (None, [])
