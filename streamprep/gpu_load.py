"""How busy the GPUs are that this process may use, as NVIDIA's management library (NVML) tells.

The driver may take long to answer, or never do: a thread of its own asks, and everybody else sees its last answer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from streamprep.arrays import gpu_addresses
from streamprep.snapshot import Gpu

log = logging.getLogger(__name__)

EVERY_SECONDS = 2.0
OLD_SECONDS = 10.0
"""An answer of the driver is shown for so long."""
AGAIN_SECONDS = 60.0
"""After so long a driver that failed is asked again."""


def ask_driver(addresses: Sequence[str]) -> Callable[[], tuple[Gpu, ...]]:
    """Begin to use the driver; what is returned asks it how busy the GPUs at these addresses are.

    Raises
    ------
    Exception
        pynvml is not installed, or the driver does not answer.
    """
    import pynvml

    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByPciBusId(address) for address in addresses]

    def value(ask: Callable[[Any], Any], *arguments: Any) -> Any:
        """Of what a GPU does not tell, as the load where it is divided up (MIG): None."""
        try:
            return ask(*arguments)
        except pynvml.NVMLError_NotSupported:
            return None

    def look(handle: Any) -> Gpu:
        name = pynvml.nvmlDeviceGetName(handle)
        load = value(pynvml.nvmlDeviceGetUtilizationRates, handle)
        memory = value(pynvml.nvmlDeviceGetMemoryInfo, handle)
        heat = value(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU)
        return Gpu(
            name.decode(errors="replace") if isinstance(name, bytes) else str(name),
            0.0 if load is None else float(load.gpu),
            0 if memory is None else int(memory.used),
            0 if memory is None else int(memory.total),
            0.0 if heat is None else float(heat),
        )

    return lambda: tuple(map(look, handles))


class GpuLoad:
    """Asks every two seconds, in a thread of its own; says nothing where the driver says nothing.

    Parameters
    ----------
    addresses
        Finds out where the GPUs are on the PCI bus; called in that thread, too.
    clock
        Monotonic clock.
    """

    def __init__(
        self, addresses: Callable[[], Sequence[str]] = gpu_addresses, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._addresses, self._clock = addresses, clock
        self._ended = threading.Event()
        self._answer: tuple[float, tuple[Gpu, ...]] = (0.0, ())
        """The last one, and when it came."""

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """The last answer; none where that is old."""
        when, gpus = self._answer
        return gpus if self._clock() - when <= OLD_SECONDS else ()

    def start(self) -> None:
        """Begin to ask."""
        threading.Thread(target=self._ask, name="gpu load", daemon=True).start()

    def stop(self) -> None:
        """Ask no more. It waits for nothing: the thread may be held in the driver."""
        self._ended.set()

    def _ask(self) -> None:
        said = ""
        while not self._ended.is_set():
            try:
                look = ask_driver(self._addresses())
                while not self._ended.is_set():
                    self._answer = self._clock(), look()
                    self._ended.wait(EVERY_SECONDS)
            except Exception as error:
                self._answer = (0.0, ())
                why = f"{type(error).__name__}: {error}"
                if why != said:  # it would come again each minute
                    log.info("how busy the GPUs are is not known: %s", why)
                said = why
                if isinstance(error, ImportError):
                    return
                self._ended.wait(AGAIN_SECONDS)
