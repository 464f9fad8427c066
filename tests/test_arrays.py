"""The array backend: chosen aloud, never silently; filters cached where their data are."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from streamprep.arrays import array_namespace, cached_filter, choose_backend, ndimage, to_host
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


@pytest.mark.parametrize("backend", backends())
def test_interpolation_is_of_the_arrays_library(backend: ArrayBackend) -> None:
    image = backend.asarray(np.eye(4, dtype=np.float32))
    shifted = ndimage(image).shift(image, (1, 0), order=1, mode="grid-wrap")
    done = backend.to_host(backend.xp.asarray(shifted))
    np.testing.assert_allclose(done, np.roll(np.eye(4), 1, axis=0), atol=1e-6)
