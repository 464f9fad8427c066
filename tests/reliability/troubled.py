"""An operation that changes nothing, unless it is told to fail."""

from __future__ import annotations

from streamprep import Context, InputError, Params, Particles, Reject, operation

trouble: str | None = None
"""What happens to the next item."""


class Troubled(Params):
    """Fail where the test says so."""


@operation("process_particles", order=50, params=Troubled, name="troubled")
def troubled(particles: Particles, params: Troubled, ctx: Context) -> Particles | None:
    """Raise what `trouble` says."""
    if trouble == "raises":
        raise RuntimeError("an operation that fails")
    if trouble == "bad input":
        raise InputError(ctx.item.path, "an input that cannot be used")
    if trouble == "rejects":
        raise Reject("not wanted")
    return None
