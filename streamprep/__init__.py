"""streamprep: streaming preparation of cryo-EM particles, noise boxes and maps while the microscope acquires.

What plugin authors import is here; nothing else is public.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamprep.hookspecs import (
        ItemResult,
        Params,
        Sink,
        StackStore,
        Staged,
        StagedRows,
        Table,
        hookimpl,
        operation,
    )
    from streamprep.model import (
        ConfigError,
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
    "ConfigError",
    "Context",
    "Coordinates",
    "Ctf",
    "Entry",
    "Image",
    "IncompleteError",
    "InputError",
    "Item",
    "ItemResult",
    "Map",
    "Micrograph",
    "Optics",
    "Params",
    "ParticleRows",
    "Particles",
    "Reject",
    "Sink",
    "StackStore",
    "Staged",
    "StagedRows",
    "Table",
    "__version__",
    "hookimpl",
    "operation",
]

_OF_HOOKSPECS = (
    "ItemResult",
    "Params",
    "Sink",
    "StackStore",
    "Staged",
    "StagedRows",
    "Table",
    "hookimpl",
    "operation",
)


def __getattr__(name: str) -> Any:
    """Take a name from its module when it is asked for first: numpy takes longer than a shell's completion may."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "hookspecs" if name in _OF_HOOKSPECS else "model"
    globals()[name] = found = getattr(import_module(f"{__name__}.{module}"), name)
    return found
