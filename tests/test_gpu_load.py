"""The load of GPUs, as a library with the interface of nvidia-ml-py tells it; no device was at hand."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from streamprep import arrays, gpu_load
from streamprep.gpu_load import AGAIN_SECONDS, EVERY_SECONDS, OLD_SECONDS, GpuLoad
from streamprep.snapshot import Gpu


class NotSupportedError(Exception):
    pass


class Turns:
    """Stands for an event that is set after some waits."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.waited: list[float] = []

    def is_set(self) -> bool:
        return len(self.waited) >= self.most

    def wait(self, seconds: float) -> None:
        self.waited.append(seconds)


class Driver(SimpleNamespace):
    """Two GPUs; the second is divided up, and does not tell its load."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.begun = 0
        super().__init__(
            NVML_TEMPERATURE_GPU=0,
            NVMLError_NotSupported=NotSupportedError,
            nvmlInit=self.begin,
            nvmlDeviceGetHandleByPciBusId=lambda address: address,
            nvmlDeviceGetName=lambda handle: "NVIDIA H100" if handle.startswith("0000:01") else b"NVIDIA A30",
            nvmlDeviceGetUtilizationRates=self.utilization,
            nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=80 << 30, used=9 << 30, free=71 << 30),
            nvmlDeviceGetTemperature=self.temperature,
        )

    def begin(self) -> None:
        self.begun += 1

    def utilization(self, handle: str) -> Any:
        if handle.startswith("0000:41"):
            raise NotSupportedError
        return SimpleNamespace(gpu=87, memory=12)

    def temperature(self, handle: str, sensor: int) -> int:
        self.asked.set()
        return 61


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    return made


def test_each_gpu_tells_what_it_can(driver: Driver) -> None:
    look = gpu_load.ask_driver(["0000:01:00.0", "0000:41:00.0"])
    assert look() == (
        Gpu("NVIDIA H100", 87.0, 9 << 30, 80 << 30, 61.0),
        Gpu("NVIDIA A30", 0.0, 9 << 30, 80 << 30, 61.0),
    )
    assert driver.begun == 1


def test_it_asks_in_a_thread_of_its_own(driver: Driver) -> None:
    told = threading.Event()
    caller = threading.get_ident()
    asker: list[int] = []

    def addresses() -> list[str]:
        told.wait(10)
        asker.append(threading.get_ident())
        return ["0000:01:00.0"]

    load = GpuLoad(addresses)
    load.start()
    assert load.gpus == (), "the driver is held, and nobody waits for it"
    told.set()
    assert driver.asked.wait(10)
    load.stop()
    for thread in threading.enumerate():
        if thread.name == "gpu load":
            thread.join(10)
    assert [gpu.name for gpu in load.gpus] == ["NVIDIA H100"]
    assert caller not in asker


@pytest.mark.parametrize("fault", ["nvmlInit", "nvmlDeviceGetName"])
def test_without_a_driver_nothing_is_said(driver: Driver, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("Driver Not Loaded")

    monkeypatch.setattr(driver, fault, broken)
    load = GpuLoad(lambda: ["0000:01:00.0"])
    monkeypatch.setattr(load, "_ended", Turns(1))
    load._ask()
    assert load.gpus == ()


def test_a_driver_that_failed_is_asked_again(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """As while it is reset; a session lasts a week."""
    faults = iter([RuntimeError("GPU is lost")])

    def utilization(_: str) -> Any:
        if fault := next(faults, None):
            raise fault
        return SimpleNamespace(gpu=12, memory=0)

    monkeypatch.setattr(driver, "nvmlDeviceGetUtilizationRates", utilization)
    load = GpuLoad(lambda: ["0000:01:00.0"])
    turns = Turns(2)
    monkeypatch.setattr(load, "_ended", turns)
    load._ask()
    assert [gpu.load_percent for gpu in load.gpus] == [12]
    assert turns.waited == [AGAIN_SECONDS, EVERY_SECONDS]


def test_an_old_answer_is_not_shown(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver may hang: the thread is held then, and says nothing."""
    now = [0.0]
    load = GpuLoad(lambda: ["0000:01:00.0"], clock=lambda: now[0])
    monkeypatch.setattr(load, "_ended", Turns(2))
    load._ask()
    assert load.gpus
    now[0] = OLD_SECONDS + 1
    assert load.gpus == ()


def test_without_gpus_no_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "_probe_gpu", lambda: (False, "cupy is not installed"))
    assert arrays.gpu_addresses() == ()
