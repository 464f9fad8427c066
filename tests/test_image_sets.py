"""Sets of images that a parameter names: what is read of RELION's and Xmipp's tables and of stacks, and from where."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest

from streamprep.image_sets import sample_images
from streamprep.model import InputError


def stack(path: Path, n: int, *, size: int = 6, pixel_size: float = 2.0, first: float = 0.0) -> np.ndarray:
    """A stack whose images hold, each, one number: its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = (np.arange(n, dtype=np.float32) + first)[:, None, None] * np.ones((1, size, size), np.float32)
    with mrcfile.new(path, images) as file:
        file.set_image_stack()
        file.voxel_size = pixel_size
    return images


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


RELION = """
data_optics
loop_
_rlnOpticsGroup
_rlnImagePixelSize
_rlnVoltage
_rlnSphericalAberration
_rlnAmplitudeContrast
1 2.5 200 2.7 0.1

data_particles
loop_
_rlnImageName
_rlnOpticsGroup
_rlnDefocusU
_rlnDefocusV
_rlnDefocusAngle
_rlnAngleRot
_rlnOriginXAngst
000003@Extract/a.mrcs 1 10000 9000 30 10 5
000001@Extract/b.mrcs 1 11000 9000 30 20 6
000001@Extract/a.mrcs 1 12000 9000 30 30 7
"""


def test_rows_of_several_stacks_keep_what_the_table_says(tmp_path: Path) -> None:
    stack(tmp_path / "Extract/a.mrcs", 3)
    stack(tmp_path / "Extract/b.mrcs", 2, first=10)
    table = tmp_path / "Refine3D/job001/run_data.star"
    table.parent.mkdir(parents=True)
    table.write_text(RELION)
    sample = sample_images(table, 200, rng())
    assert sample.ctf is not None
    said = {
        float(pixels[0, 0]): (ctf.defocus_u_angstrom, ctf.voltage_kv, rot, origin)
        for pixels, ctf, rot, origin in zip(
            sample.pixels, sample.ctf, sample.columns["rlnAngleRot"], sample.columns["rlnOriginXAngst"], strict=True
        )
    }
    assert said == {2: (10000, 200, "10", "5"), 10: (11000, 200, "20", "6"), 0: (12000, 200, "30", "7")}
    assert (sample.total, sample.pixel_size_angstrom) == (3, 2.5)


def test_averages_of_2d_classes_are_images(tmp_path: Path) -> None:
    stack(tmp_path / "classes.mrcs", 3)
    relion = tmp_path / "class_averages.star"
    relion.write_text(
        "data_\nloop_\n_rlnReferenceImage\n_rlnClassDistribution\n2@classes.mrcs 0.6\n3@classes.mrcs 0.4\n"
    )
    xmipp = tmp_path / "classes.xmd"
    xmipp.write_text(
        "# XMIPP_STAR_1 *\ndata_classes\nloop_\n_ref\n_image\n_classCount\n1 2@classes.mrcs 9\n2 3@classes.mrcs 7\n"
        "data_class000001_images\nloop_\n_image\n_ref\n1@particles.mrcs 1\n"
    )
    for table in (relion, xmipp):
        sample = sample_images(table, 200, rng())
        assert sample.pixels[:, 0, 0].tolist() == [1, 2]
        assert sample.pixel_size_angstrom == 2
        assert sample.ctf is None


def test_a_sample_is_drawn_by_the_seed_and_comes_in_order(tmp_path: Path) -> None:
    stack(tmp_path / "all.mrcs", 50)
    table = tmp_path / "all.xmd"
    rows = "\n".join(f"{number}@all.mrcs {number}" for number in range(1, 51))
    table.write_text(f"# XMIPP_STAR_1 *\ndata_noname\nloop_\n_image\n_angleRot\n{rows}\n")
    for path in (table, tmp_path / "all.mrcs"):
        one, again, other = (sample_images(path, 7, rng(seed)).pixels[:, 0, 0].tolist() for seed in (1, 1, 2))
        assert one == again != other
        assert one == sorted(set(one))
        assert len(one) == 7
    sample = sample_images(table, 7, rng(1))
    assert sample.total == 50
    assert sample.columns["angleRot"].tolist() == [str(int(value) + 1) for value in sample.pixels[:, 0, 0]]


def test_a_pixel_size_of_one_in_a_header_says_nothing(tmp_path: Path) -> None:
    stack(tmp_path / "all.mrcs", 2, pixel_size=1.0)
    assert sample_images(tmp_path / "all.mrcs", 9, rng()).pixel_size_angstrom is None


def xmd(folder: Path, *names: str) -> Path:
    path = folder / "set.xmd"
    path.write_text("# XMIPP_STAR_1 *\ndata_noname\nloop_\n_image\n" + "\n".join(names) + "\n")
    return path


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    stack(tmp_path / "a.mrcs", 2)
    with pytest.raises(InputError, match="no such file"):
        sample_images(tmp_path / "none.star", 9, rng())
    with pytest.raises(InputError, match="a folder"):
        sample_images(tmp_path, 9, rng())
    with pytest.raises(InputError, match=r"set\.xmd: it names gone\.mrcs, and there is no such file"):
        sample_images(xmd(tmp_path, "1@gone.mrcs"), 9, rng())
    with pytest.raises(InputError, match=r"names image 3 of .*a\.mrcs, which holds 2"):
        sample_images(xmd(tmp_path, "3@a.mrcs"), 9, rng())
    star = tmp_path / "mics.star"
    star.write_text("data_\nloop_\n_rlnMicrographName\na.mrc\n")
    with pytest.raises(InputError, match="no table in it names images"):
        sample_images(star, 9, rng())


def test_images_of_different_sizes_are_refused(tmp_path: Path) -> None:
    stack(tmp_path / "a.mrcs", 2)
    stack(tmp_path / "b.mrcs", 2, size=8)
    stack(tmp_path / "c.mrcs", 2, pixel_size=3.0)
    with pytest.raises(InputError, match="6 × 6 and 8 × 8 pixels"):
        sample_images(xmd(tmp_path, "1@a.mrcs", "1@b.mrcs"), 9, rng())
    with pytest.raises(InputError, match="pixel sizes of 2 and 3 Å"):
        sample_images(xmd(tmp_path, "1@a.mrcs", "1@c.mrcs"), 9, rng())


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    images = stack(tmp_path / "a.mrcs", 2)
    images[1, 0, 0] = np.nan
    with mrcfile.open(tmp_path / "a.mrcs", "r+") as file:
        file.data[...] = images
    with pytest.raises(InputError, match=r"a\.mrcs: image 2 holds values that are not finite"):
        sample_images(tmp_path / "a.mrcs", 9, rng())
