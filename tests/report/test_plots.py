"""Plots are well-formed, labelled, and show text as text."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from streamprep.report.draw import _histogram
from streamprep.report.plots import Panel, Series, as_file, figure, ticks


def test_a_plot_is_well_formed_and_names_what_it_shows() -> None:
    hostile = '<script>"&'
    panel = Panel(
        "x [1/Å]",
        "y",
        (
            Series([0, 1, 2], [1, -3, float("nan")], "particle", hostile),
            Series([0, 1, 2], [4, 5], "noise", "", "steps"),
            Series([0, 1], [0, 1], "ctf", "", "area"),
            Series([0, 1], [0, 1], "odd", "", "dots", [hostile, ""]),
        ),
        "title",
        powers=True,
        marks=((0.5, "here"),),
    )
    root = ElementTree.fromstring(as_file(figure([panel, Panel("x", "y")], f"about {hostile}", columns=2)))
    texts = ["".join(node.itertext()) for node in root.iter() if node.tag.endswith("text")]
    assert {"x [1/Å]", "y", "title", hostile, "here", "no values"} <= set(texts)
    assert root.attrib["aria-label"] == f"about {hostile}"
    assert not [node for node in root.iter() if node.tag.endswith("script")]
    assert "nan" not in figure([panel], "")
    plain = figure([Panel("x", "y", (Series([0, 1], [0, 40], "other"),))], "")
    assert all(f">{tick}</text>" in plain for tick in ("0", "1", "20", "40"))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2e-5, 7e-5), (1e6, 1e6 + 3), (-1, 0.01)])
def test_ticks_are_a_few_round_numbers_within(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-9 * abs(low) <= tick <= high + 1e-9 * abs(high) for tick in found)


@pytest.mark.parametrize("values", [np.random.default_rng(0).normal(size=50), np.full(50, 3.0), np.zeros(1)])
def test_a_histogram_counts_every_box(values: np.ndarray) -> None:
    panel = _histogram({"particle": values, "noise": values[:1] * 0 + values.max()}, "mean")
    assert [sum(series.y) for series in panel.series] == [len(values), 1]
