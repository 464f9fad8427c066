"""Helpers for the authors of plugins: array backends to test on, tiny data, and ways to run what was made.

Nothing here needs a GPU, and only `run_sink` and `run_session` write files. pytest is needed for `backends` and
`array_backend` only; a project that uses ``--strict-markers`` declares the marker ``gpu``, which the cupy case carries.

Examples
--------
A test of an operation, once per array backend::

    from streamprep.testing import ArrayBackend, backends, run_operation, tiny_particles

    @pytest.mark.parametrize("backend", backends())
    def test_double(backend: ArrayBackend) -> None:
        particles = tiny_particles(3, 16)
        done, warnings = run_operation(double, backend.move(particles), factor=2.0)
        np.testing.assert_allclose(backend.to_host(done.pixels), 2 * particles.pixels)
        assert warnings == []

The same with a fixture: ``from streamprep.testing import array_backend`` in ``conftest.py``, and an argument of that
name in the test.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from streamprep import Context, Coordinates, Ctf, Item, ItemResult, Map, Micrograph, Optics, Particles, Sink
from streamprep.arrays import array_namespace, choose_backend, in_memory, to_host
from streamprep.model import Array, Identity, Label
from streamprep.naming import STATE_FOLDER
from streamprep.pipeline import Said
from streamprep.snapshot import Snapshot

try:
    import pytest
except ImportError:  # a development dependency; all but the fixture works without
    pytest = None  # type: ignore[assignment]

BackendName = Literal["numpy", "array-api-strict", "cupy"]
WithPixels = TypeVar("WithPixels", Micrograph, Particles, Map)
Data = Micrograph | Coordinates | Particles | Map

ARGUMENT: dict[type, str] = {
    Micrograph: "micrograph",
    Coordinates: "coordinates",
    Particles: "particles",
    Map: "map",
}
"""What each type of data is called in the signature of an operation."""

RESULT: dict[str, type] = {
    "process_micrograph": Micrograph,
    "process_coordinates": Coordinates,
    "extract_particles": Particles,
    "process_particles": Particles,
    "process_map": Map,
}
"""What an operation of each hook returns."""


# --- array backends --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ArrayBackend:
    """One array library that operations must work on.

    array-api-strict stands in for every other library: it has what the array API standard has, and nothing more, so
    a kernel that runs on it runs on a GPU.
    """

    name: BackendName

    def asarray(self, array: npt.ArrayLike) -> Array:
        """A host array as one of this backend, of the same dtype."""
        host = np.asarray(array)
        if self.name == "cupy":
            return choose_backend("gpu").to_device(host)
        if self.name == "numpy":
            return host
        return importlib.import_module("array_api_strict").asarray(host)

    @property
    def xp(self) -> Any:
        """The backend's array API namespace."""
        return array_namespace(self.asarray(np.zeros(1)))

    def to_host(self, array: Array) -> npt.NDArray[Any]:
        """An array of this backend as numpy; TypeError where it is another library's, as after a hidden transfer."""
        if array_namespace(array) is not self.xp:
            raise TypeError(
                f"expected an array of {self.name}, this is {type(array).__module__}.{type(array).__name__}"
            )
        return to_host(array)

    def move(self, data: WithPixels) -> WithPixels:
        """The same micrograph, particles or map with their pixels on this backend."""
        return replace(data, pixels=self.asarray(data.pixels))


@cache
def _missing(name: BackendName) -> str | None:
    """Why a backend cannot be used here; None where it can."""
    if name == "array-api-strict":
        try:
            importlib.import_module("array_api_strict")
        except ImportError:
            return "array-api-strict is not installed"
    if name == "cupy":
        backend = choose_backend("auto")
        if backend.name != "gpu":
            return f"no GPU to use: {backend.description}"
        try:  # found is not yet usable: a library may be missing, or the memory full
            to_host(backend.to_device(np.ones(2)) + 1)
        except Exception as error:
            return f"{backend.description} does not compute: {error}"
    return None


def backends() -> list[Any]:
    """Every array backend as a pytest parameter, to parametrize a test with.

    Returns
    -------
    list of pytest parameters
        Each holds an `ArrayBackend` and is named after it. One that cannot be used here is skipped and says why; cupy
        carries the marker ``gpu``.
    """
    import pytest

    parameters = []
    for name in get_args(BackendName):
        marks = [pytest.mark.gpu] if name == "cupy" else []
        reason = _missing(name)
        if reason is not None:
            marks.append(pytest.mark.skip(reason=reason))
        parameters.append(pytest.param(ArrayBackend(name), id=name, marks=marks))
    return parameters


if pytest is not None:

    @pytest.fixture(
        params=["numpy", "array-api-strict", pytest.param("cupy", marks=pytest.mark.gpu)],
    )
    def array_backend(request: pytest.FixtureRequest) -> ArrayBackend:
        """Run the test once per array backend; import it into a ``conftest.py`` to use it."""
        reason = _missing(request.param)
        if reason is not None:
            pytest.skip(reason)
        return ArrayBackend(request.param)


# --- tiny data -------------------------------------------------------------------------------------------------------


def tiny_optics(pixel_size_angstrom: float = 2.0) -> Optics:
    """The optics that all the tiny data share."""
    return Optics(pixel_size_angstrom=pixel_size_angstrom)


def tiny_ctf(index: int = 0) -> Ctf:
    """A plausible, astigmatic CTF; each ``index`` gives another defocus."""
    return Ctf(15000.0 + 100 * index, 14500.0 + 100 * index, 30.0)


def tiny_particles(n: int = 4, box_px: int = 16, seed: int = 0, *, pixel_size_angstrom: float = 2.0) -> Particles:
    """Particles in noise: a bright disc a quarter of the box wide, on grey values as cameras give them.

    Parameters
    ----------
    n
        Number of images.
    box_px
        Side of the box [px].
    seed
        The same seed makes the same images.
    pixel_size_angstrom
        Pixel size [Å].

    Returns
    -------
    Particles
        numpy float32 pixels of shape (n, box, box), mean about 100 and std about 5, no two images alike; each with a
        coordinate, a column of its own (``rlnAutopickFigureOfMerit``) and a CTF.

    Examples
    --------
    >>> tiny_particles(3, 8).pixels.shape
    (3, 8, 8)
    """
    rng = np.random.default_rng(seed)
    axis = np.arange(box_px) - box_px // 2
    disc = axis[:, None] ** 2 + axis[None, :] ** 2 <= (box_px / 4) ** 2
    pixels = 100 + 5 * rng.standard_normal((n, box_px, box_px)) + 4 * disc
    return Particles(
        pixels=pixels.astype(np.float32),
        optics=tiny_optics(pixel_size_angstrom),
        coordinates=tiny_coordinates(n, (4 * box_px, 6 * box_px), box_px, seed=seed),
        ctf=tuple(tiny_ctf(index) for index in range(n)),
    )


def tiny_coordinates(
    n: int = 4, shape_px: tuple[int, int] = (96, 128), box_size_px: int | None = 16, seed: int = 0
) -> Coordinates:
    """Random centres, not on whole pixels, whose boxes lie inside a micrograph of shape (ny, nx).

    Returns
    -------
    Coordinates
        n rows with a column ``rlnAutopickFigureOfMerit``.
    """
    rng = np.random.default_rng(seed)
    margin = (box_size_px or 0) // 2 + 1
    ny, nx = shape_px
    if n and min(shape_px) <= 2 * margin:
        raise ValueError(f"boxes of {box_size_px} px do not fit into a micrograph of {nx} × {ny} px")
    xy = rng.uniform(margin, np.maximum(np.array([nx, ny]) - margin, margin), size=(n, 2))
    return Coordinates(
        xy_px=xy, box_size_px=box_size_px, columns={"rlnAutopickFigureOfMerit": rng.uniform(0, 1, size=n)}
    )


def tiny_micrograph(
    shape_px: tuple[int, int] = (96, 128), seed: int = 0, *, name: str = "tiny.mrc", pixel_size_angstrom: float = 2.0
) -> Micrograph:
    """A micrograph of noise over a slope of the ice, wider than high unless asked otherwise.

    Parameters
    ----------
    shape_px
        (ny, nx). Not square by default, so that a test notices where the two are mixed up.
    seed
        The same seed makes the same pixels.
    name
        What tables call it.
    pixel_size_angstrom
        Pixel size [Å].

    Returns
    -------
    Micrograph
        numpy float32 pixels, mean about 100, and a CTF.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape_px[0], : shape_px[1]]
    pixels = 100 + 5 * rng.standard_normal(shape_px) + 0.02 * x - 0.01 * y
    return Micrograph(name, pixels.astype(np.float32), tiny_optics(pixel_size_angstrom), tiny_ctf())


def tiny_map(size_px: int = 16, seed: int = 0, *, name: str = "tiny_map.mrc", pixel_size_angstrom: float = 2.0) -> Map:
    """A map without any symmetry: three soft blobs of different heights in weak noise.

    Returns
    -------
    Map
        numpy float32 voxels of shape (size, size, size).
    """
    rng = np.random.default_rng(seed)
    axis = (np.arange(size_px) - size_px // 2) / size_px
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    voxels = 0.02 * rng.standard_normal((size_px,) * 3)
    for height, (cz, cy, cx) in ((1.0, (0.0, 0.05, 0.2)), (0.7, (0.15, -0.15, 0.0)), (0.4, (-0.2, 0.0, -0.1))):
        voxels += height * np.exp(-((z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2) / 0.01)
    return Map(name, voxels.astype(np.float32), pixel_size_angstrom)


def tiny_result(n: int = 4, box_px: int = 16, seed: int = 0, *, name: str = "Micrographs/tiny") -> ItemResult:
    """What the operations made of a micrograph: its particles, for sinks.

    Returns
    -------
    ItemResult
        A micrograph, n coordinates and n particles with a CTF each, as `tiny_particles` makes them, all on the host.
    """
    particles = tiny_particles(n, box_px, seed)
    micrograph = tiny_micrograph((4 * box_px, 6 * box_px), seed, name=f"{name}.mrc")
    coordinates: dict[Label, Coordinates] = {"particle": particles.coordinates or tiny_coordinates(n)}
    item = Item("micrograph", name, Path(f"{name}.mrc"))
    return ItemResult(item, 1, micrograph, coordinates, {"particle": particles})


# --- running one operation -------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """What an operation returned, and the warnings that it recorded."""

    result: Any
    """None where the operation says "unchanged"."""
    warnings: list[str]


def run_operation(
    function: Callable[..., Any], data: Data | tuple[Data, ...], context: Context | None = None, /, **parameters: Any
) -> Run:
    """Run one operation as streamprep would: parameters checked, with the arguments that it declares.

    Parameters
    ----------
    function
        Made with `streamprep.operation`.
    data
        What it works on, `Particles`, `Map` or `Micrograph`; for operations on coordinates and for extraction the
        pair of `Coordinates` and `Micrograph`, in any order.
    context
        For operations that read its seed, item, companions and so on. Its ``warn`` is called as well.
    **parameters
        As the configuration has them; defaults are filled in by the operation's own model.

    Returns
    -------
    Run
        ``result`` and ``warnings``.

    Raises
    ------
    ValueError
        A parameter is unknown or not allowed (pydantic's ValidationError is one), or does not fit the images.
    TypeError
        The function is not an operation, it asks for data that was not given, or it returned something else than its
        hook says.

    Examples
    --------
    >>> from streamprep.plugins.invert import invert_particles
    >>> particles = tiny_particles(2, 8)
    >>> done, warnings = run_operation(invert_particles, particles)
    >>> bool((done.pixels == -particles.pixels).all()), warnings
    (True, [])
    """
    info = getattr(function, "streamprep_operation", None)
    if info is None:
        named = getattr(function, "__name__", repr(function))
        raise TypeError(f"{named} is not an operation; decorate it with @streamprep.operation(hook, order=…)")
    pieces = data if isinstance(data, tuple) else (data,)
    strange = [type(piece).__name__ for piece in pieces if type(piece) not in ARGUMENT]
    if strange:
        raise TypeError(f"data of type {strange[0]}; give {', '.join(kind.__name__ for kind in ARGUMENT)}")
    given: dict[str, Any] = {ARGUMENT[type(piece)]: piece for piece in pieces}
    params = info.params.model_validate(parameters)
    params.check(**_scale(pieces))

    context = context or Context(Item(_kind(pieces), "tests/tiny", Path("tiny.mrc")), info.name)
    warnings: list[str] = []
    also = context.warn

    def warn(message: str) -> None:
        warnings.append(message)
        also(message)

    said = Said()
    context = replace(context, warn=warn, remark=warn)
    given |= {"params": params, "ctx": said.heard_in(context, operation=info.name)}
    wanted = list(inspect.signature(function).parameters)
    lacking = [name for name in wanted if name not in given]
    if lacking:
        raise TypeError(f"{info.name} asks for {', '.join(lacking)}; the data given are {', '.join(sorted(given))}")
    if info.per_image:  # it may overwrite what it gets
        given |= {name: piece.with_pixels(piece.pixels + 0) for name, piece in given.items() if name == "particles"}
    result = function(**{name: given[name] for name in wanted})
    total = next((len(piece) for piece in pieces if isinstance(piece, Particles)), 0)
    Said.tell([said], total, context)
    expected = RESULT[info.hook]
    if result is not None and not isinstance(result, expected):
        raise TypeError(f"{info.name} returned {type(result).__name__}, not {expected.__name__} or None")
    if isinstance(result, Particles):
        result = result.with_pixels(in_memory(result.pixels))
    return Run(result, warnings)


# --- running one sink ------------------------------------------------------------------------------------------------


def run_sink(sink: Sink, result: ItemResult, output: Path) -> list[str]:
    """Hand one item's result to a sink, and commit what it stages, as a session would.

    Each call is a start of its own, with all that a start does: a second one on the same folder is what follows a
    restart. The same item given again is a new generation of it.

    Parameters
    ----------
    sink
        The only one of this output folder.
    result
        As `tiny_result` makes it. Its generation is set here.
    output
        The output folder; made where there is none.

    Returns
    -------
    list of str
        All files that a reader finds below ``output``, sorted.

    Raises
    ------
    ValueError
        The sink wrote outside its staging folder, or what it staged cannot be committed.
    """
    from streamprep.committer import Committer, Result, make_output  # not what tests of operations need
    from streamprep.ledger import Ledger, SourceRow

    make_output(output)
    ledger = Ledger(output / STATE_FOLDER / "ledger.sqlite")
    try:
        ledger.require({}, of="map")  # whatever it is, it waits for nothing here
        committer = Committer(output, ledger, [sink])
        committer.recover()
        ledger.start_run(0.0, "tests")
        source, _, path = result.item.name.partition("/")
        ledger.put_source(SourceRow(source, "", output, ".", "1:1"))
        last = ledger.newest(source, f"{path}.mrc")
        identity = Identity(1, 1 if last is None else last.generation + 1, 1, 1)
        file = ledger.notice(source, f"{path}.mrc", identity, "map", 0.0)
        if file is None:
            raise ValueError(f"{result.item.name}: it cannot be recorded a second time")
        ledger.item_found(file)
        (job,) = ledger.claim(1)
        folder = committer.staging / str(job.id)
        folder.mkdir(parents=True)
        before = _visible(output)
        staged = sink.stage(replace(result, generation=job.generation), folder)
        strange = sorted(_visible(output) - before)
        if strange:
            raise ValueError(
                f"{sink.name} wrote {strange[0]} itself; it may write into the folder that it is given only"
            )
        (fault,) = committer.commit([Result(job, [staged], folder)])
        if fault is not None:
            raise ValueError(f"{sink.name}: what it staged cannot be committed: {fault}")
        committer.publish(force=True)
    finally:
        ledger.close()
    return sorted(_visible(output))


def _visible(output: Path) -> set[str]:
    files = (path.relative_to(output) for path in output.rglob("*") if path.is_file())
    return {path.as_posix() for path in files if path.parts[0] != STATE_FOLDER}


# --- a whole session -------------------------------------------------------------------------------------------------


def run_session(config: Path, *overrides: str) -> Snapshot:
    """Process what is there, publish, and end, as `streamprep once` does, but in this process.

    Plugins are found as ever, by their entry points: the package under test has to be installed, in editable form, say.

    Parameters
    ----------
    config
        The configuration file.
    *overrides
        ``TABLE.KEY=VALUE`` texts, as after ``--set``; files settle at once unless they say otherwise.

    Returns
    -------
    Snapshot
        The last state: ``jobs`` counts items by how they ended, ``rows`` those of each set.

    Raises
    ------
    ConfigError
        The configuration, or a parameter in it, is not valid.
    """
    from streamprep.config import load
    from streamprep.engine import Engine
    from streamprep.executors import InlineExecutor
    from streamprep.pipeline import resolve
    from streamprep.plugin_manager import load_plugins

    loaded = load(config, ["session.settle_seconds=0", *overrides])
    plugins = load_plugins(block=loaded.plugins.block)
    return Engine(loaded, plugins, resolve(loaded, plugins), once=True, executor=InlineExecutor).run()


def _scale(pieces: tuple[Data, ...]) -> dict[str, Any]:
    """Size and pixel size that parameters are checked against; the size counts for boxes and maps only."""
    for piece in pieces:
        if isinstance(piece, Map):
            return {"size_px": int(piece.pixels.shape[-1]), "pixel_size_angstrom": piece.pixel_size_angstrom}
        if isinstance(piece, Particles):
            return {"size_px": int(piece.pixels.shape[-1]), "pixel_size_angstrom": piece.optics.pixel_size_angstrom}
        if isinstance(piece, Micrograph):
            return {"size_px": None, "pixel_size_angstrom": piece.optics.pixel_size_angstrom}
    return {"size_px": None, "pixel_size_angstrom": None}


def _kind(pieces: tuple[Data, ...]) -> Literal["micrograph", "particles", "map"]:
    if any(isinstance(piece, Map) for piece in pieces):
        return "map"
    return "particles" if any(isinstance(piece, Particles) for piece in pieces) else "micrograph"


__all__ = [
    "ArrayBackend",
    "Run",
    "backends",
    "run_operation",
    "run_session",
    "run_sink",
    "tiny_coordinates",
    "tiny_ctf",
    "tiny_map",
    "tiny_micrograph",
    "tiny_optics",
    "tiny_particles",
    "tiny_result",
]
if pytest is not None:
    __all__ += ["array_backend"]
