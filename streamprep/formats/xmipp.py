"""Xmipp metadata files."""

from __future__ import annotations

from streamprep.model import Coordinates


def pos_text(coordinates: Coordinates) -> str:
    """Coordinates of one micrograph as an Xmipp ``.pos`` file: whole pixels, centres, all enabled."""
    head = (
        "# XMIPP_STAR_1 * \n#\ndata_header\nloop_\n _pickingMicrographState\nManual\n"
        "data_particles\nloop_\n _enabled\n _xcoor\n _ycoor\n"
    )
    return head + "".join(f"1 {int(x + 0.5)} {int(y + 0.5)}\n" for x, y in coordinates.xy_px.clip(min=0).tolist())
