"""The array backend: numpy, or cupy by the same code. The only module that knows cupy.

Kernels begin with ``xp = array_namespace(x)`` and call only what the array API standard has. Data moves between host
and device in `to_device` and `to_host`, called by the host program around a chain, and nowhere else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace as _array_namespace
from array_api_compat import device as array_device
from array_api_compat import is_cupy_array, is_numpy_array

from streamprep.model import Array, ConfigError

DeviceName = Literal["auto", "cpu", "gpu"]


def array_namespace(*arrays: Array) -> Any:
    """The array API namespace that all the given arrays belong to."""
    return _array_namespace(*arrays)


@dataclass(frozen=True, slots=True)
class Backend:
    """Where arrays are computed on."""

    name: Literal["cpu", "gpu"]
    description: str
    """What to tell the user, for instance the GPU's name and memory."""

    def to_device(self, array: npt.NDArray[Any]) -> Array:
        """A host array on this backend; the same array on the CPU."""
        if self.name == "cpu":
            return array
        import cupy

        return cupy.asarray(array)


def to_host(array: Array) -> npt.NDArray[Any]:
    """Any backend's array as numpy; numpy's own is passed through."""
    if is_numpy_array(array):
        return array
    if is_cupy_array(array):
        return array.get()  # type: ignore[no-any-return]
    return np.asarray(array)


def choose_backend(device: DeviceName) -> Backend:
    """Choose where to compute.

    Parameters
    ----------
    device
        ``cpu``, ``gpu``, or ``auto``: the GPU where there is one.

    Raises
    ------
    ConfigError
        A GPU was asked for and cannot be used. There is no silent fall back.
    """
    if device == "cpu":
        return Backend("cpu", "CPU")
    found, said = _probe_gpu()
    if found:
        return Backend("gpu", said)
    if device == "gpu":
        raise ConfigError(f"device = 'gpu' was asked for, but {said}. Install streamprep[gpu], or set device = 'cpu'.")
    return Backend("cpu", f"CPU ({said})")


def _probe_gpu() -> tuple[bool, str]:
    try:
        import cupy
    except ModuleNotFoundError:
        return False, "cupy is not installed"
    except Exception as error:  # a broken CUDA installation raises ImportError and others
        return False, f"cupy cannot be imported ({type(error).__name__}: {error})"
    try:
        if cupy.cuda.runtime.getDeviceCount() < 1:
            return False, "no CUDA device is visible"
        properties = cupy.cuda.runtime.getDeviceProperties(0)
    except Exception as error:
        return False, f"CUDA does not answer ({error})"
    name = properties["name"].decode(errors="replace")
    return True, f"{name}, {properties['totalGlobalMem'] / 2**30:.0f} GiB"


def cached_filter(function: Callable[..., npt.NDArray[Any]]) -> Callable[..., Array]:
    """Cache what a filter maker returns, on the backend of the data that it is for.

    The maker takes hashable arguments and returns a host array. The wrapped function takes the same arguments and
    ``like=``, an array whose backend the filter is wanted on. The last 16 are kept.
    """
    kept: OrderedDict[Any, Array] = OrderedDict()

    @wraps(function)
    def on_backend(*args: Any, like: Array) -> Array:
        xp = array_namespace(like)
        place = array_device(like)
        key = (xp.__name__, str(place), args)
        if key in kept:
            kept.move_to_end(key)
            return kept[key]
        made = function(*args)
        kept[key] = made if is_numpy_array(like) else xp.asarray(made, device=place)
        while len(kept) > 16:
            kept.popitem(last=False)
        return kept[key]

    return on_backend
