"""Checked CTF parameters, whatever table they come from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from streamprep.model import Ctf, FloatArray, InputError

_MAX_DEFOCUS_ANGSTROM = 1e7
_RANGES = {
    "defocus_u_angstrom": (-_MAX_DEFOCUS_ANGSTROM, _MAX_DEFOCUS_ANGSTROM),
    "defocus_v_angstrom": (-_MAX_DEFOCUS_ANGSTROM, _MAX_DEFOCUS_ANGSTROM),
    "voltage_kv": (1.0, 3000.0),
    "spherical_aberration_mm": (0.0, 100.0),
    "amplitude_contrast": (0.0, 1.0),
}


def checked_ctf(path: Path, where: str, **values: float) -> Ctf:
    """A `Ctf` of finite values that a microscope can have.

    Parameters
    ----------
    path
        For messages.
    where
        Where in the file the values stand, such as ``row 3``.
    values
        The fields of `Ctf`; those left out keep its defaults.

    Raises
    ------
    InputError
        A value is not finite or out of range; names the place, the value and what is allowed.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            raise InputError(path, f"{where}: {name} is {value}, not a finite number")
        low, high = _RANGES.get(name, (-math.inf, math.inf))
        if not low <= value <= high:
            raise InputError(path, f"{where}: {name} is {value:g}; it must be from {low:g} to {high:g}")
    return Ctf(**values)


def checked_ctfs(path: Path, where: str, fields: Mapping[str, FloatArray]) -> list[Ctf]:
    """The `Ctf` of each row of columns of finite numbers, by the names of its fields.

    Raises
    ------
    InputError
        As `checked_ctf`, of the first row that is wrong; ``where`` says of which table.
    """
    for name, values in fields.items():
        low, high = _RANGES.get(name, (-math.inf, math.inf))
        wrong = np.flatnonzero(~((values >= low) & (values <= high)))
        if len(wrong):
            checked_ctf(path, f"row {wrong[0] + 1} {where}", **{name: float(values[wrong[0]])})
    names = list(fields)
    return [Ctf(**dict(zip(names, row, strict=True))) for row in np.stack(list(fields.values()), axis=1).tolist()]
