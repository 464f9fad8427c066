"""The plan: which operations run, in which order, with which parameters; and running it on one item.

No threads, no clock, no files: what is needed of those comes in as arguments.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from streamprep.arrays import (
    Backend,
    ImagesOnDemand,
    array_namespace,
    begin_to_host,
    copies_at_a_time,
    images_in_part,
    to_host,
    writable,
)
from streamprep.config import Config, explain
from streamprep.em.grey_values import grey_range
from streamprep.hookspecs import OPERATION_HOOKS, ItemResult, Params, StackStore, StoredStack
from streamprep.model import (
    Array,
    ConfigError,
    Context,
    Coordinates,
    InputError,
    Item,
    Kind,
    Label,
    Map,
    Micrograph,
    Particles,
    StreamprepError,
    nearest,
)
from streamprep.plugin_manager import LoadedOperation, Plugins

Timer = Callable[[str], AbstractContextManager[None]]
OpenStack = Callable[[Label, int], StackStore]
"""Gives the store for so many particles of one label."""

LARGEST_GREY = 1e18
"""Absolute value of a voxel."""


@dataclass(frozen=True, slots=True)
class Step:
    """One active operation."""

    table: str
    order: int
    params: Params
    operation: LoadedOperation

    @property
    def name(self) -> str:
        """What the configuration calls it."""
        return self.operation.info.name

    def describe(self) -> dict[str, Any]:
        """All that decides its results, for the plan's hash."""
        return {
            "table": self.table,
            "operation": self.name,
            "order": self.order,
            "distribution": self.operation.distribution,
            "version": self.operation.version,
            "parameters": self.params.model_dump(mode="json"),
        }

    def __call__(self, context: Context, **data: Any) -> Any:
        """Run the operation with the arguments that it declares."""
        given = {**data, "params": self.params, "ctx": replace(context, operation=self.name)}
        return self.operation.function(**{name: given[name] for name in self.operation.argnames})


@dataclass(frozen=True, slots=True)
class Plan:
    """The active operations of every lane, sorted."""

    steps: tuple[Step, ...]
    settings: Mapping[str, Any]
    """What else decides results: optics, seed."""

    def lane(self, table: str) -> Iterator[Step]:
        """The steps of one table, in the order they run."""
        return (step for step in self.steps if step.table == table)

    @property
    def extract(self) -> Step | None:
        """The step that cuts boxes, where there is one."""
        return next(self.lane("extract"), None)

    @property
    def companions(self) -> dict[Kind, set[str | None]]:
        """Kinds of files that a micrograph waits for beside its coordinates, with their path patterns."""
        found: dict[Kind, set[str | None]] = {}
        for step in self.steps:
            for kind, pattern in step.params.companions().items() if step.table != "maps" else ():
                found.setdefault(kind, set()).add(pattern)
        return found

    @property
    def dispensable(self) -> set[Kind]:
        """Kinds of files that are used where they are there, and not waited for."""
        return {kind for step in self.steps for kind in step.params.dispensable()} - set(self.companions)

    @property
    def hash(self) -> str:
        """Changes whenever a result could: operations, orders, versions, parameters, optics, seed."""
        described = {"steps": [step.describe() for step in self.steps], "settings": self.settings}
        text = json.dumps(described, sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def describe(self) -> dict[str, Any]:
        """The hash, and all that it stands for."""
        return {"hash": self.hash, "steps": [step.describe() for step in self.steps], **self.settings}


class OperationError(StreamprepError):
    """An operation raised, or returned what it must not. Names it, so that failures can be counted per operation."""

    def __init__(self, operation: str, message: str) -> None:
        super().__init__(f"{operation}: {message}")
        self.operation = operation


class Said:
    """What operations say of one part of a stack, to be told once the others are done, too."""

    def __init__(self) -> None:
        self._flags: list[tuple[str, Array]] = []
        self._texts: dict[tuple[str, str], None] = {}

    def heard_in(self, context: Context, **changes: Any) -> Context:
        """The context for operations on this part."""
        return replace(
            context,
            flag=lambda images, text: self._flags.append((text, images)),
            warn=self._listener("warn"),
            note=self._listener("note"),
            remark=self._listener("remark"),
            **changes,
        )

    def _listener(self, how: str) -> Callable[[str], None]:
        return lambda text: self._texts.setdefault((how, text))

    @staticmethod
    def tell(parts: Sequence[Said], total: int, context: Context) -> None:
        """Pass on what was said of all parts together: images are counted, equal texts told once."""
        counts: dict[str, int] = {}
        for text, images in chain.from_iterable(part._flags for part in parts):
            counts[text] = counts.get(text, 0) + int(np.count_nonzero(to_host(images)))
        for text, count in counts.items():
            if count:
                context.warn(f"{count} of {total} {context.label} images {text}")
        for how, text in dict.fromkeys(chain.from_iterable(part._texts for part in parts)):
            getattr(context, how)(text)


def resolve(config: Config, plugins: Plugins) -> Plan:
    """Find the operations that a configuration names, check their parameters, sort them.

    Raises
    ------
    ConfigError
        An operation is unknown (the nearest is named, and broken plugins with their traceback), offered by two
        plugins, or its parameters are not valid; a plugin to be left out is unknown.
    """
    plugins.check_blocked(config.plugins.block, f"{config.file}: [plugins] block")
    steps: list[Step] = []
    for table in OPERATION_HOOKS:
        tables = getattr(config, table)
        if table == "extract":
            tables = {} if config.extract is None else {"extract": config.extract}
        for name, values in tables.items():
            where = "[extract]" if table == "extract" else f"[{table}.{name}]"
            made = make_step(table, name, values, plugins, f"{config.file}: {where}")
            if any((step.table, step.name) == (made.table, made.name) for step in steps):
                raise ConfigError(
                    f"{config.file}: {where} runs on {made.table} with these parameters, and [{made.table}.{name}] is "
                    "there, too; leave one of them"
                )
            steps.append(made)
    steps = sort_steps(steps)
    settings = {
        "optics": config.optics.model_dump(mode="json"),
        "seed": config.session.seed,
        "ctf": config.ctf is not None,
        "image_paths": config.session.image_paths,
        "flip_y": sorted(config.matching.flip_y),
        "further_tables": sorted(set(config.sets.further_tables)),  # one added later would lack the earlier rows
        "coordinate_files": sorted(set(config.sets.coordinate_files)),
        "stack_dtype": config.sets.stack_dtype,
        **({"sinks": config.sinks} if config.sinks else {}),  # one added later would lack the earlier items
    }
    plan = Plan(tuple(steps), settings)
    box = plan.extract.params.model_dump().get("box_size_px") if plan.extract else None
    out = (plan.extract.params.model_dump().get("output_size_px") if plan.extract else None) or box
    pixel = config.optics.pixel_size_angstrom
    for step in plan.steps:
        size = out if step.table == "particles" else None
        scale = box / out if step.table == "particles" and box and out else 1.0
        check_params(step, size_px=size, pixel_size_angstrom=pixel * scale if pixel else None, where=str(config.file))
    return plan


def required_kinds(config: Config, plan: Plan) -> dict[Kind, dict[Kind, str]]:
    """What each micrograph, and each stack of particles, needs before it can be processed, and the names for messages.

    Micrographs are processed where operations on coordinates or an extraction are configured. Stacks are where there
    are operations on particles and no extraction: else the particles of a session would be in its set twice, as they
    came and as they were cut anew. Maps are where there are operations on them; they stand alone.

    Raises
    ------
    ConfigError
        An operation needs the CTF, and the configuration names no table; it changes micrographs, of which nothing is
        made.
    """
    required: dict[Kind, dict[Kind, str]] = {}
    if plan.extract is not None or any(plan.lane("coordinates")):
        required["micrograph"] = _of_micrographs(config, plan)
    if plan.extract is None and any(plan.lane("particles")):
        required["particles"] = {"rows": "a table that names its images"}
    for step in plan.lane("micrographs"):
        direct = step.name in config.micrographs
        if "micrograph" not in required or (plan.extract is None and not direct):
            told = "" if direct else f" with these parameters of [particles.{step.name}]"
            raise ConfigError(
                f"{config.file}: {step.name} works on micrographs{told}, and no particles are cut from them here; add "
                f"[extract], or let {step.name} work on the particles of existing stacks"
            )
    if any(plan.lane("maps")):
        required["map"] = {}
    return required


def optional_kinds(config: Config, plan: Plan, of: Kind) -> tuple[Kind, ...]:
    """What an item is processed with where it is there, and does not wait for; ``of`` is the kind of the item.

    The CTF of a stack may stand in its own table, so what another table says of its micrograph is not asked for before
    it is read.
    """
    return ("ctf",) if config.ctf is not None and (of == "particles" or "ctf" in plan.dispensable) else ()


def why_not(kind: Kind, plan: Plan) -> str:
    """Why a session takes no micrographs, stacks or maps."""
    if kind == "particles" and plan.extract is not None:
        return (
            "a stack of particles; this session cuts its particles from micrographs ([extract]). A session without "
            "[extract] processes stacks"
        )
    named: Mapping[Kind, str] = {"particles": "stacks of particles", "map": "maps"}
    return f"no operation for {named.get(kind, 'micrographs')} is active"


def _of_micrographs(config: Config, plan: Plan) -> dict[Kind, str]:
    kinds: dict[Kind, str] = {"coordinates": "coordinates"}
    for kind, patterns in plan.companions.items():
        kinds[kind] = " ".join([kind, *sorted(pattern for pattern in patterns if pattern is not None)])
    if config.ctf is not None and "ctf" not in plan.dispensable:
        kinds["ctf"] = f"ctf in {config.ctf.table}"
    elif config.ctf is None and "ctf" in kinds:
        needing = [step.name for step in plan.steps if "ctf" in step.params.companions()]
        raise ConfigError(
            f"{config.file}: {', '.join(needing)} needs the CTF of each micrograph; "
            'name its table, for example [ctf] table = "micrographs_ctf.star"'
        )
    return kinds


def make_step(table: str, name: str, values: Mapping[str, Any], plugins: Plugins, where: str) -> Step:
    """One operation with its parameters, checked by its own model."""
    hook = OPERATION_HOOKS[table]
    found = plugins.named(hook, name)
    if not found:
        message = f"{where}: unknown operation; {nearest(name, plugins.names(hook))}"
        for broken in plugins.broken:
            message += f"\nplugin {broken.name} of {broken.distribution} could not be loaded:\n{broken.error}"
        for plugin, why in plugins.left_out:
            message += f"\nplugin {plugin.name} of {plugin.distribution} may offer it, but is not loaded: {why}"
        elsewhere = [lane for lane, other in OPERATION_HOOKS.items() if other != hook and plugins.named(other, name)]
        if elsewhere:
            message += f"\n{name} works on {' and '.join(elsewhere)}"
        raise ConfigError(message)
    chosen = _only(found, where)
    own = dict(values)
    order = own.pop("order", None)
    model = chosen.info.params
    try:
        params = model.model_validate(own)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, where, model))) from error
    lane = params.lane(table)
    if lane != table:
        takers = [made for made in plugins.named(OPERATION_HOOKS[lane], name) if isinstance(params, made.info.params)]
        if not takers:
            raise ConfigError(f"{where} is to run on {lane}, but no operation {name} there takes its parameters")
        chosen = _only(takers, where)
    order = chosen.info.order if order is None else order
    if not isinstance(order, int) or isinstance(order, bool):
        raise ConfigError(f"{where} order = {order!r}: input should be a whole number")
    return Step(lane, order, params, chosen)


def _only(found: Sequence[LoadedOperation], where: str) -> LoadedOperation:
    if len(found) > 1:
        providers = " and ".join(f"{made.distribution} (plugin {made.plugin})" for made in found)
        raise ConfigError(f'{where} is offered by {providers}; block one of them with [plugins] block = ["…"]')
    return found[0]


def sort_steps(steps: list[Step]) -> list[Step]:
    """By lane, then by order, then by name."""
    lanes = list(OPERATION_HOOKS)
    return sorted(steps, key=lambda step: (lanes.index(step.table), step.order, step.name))


def check_params(step: Step, *, size_px: int | None, pixel_size_angstrom: float | None, where: str) -> None:
    """Raise ConfigError where parameters do not fit the images' size or pixel size."""
    try:
        step.params.check(size_px=size_px, pixel_size_angstrom=pixel_size_angstrom)
    except ValueError as error:
        table = step.table if step.table == "extract" else f"{step.table}.{step.name}"
        raise ConfigError(f"{where}: [{table}] {error}") from error


def _no_timer(name: str) -> AbstractContextManager[None]:  # noqa: ARG001
    return nullcontext()


def _run(step: Step, context: Context, expected: type, timer: Timer, **data: Any) -> Any:
    with timer(step.name):
        made = step(context, **data)
    if made is not None and not isinstance(made, expected):
        raise OperationError(step.name, f"returned {type(made).__name__}, not {expected.__name__} or None")
    return made


def run_micrograph(
    plan: Plan,
    micrograph: Micrograph,
    coordinates: Coordinates,
    context: Context,
    *,
    generation: int = 1,
    backend: Backend | None = None,
    timer: Timer = _no_timer,
    open_stack: OpenStack | None = None,
) -> ItemResult:
    """Run the micrograph lane on one micrograph.

    Parameters
    ----------
    plan
        What to run.
    micrograph
        Pixels on the host; they are moved to the backend once.
    coordinates
        The particles' centres.
    context
        The item, the seed, its companions. Operation and label are filled in for each step.
    generation
        Counts the versions of this item; names the outputs.
    backend
        Where to compute.
    timer
        Makes a context manager around each operation, for measuring.
    open_stack
        Where particles are put part by part as soon as they are done, so that their pixels are never all in memory;
        without it they are kept there.

    Returns
    -------
    ItemResult
        Particles and coordinates per label, pixels on the host, or ``stored``.

    Raises
    ------
    Reject
        An operation drops the item.
    OperationError
        An operation returns something of a wrong type or shape.
    """
    if backend is not None:
        micrograph = replace(micrograph, pixels=backend.to_device(micrograph.pixels))
    for step in plan.lane("micrographs"):
        micrograph = _run(step, context, Micrograph, timer, micrograph=micrograph) or micrograph

    sets: dict[Label, Coordinates] = {"particle": coordinates}
    for step in plan.lane("coordinates"):
        made = _run(step, context, Coordinates, timer, coordinates=sets["particle"], micrograph=micrograph)
        if made is not None:
            sets[made.label] = made

    particles: dict[Label, Particles] = {}
    stored: dict[Label, StoredStack] = {}
    if plan.extract is not None:
        for label, found in sets.items():
            there = replace(context, label=label)
            boxes = _run(plan.extract, there, Particles, timer, micrograph=micrograph, coordinates=found)
            if boxes is None:
                raise OperationError(plan.extract.name, "returned None, not Particles")
            _check_square(plan.extract, boxes)
            if boxes.coordinates is not None:
                sets[label] = boxes.coordinates
            particles[label], stack = _store(plan, boxes, there, timer, open_stack, label)
            stored |= {} if stack is None else {label: stack}
    return ItemResult(context.item, generation, micrograph, sets, particles, stored=stored)


def run_stack(
    plan: Plan,
    particles: Particles,
    context: Context,
    *,
    generation: int = 1,
    backend: Backend | None = None,
    timer: Timer = _no_timer,
    open_stack: OpenStack | None = None,
) -> ItemResult:
    """Run the particle lane on one existing stack; parameters, results and errors as of `run_micrograph`."""
    if backend is not None:
        particles = particles.with_pixels(backend.to_device(particles.pixels))
    particles, stack = _store(plan, particles, context, timer, open_stack)
    stored = {} if stack is None else {particles.label: stack}
    return ItemResult(context.item, generation, None, {}, {particles.label: particles}, stored=stored)


def run_particles(
    plan: Plan, particles: Particles, context: Context, *, timer: Timer = _no_timer, threads: int = 1
) -> Particles:
    """Run the particle operations on a stack, on the backend that its pixels are on; they are overwritten."""
    particles, ours, last = _run_all_but_last(plan, particles, context, timer, threads)
    return _run_parts(plan, last, particles, context, timer, threads, ours)


def _store(
    plan: Plan,
    particles: Particles,
    context: Context,
    timer: Timer,
    open_stack: OpenStack | None,
    label: Label | None = None,
) -> tuple[Particles, StoredStack | None]:
    """Run the particle operations; the last of those that work on parts put their results where they are stored."""
    particles, ours, last = _run_all_but_last(plan, particles, context, timer)
    if open_stack is None or not len(particles):
        done = _run_parts(plan, last, particles, context, timer, 1, ours)
        return done.with_pixels(to_host(done.pixels)), None
    told: dict[int, Particles] = {}

    def take(start: int, stop: int) -> Particles:
        part = _taken(plan, particles, start, stop, timer)
        return part.with_pixels(writable(part.pixels, copy=not ours)) if last else part

    with ExitStack() as opened:
        store: StackStore | None = None
        copied: deque[tuple[int, Particles, Callable[[], Array]]] = deque()

        def give(start: int, part: Particles) -> None:
            nonlocal store
            if store is None:
                store = opened.enter_context(open_stack(label or part.label, len(particles)))
            copied.append((start, part.with_pixels(np.empty(0)), begin_to_host(part.pixels)))
            put_until(copies_at_a_time(part.pixels))

        def put_until(left: int) -> None:
            while len(copied) > left:
                start, part, pixels = copied.popleft()
                assert store is not None
                store.put(start, part.with_pixels(pixels()))
                told[start] = part

        size = images_in_part(particles.pixels[:0, ...])
        run_in_parts(last, len(particles), size, take, give, context, timer=timer)
        put_until(0)
        assert store is not None  # there are particles
        stored, pixels = store.finish()
    return _joined([told[start] for start in sorted(told)], pixels), stored


def _run_all_but_last(
    plan: Plan, particles: Particles, context: Context, timer: Timer, threads: int = 1
) -> tuple[Particles, bool, tuple[Step, ...]]:
    """Run the particle operations up to the last run of those that work on parts.

    Returns
    -------
    particles
        So far.
    ours
        Whether their pixels may be overwritten.
    last
        The operations that are left; none where an operation on the whole stack is the last.
    """
    groups = [
        (by, tuple(steps)) for by, steps in groupby(plan.lane("particles"), lambda it: it.operation.info.per_image)
    ]
    last = groups.pop()[1] if groups and groups[-1][0] else ()
    ours = True
    for per_image, steps in groups:
        if not len(particles):
            break
        if per_image:
            particles = _run_parts(plan, steps, particles, context, timer, threads, ours)
            ours = True
            continue
        particles = _in_memory(plan, particles, timer)
        for step in steps:
            particles = _run_step(step, particles, context, timer)
        ours = False  # what they were given, or gave back, they may have kept
    return particles, ours, last


def _run_parts(
    plan: Plan,
    steps: Sequence[Step],
    particles: Particles,
    context: Context,
    timer: Timer,
    threads: int,
    ours: bool,
) -> Particles:
    """Run operations that work on single images; the results are in memory."""
    whole = _in_memory(plan, particles, timer)
    if not steps or not len(whole):
        return whole
    whole = whole.with_pixels(writable(whole.pixels, copy=not ours))
    done: dict[int, Particles] = {}
    run_in_parts(
        steps, len(whole), images_in_part(whole.pixels), whole.part, done.__setitem__, context, timer=timer,
        threads=threads,
    )  # fmt: skip
    parts = [done[start] for start in sorted(done)]
    pixels = whole.pixels
    if len(parts) == 1:
        pixels = parts[0].pixels
    elif parts[0].pixels.shape[1:] != pixels.shape[1:]:
        pixels = array_namespace(pixels).concat([part.pixels for part in parts])
    return _joined(parts, pixels)


def _taken(plan: Plan, particles: Particles, start: int, stop: int, timer: Timer) -> Particles:
    """Some of the particles; boxes that are cut only now take the time of their extraction."""
    late = isinstance(particles.pixels, ImagesOnDemand)
    with timer(plan.extract.name) if late and plan.extract is not None else nullcontext():
        return particles.part(start, stop)


def _in_memory(plan: Plan, particles: Particles, timer: Timer) -> Particles:
    late = isinstance(particles.pixels, ImagesOnDemand)
    return _taken(plan, particles, 0, len(particles), timer) if late else particles


def run_in_parts(
    steps: Sequence[Step],
    total: int,
    size: int,
    take: Callable[[int, int], Particles],
    give: Callable[[int, Particles], None],
    context: Context,
    *,
    timer: Timer = _no_timer,
    threads: int = 1,
) -> None:
    """Run operations that work on each image alone, all of them on one part of a stack after the other.

    Parameters
    ----------
    steps
        Their operations are ``per_image``.
    total, size
        Images of the stack, and of a part.
    take
        Makes the particles from a first index to before another; their pixels may be overwritten. The first part is
        taken and given alone, then it is called from all threads.
    give
        Receives the index of a part's first image and what was made of it.
    context, timer
        As of `run_micrograph`.
    threads
        How many parts are worked on at a time.

    Raises
    ------
    OperationError
        An operation returns something of a wrong type or shape, or fewer images than it was given.
    """
    said: dict[int, Said] = {}
    stack: dict[int, Any] = {}

    def run(start: int) -> None:
        said[start] = Said()
        there = said[start].heard_in(context, first_image=start)
        part = take(start, min(start + size, total))
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # operations flag what comes of it
            for number, step in enumerate(steps):
                given = part
                part = _kept(given, _run_step(step, given, there, timer))
                if len(part) != len(given):
                    said_of = f"returned {len(part)} images for {len(given)}; what is per_image cannot drop or add any"
                    raise OperationError(step.name, said_of)
                shared = (part.optics, part.label, part.phase_flipped, sorted(part.columns))
                if shared != stack.setdefault(number, shared):
                    raise OperationError(step.name, "gave parts of a stack different optics, flags or columns")
        give(start, part)

    starts = range(0, total, size)
    for start in starts[:1]:
        run(start)
    if threads > 1 and len(starts) > 1:
        with ThreadPoolExecutor(threads) as pool:
            deque(pool.map(run, starts[1:]), maxlen=0)
    else:
        for start in starts[1:]:
            run(start)
    Said.tell([said[start] for start in starts], total, context)


def _run_step(step: Step, particles: Particles, context: Context, timer: Timer) -> Particles:
    size = int(particles.pixels.shape[-1])
    pixel = particles.optics.pixel_size_angstrom
    check_params(step, size_px=size, pixel_size_angstrom=pixel, where=str(context.item.path))
    made: Particles | None = _run(step, context, Particles, timer, particles=particles)
    if made is None:
        return particles
    said = (made.coordinates, made.ctf, made.optics_columns or None, *made.columns.values())
    rows = next((len(values) for values in said if values is not None and len(values) != len(made)), len(made))
    if len(made.pixels.shape) != 3 or len(made) != rows:
        raise OperationError(step.name, f"returned pixels of shape {tuple(made.pixels.shape)} for {rows} particles")
    if particles.pixels.shape[1] == particles.pixels.shape[2]:  # `apply` takes micrographs, too, as they are
        _check_square(step, made)
    return made


def _kept(given: Particles, made: Particles) -> Particles:
    """What an operation made, in the memory of what it was given, which is ours: its own it may have kept."""
    if made.pixels is given.pixels:
        return made
    if made.pixels.shape != given.pixels.shape:
        return made.with_pixels(writable(made.pixels, copy=True))
    given.pixels[...] = array_namespace(given.pixels).astype(made.pixels, given.pixels.dtype, copy=False)
    return made.with_pixels(given.pixels)


def _joined(parts: Sequence[Particles], pixels: Array) -> Particles:
    """One stack of its parts again, with these pixels."""
    first = parts[0]
    if len(parts) == 1:
        return first.with_pixels(pixels)
    coordinates = first.coordinates
    if coordinates is not None:
        placed = [part.coordinates for part in parts if part.coordinates is not None]
        coordinates = replace(
            coordinates,
            xy_px=np.concatenate([part.xy_px for part in placed]),
            columns={name: np.concatenate([part.columns[name] for part in placed]) for name in coordinates.columns},
        )
    return replace(
        first,
        pixels=pixels,
        coordinates=coordinates,
        ctf=None if first.ctf is None else tuple(chain.from_iterable(part.ctf or () for part in parts)),
        columns={name: np.concatenate([part.columns[name] for part in parts]) for name in first.columns},
        optics_columns=tuple(chain.from_iterable(part.optics_columns for part in parts)),
    )


def _check_square(step: Step, made: Particles) -> None:
    shape = tuple(int(side) for side in made.pixels.shape)
    if shape[-2:-1] != shape[-1:]:
        raise OperationError(step.name, f"returned pixels of shape {shape}; the images of a set must be square")


def run_map(plan: Plan, volume: Map, context: Context, *, timer: Timer = _no_timer) -> Map:
    """Run the map operations on one map, on the backend that its pixels are on.

    Raises
    ------
    InputError
        It holds values that are not finite or above `LARGEST_GREY`, or the operations make such values of them.
    OperationError
        An operation returns something of a wrong type or shape.
    """
    path = context.item.path
    _check_grey_range(path, volume.pixels, "it holds values")
    for step in plan.lane("maps"):
        size = int(volume.pixels.shape[-1])
        check_params(step, size_px=size, pixel_size_angstrom=volume.pixel_size_angstrom, where=str(context.item.path))
        made: Map | None = _run(step, context, Map, timer, map=volume)
        if made is None:
            continue
        if len(made.pixels.shape) != 3:
            raise OperationError(step.name, f"returned a map of shape {tuple(made.pixels.shape)}")
        volume = made
    names = ", ".join(step.name for step in plan.lane("maps"))
    _check_grey_range(path, volume.pixels, f"{names}: the map has afterwards values")
    return volume


def _check_grey_range(path: Path, pixels: Array, what: str) -> None:
    least, greatest = grey_range(pixels)
    if not (math.isfinite(least) and math.isfinite(greatest)):
        raise InputError(path, f"{what} that are not finite (NaN or infinite)")
    if max(-least, greatest) > LARGEST_GREY:
        raise InputError(
            path,
            f"{what} from {least:.3g} to {greatest:.3g}; allowed are up to ±{LARGEST_GREY:g}, as squares of larger "
            "ones are no float32 numbers",
        )


def run_volume(
    plan: Plan,
    volume: Map,
    context: Context,
    *,
    generation: int = 1,
    backend: Backend | None = None,
    timer: Timer = _no_timer,
) -> ItemResult:
    """Run the map lane on one map; parameters, results and errors as of `run_micrograph`."""
    there = volume if backend is None else volume.with_pixels(backend.to_device(volume.pixels + 0))
    made = run_map(plan, there, context, timer=timer)
    masks = {name: to_host(mask) for name, mask in made.masks.items()}
    made = replace(made, pixels=to_host(made.pixels), masks=masks)
    return ItemResult(context.item, generation, None, {}, {}, map=made, map_before=volume)


def context_for(plan: Plan, item: Item, **further: Any) -> Context:
    """The context that every step of an item's lane shares."""
    known: dict[str, Any] = {}
    if plan.extract is not None:
        params = plan.extract.params.model_dump()
        known = {
            "box_size_px": params.get("box_size_px"),
            "edge": params.get("edge", "skip"),
            "min_separation_px": params.get("min_separation_px"),
        }
    return Context(item=item, operation="", seed=int(plan.settings.get("seed", 0)), **known, **further)
