"""Whole programs against each other: `streamprep apply` and what Xmipp 3 computed from the same files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamprep.cli import main
from streamprep.formats import mrc
from tests.plugins import relative_error

PARTICLES = ("remove_dust", "normalize", "phase_flip", "invert", "threshold", "center")
MAPS = {
    "change_hand": 1e-5,
    "rotate_ico": 1.5e-3,
    "symmetrize": 1.5e-3,
    "laplacian": 1e-2,
    "adjust_gray": 1e-2,
    "normalize_background": 1e-5,
}
"""Relative error allowed; of what is interpolated inside the inscribed sphere."""
POINTWISE_OR_FOURIER = 1e-5


def cases(golden: Path, operation: str, ending: str = ".mrcs") -> list[dict[str, Any]]:
    every = json.loads((golden / "cases.json").read_text(encoding="utf-8"))
    return [case for case in every if case["operation"] == operation and case["input"].endswith(ending)]


def apply(golden: Path, case: dict[str, Any], target: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Run the program, as from a shell, with a case's parameters."""
    source = golden / "inputs" / case["input"]
    parameters = dict(case["params"])
    words = ["apply", case["operation"], source, target, "--pixel-size-angstrom", case["pixel_size"], "--device", "cpu"]
    if "ctf" in parameters:
        words += ["--ctf", golden / "inputs" / parameters.pop("ctf")]
    for name in ("mask", "images"):
        if name in parameters:
            parameters[name] = golden / "inputs" / parameters[name]
    for name, value in parameters.items():
        words += ["--set", f"{case['operation']}.{name}={json.dumps(value) if isinstance(value, bool) else value}"]
    monkeypatch.setattr(sys, "argv", ["streamprep", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    return mrc.read(target).pixels


def residual_px(image: np.ndarray) -> float:
    """Distance of the centre of mass of what is clearly above the background from the origin pixel."""
    y, x = np.indices(image.shape)
    weight = np.clip(image - 0.15, 0, None)
    down, right = (
        (weight * (axis - side // 2)).sum() / weight.sum() for axis, side in zip((y, x), image.shape, strict=True)
    )
    return float(np.hypot(down, right))


@pytest.mark.parametrize("operation", PARTICLES)
def test_particles_agree(golden: Path, operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = cases(golden, operation, ".mrcs")
    assert found
    for number, case in enumerate(found):
        source = mrc.read(golden / "inputs" / case["input"]).pixels
        theirs = mrc.read(golden / "expected" / case["expected"]).pixels
        if operation == "center":
            case["params"]["rotate"] = False
        ours = apply(golden, case, tmp_path / f"{number}.mrcs", monkeypatch)
        if operation == "center":
            assert max(map(residual_px, ours)) < 0.1
            assert max(map(residual_px, theirs)) > 0.4  # their even boxes are off by half a pixel in x and y
        elif operation == "remove_dust":
            np.testing.assert_array_equal(ours != source, theirs != source)
        else:
            assert relative_error(ours, theirs) <= POINTWISE_OR_FOURIER, case


def test_masks_of_maps_agree(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for case in cases(golden, "segment", ".mrc"):
        case["params"] |= {"save_mask": True} | ({"variant": "entropy"} if "mass" not in case["params"] else {})
        source = mrc.read(golden / "inputs" / case["input"]).pixels
        ours = apply(golden, case, tmp_path / "out.mrc", monkeypatch)
        mask = mrc.read(tmp_path / "out_mask.mrc").pixels > 0
        np.testing.assert_array_equal(ours, np.where(mask, source, 0))
        if case["expected"] is not None:
            theirs = mrc.read(golden / "expected" / case["expected"]).pixels > 0
            assert abs(int(mask.sum()) - int(theirs.sum())) <= 1e-3 * theirs.sum(), case
            assert (mask & theirs).sum() >= 0.995 * min(mask.sum(), theirs.sum()), case
        else:  # Xmipp gave up
            assert mask.sum() == pytest.approx(case["params"]["mass"], rel=0.02)


def in_sphere(shape: tuple[int, ...]) -> np.ndarray:
    """Voxels of a cube clearly inside the inscribed sphere."""
    away = np.indices(shape) - np.array([side // 2 for side in shape])[:, None, None, None]
    return (away**2).sum(axis=0) < (shape[0] // 2 - 2) ** 2


@pytest.mark.parametrize("operation", MAPS)
def test_maps_agree(golden: Path, operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = cases(golden, operation, ".mrc")
    assert found
    for number, case in enumerate(found):
        target = tmp_path / f"{number}.mrc"
        ours = apply(golden, case, target, monkeypatch)
        theirs = mrc.read(golden / "expected" / case["expected"]).pixels
        inside = in_sphere(theirs.shape) if operation in ("rotate_ico", "symmetrize") else np.ones(theirs.shape, bool)
        assert relative_error(ours[inside], theirs[inside]) <= MAPS[operation], case
