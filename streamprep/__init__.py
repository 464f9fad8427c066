"""streamprep: streaming preparation of cryo-EM particles, noise boxes and maps while the microscope acquires.

What plugin authors import is here; nothing else is public.
"""

from streamprep.hookspecs import Params, hookimpl, operation
from streamprep.model import (
    Context,
    Coordinates,
    Ctf,
    Entry,
    Image,
    IncompleteError,
    InputError,
    Item,
    Map,
    Micrograph,
    Optics,
    ParticleRows,
    Particles,
    Reject,
)

__version__ = "0.1.0"

__all__ = [
    "Context",
    "Coordinates",
    "Ctf",
    "Entry",
    "Image",
    "IncompleteError",
    "InputError",
    "Item",
    "Map",
    "Micrograph",
    "Optics",
    "Params",
    "ParticleRows",
    "Particles",
    "Reject",
    "__version__",
    "hookimpl",
    "operation",
]
