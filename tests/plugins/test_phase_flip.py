"""phase_flip: the old programs' images, the reference in float64, and what a stack is said to be afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamprep import Ctf, InputError, Optics, Particles
from streamprep.config import Config
from streamprep.em.ctf import ctf_at
from streamprep.formats import star
from streamprep.model import ConfigError
from streamprep.pipeline import optional_kinds, required_kinds, resolve, run_micrograph
from streamprep.plugin_manager import Plugins, load_plugins
from streamprep.plugins.phase_flip import phase_flip, phase_flip_micrograph, phase_flip_particles
from streamprep.testing import (
    ArrayBackend,
    backends,
    run_operation,
    tiny_coordinates,
    tiny_ctf,
    tiny_micrograph,
    tiny_particles,
)
from tests.plugins import golden_case, relative_error


def noise(shape: tuple[int, ...], seed: int = 0, mean: float = 3.0, std: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, std, shape).astype(np.float32)


def reference(images: np.ndarray, ctfs: list[Ctf], pixel_size: float) -> np.ndarray:
    """One image after the other in float64, over the whole of Fourier space, from the CTF's own formula.

    With the sign at f = ½ as at f = +½; numpy's real part of the inverse is the mean of what two opposite terms want.
    """
    out = []
    for image, ctf in zip(images.astype(np.float64), ctfs, strict=True):
        ny, nx = image.shape
        fy, fx = (np.fft.fftfreq(side) for side in (ny, nx))
        columns = np.abs(fx[None, :]) + 0 * fy[:, None]  # the half with fx ≥ 0 says what the other half must be
        rows = np.where(np.abs(fy) == 0.5, 0.5, fy)[:, None] + 0 * fx[None, :]
        turned = (fx < 0) & (fx != -0.5)
        rows[:, turned] = np.where(np.abs(rows) == 0.5, 0.5, -rows)[:, turned]
        signs = np.where(ctf_at(ctf, columns / pixel_size, rows / pixel_size) < 0, -1, 1)
        signs[0, 0] = 1
        out.append(np.fft.ifft2(np.fft.fft2(image) * signs).real)
    return np.array(out).reshape(images.shape)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 9, 9), (2, 10, 15), (2, 15, 10), (1, 1, 1), (2, 2, 2), (0, 8, 8)])
@pytest.mark.parametrize("shared", [True, False])
def test_every_backend_computes_the_reference(backend: ArrayBackend, shape: tuple[int, int, int], shared: bool) -> None:
    images = noise(shape)
    ctfs = [tiny_ctf(0 if shared else 30 * index) for index in range(shape[0])]
    done = backend.to_host(phase_flip(backend.asarray(images), ctfs, pixel_size_angstrom=1.5))
    assert done.dtype == np.float32
    np.testing.assert_allclose(done, reference(images, ctfs, 1.5), atol=5e-6)


def test_agrees_with_the_old_programs(golden: Path) -> None:
    parameters, source, theirs = golden_case(golden, "phase_flip.mrcs")
    ctfs = star.read_particle_ctf(golden / "inputs" / parameters["ctf"], len(source))
    done, warnings = run_operation(phase_flip_particles, Particles(source, Optics(2.0), ctf=ctfs))
    assert relative_error(done.pixels, theirs) <= 1e-6
    assert warnings == []


ctfs = st.builds(
    Ctf,
    st.floats(-5000, 40000),
    st.floats(-5000, 40000),
    st.floats(-180, 180),
    phase_shift_deg=st.floats(0, 180),
    voltage_kv=st.sampled_from([200.0, 300.0]),
    spherical_aberration_mm=st.sampled_from([0.01, 2.7]),
    amplitude_contrast=st.floats(0, 1),
)


def without_nyquist_column(images: np.ndarray) -> np.ndarray:
    """Where the number of columns is even, images without their terms at fx = ½."""
    nx = images.shape[-1]
    spectrum = np.fft.rfft2(images)
    if nx % 2 == 0:
        spectrum[..., -1] = 0
    return np.fft.irfft2(spectrum, s=images.shape[-2:]).astype(np.float32)


@settings(max_examples=80)
@given(ctf=ctfs, n=st.integers(1, 3), ny=st.integers(1, 16), nx=st.integers(1, 16), seed=st.integers(0, 99))
def test_flipping_twice_changes_nothing(ctf: Ctf, n: int, ny: int, nx: int, seed: int) -> None:
    images = without_nyquist_column(noise((n, ny, nx), seed))
    twice = images
    for _ in range(2):
        twice = phase_flip(twice, [ctf] * n, pixel_size_angstrom=1.5)
    np.testing.assert_allclose(twice, images, atol=1e-5)


@settings(max_examples=60)
@given(ctf=ctfs, side=st.integers(1, 16), seed=st.integers(0, 99))
def test_nothing_is_lost_at_nyquist_without_astigmatism(ctf: Ctf, side: int, seed: int) -> None:
    images = noise((1, side, side), seed)
    round_one = replace(ctf, defocus_v_angstrom=ctf.defocus_u_angstrom)
    twice = images
    for _ in range(2):
        twice = phase_flip(twice, [round_one], pixel_size_angstrom=1.5)
    np.testing.assert_allclose(twice, images, atol=1e-5)


def test_what_astigmatism_loses_at_nyquist_is_lost_once() -> None:
    images, astigmatic = noise((4, 16, 16)), [Ctf(15000, 9000, 30)] * 4
    done = [images]
    for _ in range(4):
        done.append(phase_flip(done[-1], astigmatic, pixel_size_angstrom=1.5))
    assert not np.allclose(done[2], images, atol=0.1)
    np.testing.assert_allclose(done[3], done[1], atol=1e-5)
    np.testing.assert_allclose(done[4], done[2], atol=1e-5)


@settings(max_examples=30)
@given(n=st.integers(1, 5), ny=st.integers(1, 12), nx=st.integers(1, 12), kinds=st.integers(1, 5))
def test_a_batch_equals_its_images_one_by_one(n: int, ny: int, nx: int, kinds: int) -> None:
    images, own = noise((n, ny, nx)), [tiny_ctf(30 * (index % kinds)) for index in range(n)]
    together = phase_flip(images, own, pixel_size_angstrom=1.2)
    alone = [phase_flip(images[i : i + 1], own[i : i + 1], pixel_size_angstrom=1.2) for i in range(n)]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=5e-6)


def test_the_mean_stays_and_counts_keep_their_digits() -> None:
    images, own = noise((2, 256, 256), mean=6800, std=9), [tiny_ctf(index) for index in range(2)]
    done = phase_flip(images, own, pixel_size_angstrom=1.5)
    np.testing.assert_allclose(done, reference(images, own, 1.5), atol=5e-3)
    flat = np.full((1, 16, 16), 6800, np.float32)
    np.testing.assert_allclose(phase_flip(flat, own[:1], pixel_size_angstrom=1.5), flat, rtol=1e-6)


def test_the_input_is_overwritten_in_place_only() -> None:
    images, own = noise((3, 12, 12)), [tiny_ctf(index) for index in range(3)]
    given = images.copy()
    done = phase_flip(given, own, pixel_size_angstrom=1.5)
    np.testing.assert_array_equal(given, images)
    again = phase_flip(given, own, pixel_size_angstrom=1.5, in_place=True)
    assert again is given
    np.testing.assert_array_equal(again, done)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float64])
def test_other_types_become_float32(dtype: type) -> None:
    images = noise((2, 8, 8), mean=40).astype(dtype)
    done = phase_flip(images, [tiny_ctf()] * 2, pixel_size_angstrom=1.5)
    assert done.dtype == np.float32
    np.testing.assert_allclose(done, reference(images, [tiny_ctf()] * 2, 1.5), atol=2e-5)


# --- as an operation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flipped", [True, False])
def test_the_flag_toggles(flipped: bool) -> None:
    particles = replace(tiny_particles(3, 16), phase_flipped=flipped)
    done, warnings = run_operation(phase_flip_particles, particles)
    assert done.phase_flipped is not flipped
    assert warnings == []
    assert particles.ctf is not None
    np.testing.assert_allclose(done.pixels, reference(particles.pixels, list(particles.ctf), 2.0), atol=1e-4)
    micrograph = replace(tiny_micrograph(), phase_flipped=flipped)
    done, _ = run_operation(phase_flip_micrograph, micrograph)
    assert done.phase_flipped is not flipped


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("shape", [(96, 128), (63, 50), (31, 77)])
def test_a_micrograph_is_flipped_as_a_whole(backend: ArrayBackend, shape: tuple[int, int]) -> None:
    micrograph = tiny_micrograph(shape)
    done, warnings = run_operation(phase_flip_micrograph, backend.move(micrograph))
    assert micrograph.ctf is not None
    wanted = reference(micrograph.pixels[None], [micrograph.ctf], 2.0)[0]
    np.testing.assert_allclose(backend.to_host(done.pixels), wanted, atol=1e-4)
    assert (done.ctf, done.optics, warnings) == (micrograph.ctf, micrograph.optics, [])
    counts = replace(micrograph, pixels=micrograph.pixels.astype(np.uint8))
    whole, _ = run_operation(phase_flip_micrograph, backend.move(counts))
    np.testing.assert_allclose(
        backend.to_host(whole.pixels), reference(counts.pixels[None], [micrograph.ctf], 2.0)[0], atol=1e-4
    )


@pytest.mark.parametrize("backend", backends())
def test_what_has_no_ctf_is_refused_or_passed_on_as_it_is(backend: ArrayBackend) -> None:
    particles = backend.move(replace(tiny_particles(3, 16), ctf=None))
    micrograph = backend.move(replace(tiny_micrograph(), ctf=None))
    for function, data in ((phase_flip_particles, particles), (phase_flip_micrograph, micrograph)):
        with pytest.raises(InputError, match=r"no CTF is known .*\[ctf\] table .*--ctf .*missing = \"skip\""):
            run_operation(function, data)
    done, warnings = run_operation(phase_flip_particles, particles, missing="skip")
    assert not done.phase_flipped
    np.testing.assert_array_equal(backend.to_host(done.pixels), backend.to_host(particles.pixels))
    assert warnings == ["3 of 3 particle images have no CTF; their phases were not flipped"]
    done, warnings = run_operation(phase_flip_micrograph, micrograph, missing="skip")
    assert done is None
    assert warnings == ["it has no CTF; its phases were not flipped"]


def test_skip_flips_what_has_a_ctf() -> None:
    particles = tiny_particles(3, 16)
    skipping, _ = run_operation(phase_flip_particles, particles, missing="skip")
    waiting, _ = run_operation(phase_flip_particles, particles)
    np.testing.assert_array_equal(skipping.pixels, waiting.pixels)
    assert skipping.phase_flipped


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_said_and_stays_in_its_image(backend: ArrayBackend, bad: float) -> None:
    particles = tiny_particles(3, 16)
    whole, _ = run_operation(phase_flip_particles, particles)
    pixels = particles.pixels.copy()
    pixels[1, 3, 4] = bad
    done, warnings = run_operation(phase_flip_particles, backend.move(particles.with_pixels(pixels)))
    np.testing.assert_allclose(backend.to_host(done.pixels)[[0, 2]], whole.pixels[[0, 2]], atol=1e-4)
    assert warnings == [
        "1 of 3 particle images hold values that are not finite (NaN or infinite); their phases could not be flipped"
    ]


# --- in a plan -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins(environ={}, sinks=False)


def config(**tables: Any) -> Config:
    return Config.model_validate({"session": {"watch": ["M"]}, **tables})


BOXES = {"extract": {"box_size_px": 16}}
CTF = {"ctf": {"table": "c.star"}}
ON_MICROGRAPHS = {"particles": {"phase_flip": {"scope": "micrograph"}}}


@pytest.mark.parametrize("tables", [ON_MICROGRAPHS, {"micrographs": {"phase_flip": {}}}])
def test_micrographs_are_flipped_before_boxes_are_cut(plugins: Plugins, tables: dict[str, Any]) -> None:
    plan = resolve(config(**tables, **BOXES, **CTF), plugins)
    assert [(step.table, step.order, step.name) for step in plan.steps] == [
        ("micrographs", 50, "phase_flip"),
        ("extract", 10, "extract"),
    ]
    micrograph = tiny_micrograph()
    assert micrograph.ctf is not None
    context = run_context()
    done = run_micrograph(plan, micrograph, tiny_coordinates(3), context).particles["particle"]
    assert done.phase_flipped
    assert done.coordinates is not None
    whole = reference(micrograph.pixels[None], [micrograph.ctf], 2.0)[0]
    for box, (x, y) in zip(done.pixels, np.floor(done.coordinates.xy_px + 0.5).astype(int) - 8, strict=True):
        np.testing.assert_allclose(box, whole[y : y + 16, x : x + 16], atol=1e-4)


def run_context() -> Any:
    from streamprep import Context, Item

    return Context(Item("micrograph", "M/tiny", Path("tiny.mrc")), "")


def test_the_order_may_be_set_wherever_it_runs(plugins: Plugins) -> None:
    tables = {"particles": {"phase_flip": {"scope": "micrograph", "order": 7}}}
    (step, _) = resolve(config(**tables, **BOXES, **CTF), plugins).steps
    assert (step.table, step.order) == ("micrographs", 7)


def test_the_plan_differs_with_the_scope(plugins: Plugins) -> None:
    on_boxes = {"particles": {"phase_flip": {}}}
    hashes = {resolve(config(**tables, **BOXES, **CTF), plugins).hash for tables in (ON_MICROGRAPHS, on_boxes)}
    assert len(hashes) == 2


def test_micrographs_are_not_flipped_twice(plugins: Plugins) -> None:
    with pytest.raises(
        ConfigError, match=r"\[particles\.phase_flip\] runs on micrographs .*\[micrographs\.phase_flip\]"
    ):
        resolve(config(**ON_MICROGRAPHS, micrographs={"phase_flip": {}}, **BOXES, **CTF), plugins)


@pytest.mark.parametrize("more", [{}, {"coordinates": {"pick_noise": {"box_size_px": 16}}}])
def test_stacks_have_no_micrographs_to_flip(plugins: Plugins, more: dict[str, Any]) -> None:
    tables = {"particles": {"phase_flip": {"scope": "micrograph"}, "invert": {}}}
    raw = config(**tables, **CTF, **more)
    with pytest.raises(ConfigError, match=r"phase_flip works on micrographs with these parameters .*add \[extract\]"):
        required_kinds(raw, resolve(raw, plugins))


def test_operations_on_micrographs_alone_are_refused(plugins: Plugins) -> None:
    raw = config(micrographs={"phase_flip": {}}, particles={"invert": {}}, **CTF)
    with pytest.raises(ConfigError, match=r"phase_flip works on micrographs, and no particles are cut .*\[extract\]"):
        required_kinds(raw, resolve(raw, plugins))


@pytest.mark.parametrize("scope", ["particle", "micrograph"])
def test_who_waits_for_the_ctf(plugins: Plugins, scope: str) -> None:
    def kinds(missing: str, **tables: Any) -> tuple[bool, tuple[str, ...]]:
        raw = config(particles={"phase_flip": {"scope": scope, "missing": missing}}, **BOXES, **tables)
        plan = resolve(raw, plugins)
        return "ctf" in required_kinds(raw, plan)["micrograph"], optional_kinds(raw, plan, "micrograph")

    assert kinds("wait", **CTF) == (True, ())
    assert kinds("skip", **CTF) == (False, ("ctf",))
    assert kinds("skip") == (False, ())
    with pytest.raises(ConfigError, match=r"phase_flip needs the CTF of each micrograph; name its table"):
        kinds("wait")
    without = config(particles={"invert": {}}, **BOXES, **CTF)
    assert "ctf" in required_kinds(without, resolve(without, plugins))["micrograph"]


def test_one_that_waits_is_enough(plugins: Plugins) -> None:
    both = {"micrographs": {"phase_flip": {}}, "particles": {"phase_flip": {"missing": "skip"}}}
    raw = config(**both, **BOXES, **CTF)
    plan = resolve(raw, plugins)
    assert "ctf" in required_kinds(raw, plan)["micrograph"]
    assert plan.dispensable == set()


def test_stacks_need_no_table_of_ctfs_they_may_have_their_own(plugins: Plugins) -> None:
    raw = config(particles={"phase_flip": {}})
    assert set(required_kinds(raw, resolve(raw, plugins))) == {"particles"}
