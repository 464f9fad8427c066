"""Point groups and helices: the turns, mirrors and inversions that leave a particle as it is.

Matrices act on (x, y, z). Groups are placed as Xmipp 3 places them: n-fold axes along z, two-fold axes of dihedral
groups along x, icosahedral groups in the four settings i1 to i4, see `icosahedral_setting`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np

from streamprep.model import FloatArray

GOLDEN_RATIO = (1 + math.sqrt(5)) / 2
LARGEST_N = 99
"""The highest n-fold axis that names may have, as in Xmipp."""
EXACT = 1e-12
"""How far products of elements may be from elements."""
ALIKE = 1e-6
"""Elements whose entries differ by less are the same."""

ALLOWED = (
    "allowed: c2, c3, …; ci; cs; cNv; cNh; sN with even N; dN; dNv; dNh; t, td, th; o, oh; i (which is i2), i1, i2, "
    f"i3, i4; ih, i1h, i2h, i3h, i4h; in capitals or not; N up to {LARGEST_N}"
)
MIRROR_X, MIRROR_Y, MIRROR_Z = (np.diag(signs) for signs in ((-1.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, -1.0)))
INVERSION = -np.eye(3)

_AXIAL = {
    "c": lambda n: n,
    "cv": lambda n: 2 * n,
    "ch": lambda n: 2 * n,
    "s": lambda n: n,
    "d": lambda n: 2 * n,
    "dv": lambda n: 4 * n,
    "dh": lambda n: 4 * n,
}
_FIXED = {"ci": 2, "cs": 2, "t": 12, "td": 24, "th": 24, "o": 24, "oh": 48}


@dataclass(frozen=True, eq=False)
class PointGroup:
    """A finite group of rotations, mirrors and inversions about the origin."""

    name: str
    """Lower case, as `point_group` understands it."""
    elements: FloatArray
    """Shape (n, 3, 3), float64, read-only, the identity first: orthogonal matrices on (x, y, z)."""

    def __len__(self) -> int:
        return len(self.elements)


def rotation(axis: Iterable[float], angle_deg: float) -> FloatArray:
    """The matrix, on (x, y, z), of a turn about an axis through the origin, right-handed (Rodrigues' formula).

    Examples
    --------
    >>> rotation((0, 0, 2), 90).round(12).tolist()
    [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    x, y, z = np.asarray(list(axis), dtype=np.float64) / np.linalg.norm(list(axis))
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    angle = math.radians(angle_deg)
    return np.asarray(np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * (cross @ cross))


def icosahedral_setting(name: str) -> FloatArray:
    """The turn about y, on (x, y, z), that brings an icosahedral map from setting i2 to another.

    Parameters
    ----------
    name
        ``i1``: two-fold axes along x, y and z, by 90°. ``i2``: by 0°; two-fold axes there, too. ``i3``: a five-fold
        axis along z, by atan(1/φ) = 31.7174744°, φ the golden ratio. ``i4``: by the opposite angle.

    Notes
    -----
    [[cos θ, 0, −sin θ], [0, 1, 0], [sin θ, 0, cos θ]]. From setting a to b: E(b)·E(a)ᵀ. The settings are Xmipp's.

    Examples
    --------
    >>> five_fold = icosahedral_setting("i3") @ [1, 0, GOLDEN_RATIO]
    >>> bool(np.allclose(five_fold[:2], 0))
    True
    """
    length = math.hypot(1, GOLDEN_RATIO)
    cosine, sine = {
        "i1": (0.0, 1.0),
        "i2": (1.0, 0.0),
        "i3": (GOLDEN_RATIO / length, 1 / length),
        "i4": (GOLDEN_RATIO / length, -1 / length),
    }[name]
    return np.array([[cosine, 0.0, -sine], [0.0, 1.0, 0.0], [sine, 0.0, cosine]])


@cache
def point_group(name: str) -> PointGroup:
    """The point group of a name, in capitals or not.

    Parameters
    ----------
    name
        ``cN``: N-fold axis z. ``dN``: also a two-fold axis x. ``t``: three-fold axis z, two-fold axis (0, √⅔, √⅓).
        ``o``: four-fold axis z, three-fold axis (1, 1, 1). ``i1`` to ``i4``: see `icosahedral_setting`; ``i`` is i2.
        ``ci``: inversion. ``cs``, ``cNh``, ``dNh``: with the mirror plane z = 0. ``cNv``: with y = 0. ``dNv``: with
        x = 0. ``sN``: the N-fold turn about z followed by z → −z. ``td``: with the mirror plane x + √3·y = 0. ``th``,
        ``oh``, ``ih``, ``i1h`` to ``i4h``: with the inversion.

    Raises
    ------
    ValueError
        No such group; the message names those there are.

    Examples
    --------
    >>> [len(point_group(name)) for name in ("C3", "d7", "d3v", "Td", "oh", "i1h")]
    [3, 14, 12, 24, 48, 120]
    """
    generators, order = _generators(name)
    elements = np.eye(3)[None]
    reached = 0
    while reached < len(elements):  # multiply what is new by every generator until nothing new comes
        fresh, reached = elements[reached:], len(elements)
        for product in (generator @ element for element in fresh for generator in generators):
            if np.abs(elements - product).max(axis=(1, 2)).min() > ALIKE:
                elements = np.concatenate([elements, product[None]])
        if len(elements) > order:
            break
    elements = np.stack([_clean(element) for element in elements])
    _verify(name, elements, generators, order)
    elements.setflags(write=False)
    return PointGroup(name.strip().lower(), elements)


def _generators(name: str) -> tuple[list[FloatArray], int]:
    text = name.strip().lower()
    axial = re.fullmatch(r"([csd])([1-9][0-9]*)([vh]?)", text)
    if text in ("i", "ih"):
        text = text.replace("i", "i2")
    if text == "c1":
        raise ValueError("the group 'c1' has no symmetry to apply; turn the operation off instead")
    if axial and axial[1] + axial[3] in _AXIAL:
        kind, n = axial[1] + axial[3], int(axial[2])
        if not 1 <= n <= LARGEST_N or (kind == "s" and n % 2):
            raise ValueError(f"there is no symmetry group {name!r}; {ALLOWED}")
        turn = rotation((0, 0, 1), 360 / n)
        added = {
            "c": [],
            "cv": [MIRROR_Y],
            "ch": [MIRROR_Z],
            "s": [],
            "d": [np.diag([1.0, -1.0, -1.0])],
            "dv": [np.diag([1.0, -1.0, -1.0]), MIRROR_X],
            "dh": [np.diag([1.0, -1.0, -1.0]), MIRROR_Z],
        }[kind]
        return [MIRROR_Z @ turn if kind == "s" else turn, *added], _AXIAL[kind](n)
    if text in _FIXED:
        return _fixed(text), _FIXED[text]
    if re.fullmatch("i[1-4]h?", text):
        setting = icosahedral_setting(text[:2])
        axes = (((0, 0, 1), 180), ((1, 0, GOLDEN_RATIO), 72))
        turns = [setting @ rotation(axis, angle) @ setting.T for axis, angle in axes]
        return (turns, 60) if len(text) == 2 else ([*turns, INVERSION], 120)
    raise ValueError(f"there is no symmetry group {name!r}; {ALLOWED}")


def _fixed(text: str) -> list[FloatArray]:
    if text[0] == "c":
        return [INVERSION if text == "ci" else MIRROR_Z]
    if text[0] == "o":
        turns = [rotation((1, 1, 1), 120), rotation((0, 0, 1), 90)]
    else:
        turns = [rotation((0, 0, 1), 120), rotation((0, math.sqrt(2), 1), 180)]
    if text == "td":
        normal = np.array([1, math.sqrt(3), 0]) / 2
        return [*turns, np.eye(3) - 2 * np.outer(normal, normal)]
    return [*turns, INVERSION] if text[1:] == "h" else turns


def _clean(element: FloatArray) -> FloatArray:
    """The nearest orthogonal matrix, and whole numbers where entries are whole but for rounding."""
    u, _, v = np.linalg.svd(element)
    nearest = u @ v
    whole = np.round(nearest) + 0.0
    return np.asarray(np.where(np.abs(nearest - whole) < EXACT, whole, nearest))


def _verify(name: str, elements: FloatArray, generators: list[FloatArray], order: int) -> None:
    """Order, orthogonality and closure; what fails here is an error of this module."""
    if len(elements) != order:
        raise AssertionError(f"{name} has {len(elements)} elements, not {order}")
    if np.abs(elements @ elements.transpose(0, 2, 1) - np.eye(3)).max() > EXACT:
        raise AssertionError(f"{name} is not orthogonal")
    for generator in generators:
        for product in generator @ elements:
            if np.abs(elements - product).max(axis=(1, 2)).min() > EXACT:
                raise AssertionError(f"{name} is not closed")


# --- what needs no interpolation -------------------------------------------------------------------------------------


def maps_grid(matrix: FloatArray) -> bool:
    """Whether a matrix is a signed permutation: it brings each axis of a grid onto an axis.

    Examples
    --------
    >>> maps_grid(np.array([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])), maps_grid(rotation((0, 0, 1), 60))
    (True, False)
    """
    return bool(np.abs(matrix - np.round(matrix)).max() < EXACT)


def grid_elements(elements: FloatArray) -> FloatArray:
    """The subgroup H of a group, shape (n, 3, 3), that maps a cubic grid onto itself; shape (m, 3, 3)."""
    return np.asarray(np.round(elements[[maps_grid(element) for element in elements]]) + 0.0)


def representatives(elements: FloatArray, subgroup: FloatArray) -> FloatArray:
    """One element of each left coset g·H of a subgroup, the identity's first; shape (n / m, 3, 3).

    Of each coset it is the element with the most axes kept or turned over, then that of the smallest turn: where a
    coset has elements that turn about a coordinate axis, it is one of them.
    """
    left = list(elements)
    chosen = []
    while left:
        coset = left[0] @ subgroup
        best = max(coset, key=_preference)
        chosen.append(best)
        left = [element for element in left if np.abs(coset - element).max(axis=(1, 2)).min() > ALIKE]
    return np.stack([_clean(element) for element in chosen])


def _preference(element: FloatArray) -> tuple[int, float, tuple[float, ...]]:
    kept = int(np.sum(np.abs(np.diagonal(element) - 1) < EXACT))
    return kept, round(float(np.trace(element)), 9), tuple(element.round(9).ravel())


def chain(subgroup: FloatArray) -> list[FloatArray]:
    """Steps that build a group of signed permutation matrices.

    Parameters
    ----------
    subgroup
        Shape (m, 3, 3), what `grid_elements` gives.

    Returns
    -------
    list of arrays
        Each of shape (2, 3, 3) or (3, 3, 3), the identity first. Every element of the group is one product of one of
        each step, the last step's leftmost; so a sum over the group is the sum over one step after the other, 5
        additions for the 24 turns of a cube instead of 23. Sign changes come first, then what turns the three axes in
        a circle, then what swaps two.

    Examples
    --------
    >>> [len(step) for step in chain(point_group("o").elements)]
    [2, 2, 3, 2]
    """
    identity = np.eye(3)
    steps: list[FloatArray] = []
    reached = [identity]
    moved = {int(np.sum(np.diagonal(element) == 0)): element for element in subgroup}
    for element in subgroup:
        diagonal = not np.any(element - np.diag(np.diagonal(element)))
        if diagonal and not any(np.array_equal(element, one) for one in reached):
            steps.append(np.stack([identity, element]))
            reached += [element @ one for one in reached]
    if 3 in moved:
        steps.append(np.stack([identity, moved[3], moved[3] @ moved[3]]))
    if 2 in moved:
        steps.append(np.stack([identity, moved[2]]))
    return steps
