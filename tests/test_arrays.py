"""The array backend: chosen aloud, never silently; filters cached where their data are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from streamprep import arrays
from streamprep.arrays import (
    array_namespace,
    cached_filter,
    choose_backend,
    fft_library,
    in_slabs,
    irfft2,
    irfftn,
    ndimage,
    negate_by_sign,
    negate_where,
    put,
    replace_where,
    rfft2,
    rfftn,
    to_host,
    visible_gpus,
)
from streamprep.model import ConfigError
from streamprep.testing import ArrayBackend, backends


@pytest.fixture
def no_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)


@pytest.mark.usefixtures("no_cupy")
def test_a_gpu_that_is_asked_for_and_missing_is_an_error() -> None:
    with pytest.raises(ConfigError) as caught:
        choose_backend("gpu")
    said = str(caught.value)
    for part in ("device = 'gpu'", "cupy is not installed", "Install streamprep[gpu]", "device = 'cpu'"):
        assert part in said


@pytest.mark.usefixtures("no_cupy")
def test_auto_without_a_gpu_takes_the_cpu_and_says_why() -> None:
    backend = choose_backend("auto")
    assert backend.name == "cpu"
    assert "cupy is not installed" in backend.description


def test_a_broken_cupy_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "cupy":
                raise ImportError("libcuda.so.1: cannot open shared object file")

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    assert "cupy cannot be imported (ImportError: libcuda.so.1" in choose_backend("auto").description


def cuda(monkeypatch: pytest.MonkeyPatch, count: object) -> None:
    """A cupy whose CUDA runtime answers with ``count``, a number of devices or an exception."""

    def devices() -> object:
        if isinstance(count, Exception):
            raise count
        return count

    runtime = SimpleNamespace(
        getDeviceCount=devices,
        getDeviceProperties=lambda index: {"name": b"Imaginary 9", "totalGlobalMem": 8 << 30},
    )
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))


@pytest.mark.parametrize(
    ("answer", "said"),
    [(0, "no CUDA device is visible"), (RuntimeError("driver too old"), "CUDA does not answer (driver too old)")],
)
def test_cupy_without_a_device_is_no_gpu(monkeypatch: pytest.MonkeyPatch, answer: object, said: str) -> None:
    cuda(monkeypatch, answer)
    assert said in choose_backend("auto").description
    with pytest.raises(ConfigError) as caught:
        choose_backend("gpu")
    assert said in str(caught.value)


@pytest.mark.parametrize("device", ["auto", "gpu"])
def test_a_gpu_is_taken_by_name(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    cuda(monkeypatch, 1)
    backend = choose_backend(device)
    assert (backend.name, backend.description) == ("gpu", "Imaginary 9, 8 GiB")


@pytest.mark.parametrize(
    ("named", "count", "expected"),
    [(None, 3, ("0", "1", "2")), ("2, 5", 2, ("2", "5")), ("GPU-8932f937,MIG-1", 1, ("GPU-8932f937",)), (None, 0, ())],
)
def test_the_gpus_that_can_be_used_are_those_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, named: str | None, count: int, expected: tuple[str, ...]
) -> None:
    cuda(monkeypatch, count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == expected


def test_the_cpu_is_never_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda(monkeypatch, RuntimeError("must not be asked"))
    backend = choose_backend("cpu")
    assert (backend.name, backend.description) == ("cpu", "CPU")
    pixels = np.zeros(3)
    assert backend.to_device(pixels) is pixels


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint16", "bool"])
def test_to_host_gives_the_same_values_as_numpy(backend: ArrayBackend, dtype: str) -> None:
    values = np.array([[0, 1], [2, 3]]).astype(dtype)
    there = backend.asarray(values)
    host = to_host(there)
    assert isinstance(host, np.ndarray)
    assert host.dtype == values.dtype
    np.testing.assert_array_equal(host, values)


def test_to_host_does_not_copy_what_is_on_the_host() -> None:
    pixels = np.zeros(3)
    assert to_host(pixels) is pixels


@pytest.mark.gpu
def test_a_real_gpu_computes_and_gives_back() -> None:
    backend = choose_backend("auto")
    if backend.name != "gpu":
        pytest.skip(f"no GPU to use: {backend.description}")
    there = backend.to_device(np.arange(6.0))
    assert array_namespace(there).__name__.endswith("cupy")
    assert to_host(there * 2).tolist() == [0, 2, 4, 6, 8, 10]


# --- filters ---------------------------------------------------------------------------------------------------------


class Maker:
    """A filter maker that counts."""

    def __init__(self) -> None:
        self.made: list[tuple[int, ...]] = []

    def __call__(self, *shape: int) -> np.ndarray:
        self.made.append(shape)
        return np.full(shape, float(len(self.made)))


def cached() -> tuple[Maker, object]:
    maker = Maker()

    def ramp(*shape: int) -> np.ndarray:
        """A filter."""
        return maker(*shape)

    return maker, cached_filter(ramp)


@pytest.mark.parametrize("backend", backends())
def test_a_filter_is_made_once_and_lies_where_its_data_are(backend: ArrayBackend) -> None:
    maker, ramp = cached()
    like = backend.asarray(np.zeros(2, dtype=np.float32))
    first = ramp(3, 4, like=like)
    assert ramp(3, 4, like=like) is first
    assert maker.made == [(3, 4)]
    assert ramp(3, 5, like=like).shape == (3, 5)
    np.testing.assert_array_equal(backend.to_host(first), np.ones((3, 4)))


def test_each_backend_has_its_own() -> None:
    strict = pytest.importorskip("array_api_strict")
    maker, ramp = cached()
    on_numpy = ramp(2, like=np.zeros(1))
    on_strict = ramp(2, like=strict.zeros(1))
    assert isinstance(on_numpy, np.ndarray)
    assert array_namespace(on_strict) is strict
    assert ramp(2, like=np.zeros(5)) is on_numpy
    assert ramp(2, like=strict.zeros(5)) is on_strict
    assert len(maker.made) == 2


def test_each_device_has_its_own() -> None:
    strict = pytest.importorskip("array_api_strict")
    maker, ramp = cached()
    first, second = (strict.zeros(1, device=strict.Device(name)) for name in ("CPU_DEVICE", "device1"))
    assert ramp(2, like=first).device == first.device
    assert ramp(2, like=second).device == second.device
    assert len(maker.made) == 2


def test_the_sixteen_used_last_are_kept() -> None:
    maker, ramp = cached()
    like = np.zeros(1)
    for size in range(1, 17):
        ramp(size, like=like)
    ramp(1, like=like)  # now 2 is the oldest
    ramp(17, like=like)
    assert len(maker.made) == 17
    ramp(1, like=like)
    assert len(maker.made) == 17
    ramp(2, like=like)
    assert maker.made[17:] == [(2,)]


def test_it_is_documented_as_its_maker_is() -> None:
    _, ramp = cached()
    assert (ramp.__name__, ramp.__doc__) == ("ramp", "A filter.")


# --- Fourier transforms ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["scipy", "ducc0"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each of the libraries that transform on the CPU."""
    if request.param == "ducc0":
        pytest.importorskip("ducc0")
    monkeypatch.setenv(arrays.FFT_VARIABLE, request.param)
    arrays._ducc0.cache_clear()
    yield request.param
    arrays._ducc0.cache_clear()


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 7, 9), (1, 6, 5), (2, 1, 1), (4, 10)])
def test_transforms_are_numpys(library: str, shape: tuple[int, ...]) -> None:
    assert fft_library() == library
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    kept = images.copy()
    spectrum = rfft2(images)
    assert spectrum.dtype == np.complex64
    np.testing.assert_allclose(spectrum, np.fft.rfft2(images), atol=1e-4)
    np.testing.assert_array_equal(images, kept)
    out = np.empty_like(images)
    assert irfft2(spectrum.copy(), shape[-1], out) is out
    np.testing.assert_allclose(out, images, atol=1e-6)
    np.testing.assert_allclose(irfft2(spectrum, shape[-1]), images, atol=1e-6)


@pytest.mark.parametrize("backend", backends())
def test_transforms_on_every_backend(backend: ArrayBackend) -> None:
    images = np.random.default_rng(0).standard_normal((3, 8, 6)).astype(np.float32)
    spectrum = rfft2(backend.asarray(images))
    np.testing.assert_allclose(backend.to_host(spectrum), np.fft.rfft2(images), atol=1e-5)
    np.testing.assert_allclose(backend.to_host(irfft2(spectrum, 6)), images, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 8, 8), (2, 7, 9, 5), (6, 1, 4), (1, 1, 1), (3, 5, 1)])
def test_transforms_of_maps_are_numpys(library: str, shape: tuple[int, ...]) -> None:
    maps = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    kept = maps.copy()
    spectrum = rfftn(maps)
    assert spectrum.dtype == np.complex64
    np.testing.assert_allclose(spectrum, np.fft.rfftn(maps, axes=(-3, -2, -1)), atol=1e-4)
    np.testing.assert_array_equal(maps, kept)
    out = np.empty_like(maps)
    assert irfftn(spectrum.copy(), shape[-1], out) is out
    np.testing.assert_allclose(out, maps, atol=1e-6)
    np.testing.assert_allclose(irfftn(spectrum, shape[-1]), maps, atol=1e-6)


@pytest.mark.parametrize("backend", backends())
def test_transforms_of_maps_on_every_backend(backend: ArrayBackend) -> None:
    volume = np.random.default_rng(0).standard_normal((4, 8, 6)).astype(np.float32)
    spectrum = rfftn(backend.asarray(volume))
    np.testing.assert_allclose(backend.to_host(spectrum), np.fft.rfftn(volume), atol=1e-5)
    np.testing.assert_allclose(backend.to_host(irfftn(spectrum, 6)), volume, atol=1e-6)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("shape", [(300, 64, 64), (1, 2, 3), (3, 600, 600)])
def test_slabs_cover_a_map_once_and_come_back_in_order(backend: ArrayBackend, shape: tuple[int, int, int]) -> None:
    ranges = in_slabs(lambda start, stop: (start, stop), backend.asarray(np.zeros(shape, np.float32)))
    assert [place for start, stop in ranges for place in range(start, stop)] == list(range(shape[0]))
    assert backend.name == "numpy" or len(ranges) == 1


def test_what_fails_in_a_slab_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        in_slabs(lambda start, stop: 1 // (250 - stop), np.zeros((250, 64, 64), np.float32))


def test_a_library_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(arrays.FFT_VARIABLE, "fftw")
    arrays._ducc0.cache_clear()
    with pytest.raises(ConfigError, match="STREAMPREP_FFT = 'fftw': allowed are scipy and ducc0"):
        rfft2(np.zeros((4, 4), np.float32))
    arrays._ducc0.cache_clear()


# --- choosing by masks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("value", [0.25, -0.0, np.inf, np.nan])
def test_values_are_replaced_where_the_mask_is(backend: ArrayBackend, value: float) -> None:
    rng = np.random.default_rng(0)
    array = rng.standard_normal((3, 8, 6)).astype(np.float32)
    array[0, 0, :4] = np.nan, np.inf, -np.inf, -0.0
    mask = rng.random(array.shape) < 0.5
    mask[0, 0, :4] = True, False, True, False
    there = backend.asarray(array.copy())
    replace_where(there, backend.asarray(mask), value)
    np.testing.assert_array_equal(backend.to_host(there), np.where(mask, np.float32(value), array))
    each = np.arange(3, dtype=np.float32)[:, None, None]
    there = backend.asarray(array.copy())
    replace_where(there, backend.asarray(mask), backend.asarray(each))
    np.testing.assert_array_equal(backend.to_host(there), np.where(mask, each, array))


@pytest.mark.parametrize("backend", backends())
def test_signs_change_where_the_mask_is(backend: ArrayBackend) -> None:
    rng = np.random.default_rng(0)
    array = (rng.standard_normal((3, 8, 6)) + 1j * rng.standard_normal((3, 8, 6))).astype(np.complex64)
    for mask in (rng.random(array.shape) < 0.5, rng.random((8, 6)) < 0.5):
        there = backend.asarray(array.copy())
        negate_where(there, backend.asarray(mask))
        np.testing.assert_array_equal(backend.to_host(there), np.where(mask, -array, array))


# --- put -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("indices", [[], [0], [3, 4, 11], list(range(12))])
def test_values_are_put_at_flat_indices(backend: ArrayBackend, indices: list[int]) -> None:
    before = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    values = -np.arange(1, len(indices) + 1, dtype=np.float32)
    expected = before.copy().ravel()
    expected[indices] = values
    array = backend.asarray(before.copy())
    put(array, backend.asarray(np.array(indices, dtype=np.int64)), backend.asarray(values))
    np.testing.assert_array_equal(backend.to_host(array), expected.reshape(before.shape))
    put(array, backend.asarray(np.array(indices, dtype=np.int64)), backend.asarray(np.float32(7)))
    expected[indices] = 7
    np.testing.assert_array_equal(backend.to_host(array), expected.reshape(before.shape))


@pytest.mark.parametrize("backend", backends())
def test_negating_by_signs_is_negating_where_they_are_negative(backend: ArrayBackend) -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(2, 5, 7)) + 1j * rng.normal(size=(2, 5, 7))).astype(np.complex64)
    signs = rng.uniform(-0.5, 0.5, size=(2, 5, 7))
    signs[0, 0] = 0
    signs[1, 0] = [-0.5, 0.5, -1e-300, 1e-300, -1, 1, 0]
    array = backend.asarray(np.concatenate([values, values], axis=2))[:, 1:, 3:10]  # no contiguous part
    given = backend.to_host(array).copy()
    negate_by_sign(array, backend.asarray(signs[:, 1:, :]))
    np.testing.assert_array_equal(backend.to_host(array), np.where(signs[:, 1:] < 0, -given, given))
    whole = backend.asarray(values.copy())
    negate_by_sign(whole, backend.asarray(signs))
    np.testing.assert_array_equal(backend.to_host(whole), np.where(signs < 0, -values, values))


@pytest.mark.parametrize("backend", backends())
def test_interpolation_is_of_the_arrays_library(backend: ArrayBackend) -> None:
    image = backend.asarray(np.eye(4, dtype=np.float32))
    shifted = ndimage(image).shift(image, (1, 0), order=1, mode="grid-wrap")
    done = backend.to_host(backend.xp.asarray(shifted))
    np.testing.assert_allclose(done, np.roll(np.eye(4), 1, axis=0), atol=1e-6)


def test_images_on_demand_are_sliced_as_an_array_is() -> None:
    images = np.arange(5 * 2 * 3, dtype=np.float32).reshape(5, 2, 3)
    asked: list[tuple[int, int]] = []

    def make(start: int, stop: int) -> np.ndarray:
        asked.append((start, stop))
        return images[start:stop].copy()

    late = arrays.ImagesOnDemand(images.shape, make)
    keys = [slice(1, 3), (slice(2, 9), ...), slice(-2, None), slice(3, 2), (slice(0, 2), 1), (slice(None), 0, 2)]
    for key in keys:
        np.testing.assert_array_equal(late[key], images[key])
    assert asked == [(1, 3), (2, 5), (3, 5), (3, 3), (0, 2), (0, 5)]
    for key in (3, slice(None, None, 2), (slice(4, 0, -1), ...), np.array([4, 0])):
        np.testing.assert_array_equal(late[key], images[key])
    assert (len(late), late.shape, late.ndim, late.dtype) == (5, images.shape, images.ndim, images.dtype)
    np.testing.assert_array_equal(np.asarray(late, np.float64), images.astype(np.float64))
    assert arrays.in_memory(images) is images
    np.testing.assert_array_equal(arrays.in_memory(late), images)
