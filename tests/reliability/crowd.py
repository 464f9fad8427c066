"""A plugin with an operation for which a GPU has room for so many images at a time, on one of the micrographs."""

from __future__ import annotations

from typing import Any

from streamprep import Params, operation

fits = 8
seen: list[int] = []
"""How many images it was given, each time."""


class OutOfMemoryError(MemoryError):
    """What cupy raises where the memory of a GPU does not suffice."""


OutOfMemoryError.__module__ = "cupy.cuda.memory"


class Room(Params):
    """None."""


@operation("process_particles", order=35, params=Room, per_image=True)
def crowd(particles: Any, params: Room, ctx: Any) -> Any:
    """Needs room; changes the pixels before it runs out of it."""
    if "mic_0002" not in ctx.item.name:
        return None
    ctx.warn("it was here")
    particles.pixels[...] += 1
    seen.append(len(particles))
    if len(particles) > fits:
        raise OutOfMemoryError("Out of memory allocating 1,234 bytes")
    return particles
