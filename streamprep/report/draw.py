"""The pictures of one item: what was read of it in, files with their captions and the numbers beside them out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from streamprep.model import FloatArray, Label
from streamprep.pictures import jpeg, map_picture, micrograph_picture, montage
from streamprep.report import measure
from streamprep.report.plots import Colour, Panel, Series, as_file, figure, number_text
from streamprep.report.read import Look, When

MOST_BYTES = 250_000
MICROGRAPH_PX = 1024
THUMB_PX = 240
TILE_PX = 96
SLICE_PX = 256
BINS = 24
NAMES: Mapping[Label, str] = {"particle": "particles", "noise": "noise"}
WHENS: tuple[When, ...] = ("before", "after")
EMPTY_PX = np.empty((0, 2))
FILES = (
    "thumb.jpg",
    "micrograph.jpg",
    "map.jpg",
    *(f"{name}_{when}.jpg" for name in NAMES.values() for when in WHENS),
    "ctf.svg",
    "spectrum_before.svg",
    "spectrum_after.svg",
    "spectrum.svg",
    "statistics.svg",
    "grey_values.svg",
)
"""Every name that a picture may have. None ends in .png: those are of older versions, which committed them."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A file to be."""

    name: str
    data: bytes
    about: str
    """What it shows, in words."""
    size_px: tuple[int, int]


def drawn(
    look: Look, *, boxes: int, box_size_px: int | None, threshold: float | None = None
) -> tuple[list[Picture], dict[str, Any]]:
    """All the pictures of an item, and the numbers for captions, lists and trends, as far as they are known.

    Parameters
    ----------
    look
        What was read of it.
    boxes
        Boxes in a montage.
    box_size_px
        Side of the boxes that are cut [px].
    threshold
        Grey value at which maps are cut off, to be marked; None where they are not.
    """
    rings = _rings(look)
    made = [*_micrograph(look, box_size_px), *_montages(look, boxes), *_plots(look, rings), *_map(look, threshold)]
    return made, _facts(look, rings)


def _facts(look: Look, rings: _Rings | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for label, boxes in look.boxes.items():
        name = NAMES[label]
        found[name] = boxes.count
        for when, images in boxes.images.items():
            means, deviations = measure.box_statistics(images)
            found[f"{name}_mean_{when}"] = float(np.median(means))
            found[f"{name}_std_{when}"] = float(np.median(deviations))
            if label == "particle":
                found[f"contrast_{when}"] = measure.centre_contrast(images)
        if label == "particle" and boxes.ctfs:
            defocus = [(ctf.defocus_u_angstrom + ctf.defocus_v_angstrom) / 2 for ctf in boxes.ctfs]
            found["defocus_um"] = float(np.mean(defocus)) / 1e4
    if rings is not None:
        found["ctf_fit"], found["ctf_best_fit"], found["ctf_best_factor"] = rings.fit
    if look.pixel_size_angstrom:
        found["pixel_size_angstrom"] = look.pixel_size_angstrom
    shown = look.pixels if look.pixels is not None else look.maps.get("after")
    if shown is not None:
        found["shape_px"] = [int(side) for side in reversed(shown.shape)]
    return {name: value for name, value in found.items() if not isinstance(value, float) or math.isfinite(value)}


def _jpeg(name: str, image: Image.Image, about: str, most: int = MOST_BYTES) -> Picture:
    return Picture(name, jpeg(image, most), about, image.size)


def _svg(name: str, panels: list[Panel], about: str, **how: Any) -> Picture:
    columns, (width, height) = how.get("columns", 1), how.get("size", (400, 250))
    size = (width * columns, height * -(-len(panels) // columns))
    return Picture(name, as_file(figure(panels, about, **how)), about, size)


def _micrograph(look: Look, box_size_px: int | None) -> Iterator[Picture]:
    if look.pixels is None:
        return
    places = {label: boxes.xy_px for label, boxes in look.boxes.items()}
    particles, noise = places.get("particle", EMPTY_PX), places.get("noise", EMPTY_PX)
    image = micrograph_picture(
        look.pixels,
        particles,
        noise,
        box_size_px=box_size_px,
        side_px=MICROGRAPH_PX,
        pixel_size_angstrom=look.pixel_size_angstrom,
    )
    said = f"{len(particles)} particles in circles" + (f", {len(noise)} noise boxes in squares" if len(noise) else "")
    yield _jpeg("micrograph.jpg", image, f"micrograph with {said}")
    image.thumbnail((THUMB_PX, THUMB_PX))
    yield _jpeg("thumb.jpg", image, f"small: micrograph with {said}", MOST_BYTES // 8)


def _montages(look: Look, most: int) -> Iterator[Picture]:
    for label, boxes in look.boxes.items():
        for when, images in boxes.images.items():
            chosen = measure.spread(len(images), most)
            columns = max(1, math.ceil(math.sqrt(len(chosen) + 1)))
            mean = images.mean(axis=0, dtype=np.float64)
            sheet = montage(images[chosen], columns=columns, side_px=TILE_PX, mean=mean)
            what = "as cut from the micrograph" if when == "before" else "as stored"
            if when == "before" and look.pixels is None:
                what = "as they came"
            about = f"{len(chosen)} of {boxes.count} {label} boxes {what}; first, framed, the mean of {len(images)}"
            yield _jpeg(f"{NAMES[label]}_{when}.jpg", sheet, about)
    if look.done.kind == "particles" and (some := look.boxes.get("particle")) and some.images:
        images = some.images.get("after", next(iter(some.images.values())))
        yield _jpeg("thumb.jpg", montage(images[measure.spread(len(images), 4)], columns=2, side_px=THUMB_PX // 2),
                    "small: particles", MOST_BYTES // 8)  # fmt: skip


def _plots(look: Look, rings: _Rings | None) -> Iterator[Picture]:
    if rings is not None:
        thons = Panel(
            "spatial frequency [1/Å]",
            "log₁₀ power, background off",
            (
                Series(rings.frequency.tolist(), rings.ctf.tolist(), "ctf", "|CTF|², 0 to 1", "area"),
                Series(rings.frequency.tolist(), rings.power.tolist(), "other", "micrograph"),
            ),
            "Thon rings and CTF",
        )
        yield _svg("ctf.svg", [thons], "radial power of the micrograph, and |CTF|² of the table: their maxima coincide")
    for when in WHENS:
        panel = _spectrum(look, when)
        if panel is not None:
            yield _svg(f"spectrum_{when}.svg", [panel], f"radial power spectra of the boxes {when} the operations")
    yield from _statistics(look)


@dataclass(frozen=True, slots=True)
class _Rings:
    """The spectrum of a micrograph without its background, and CTF² of the table, at frequencies [1/Å]."""

    frequency: FloatArray
    power: FloatArray
    ctf: FloatArray
    fit: tuple[float, float, float]
    """See `measure.fit_of_ctf`."""


def _rings(look: Look) -> _Rings | None:
    particles = look.boxes.get("particle")
    if particles is None or not particles.ctfs or look.pixels is None or not look.pixel_size_angstrom:
        return None
    frequency, power = measure.radial_power(measure.tiles(look.pixels))
    frequency = frequency / look.pixel_size_angstrom
    seen = (frequency >= 1 / measure.LOW_ANGSTROM) & (frequency <= 1 / measure.HIGH_ANGSTROM)
    if seen.sum() < 16:
        return None
    frequency = frequency[seen]
    rings = measure.thon_rings(frequency, power[seen])
    ctf = measure.mean_ctf_power(particles.ctfs, frequency)
    return _Rings(frequency, rings, ctf, measure.fit_of_ctf(particles.ctfs, frequency, rings))


def _spectrum(look: Look, when: When) -> Panel | None:
    series: list[Series] = []
    ctf: list[Series] = []
    unit = None
    labels: tuple[Label, ...] = ("noise", "particle")
    for label in labels:
        boxes = look.boxes.get(label)
        if boxes is None or when not in boxes.images or not boxes.pixel_size_angstrom.get(when):
            continue
        images = boxes.images[when]
        frequency, power = measure.radial_power(images)
        frequency = frequency / boxes.pixel_size_angstrom[when]
        unit = unit or float(images.var(axis=(1, 2), dtype=np.float64).mean()) or 1.0
        shown = np.log10(np.maximum(power / unit, 1e-9))
        series.append(Series(frequency.tolist(), shown.tolist(), label, NAMES[label]))
        if label == "particle" and boxes.ctfs:
            fine = np.linspace(frequency[0], frequency[-1], 240)
            power = measure.mean_ctf_power(boxes.ctfs, fine)
            ctf.append(Series(fine.tolist(), power.tolist(), "ctf", "|CTF|²", "area"))
    if not series:
        return None
    of = "noise" if "noise" in look.boxes and when in look.boxes["noise"].images else "the boxes"
    return Panel(
        "spatial frequency [1/Å]",
        f"power / variance of {of}",
        (*ctf, *reversed(series)),
        f"Power spectra {when}",
        powers=True,
    )


def _statistics(look: Look) -> Iterator[Picture]:
    panels = []
    for when in WHENS:
        found = {
            label: measure.box_statistics(boxes.images[when])
            for label, boxes in look.boxes.items()
            if when in boxes.images
        }
        for number, what in enumerate(("mean", "std")) if found else ():
            panels.append(_histogram({label: values[number] for label, values in found.items()}, f"{what} {when}"))
    if panels:
        about = "histograms of the mean and the standard deviation of each box, before and after the operations"
        yield _svg("statistics.svg", panels, about, columns=2, size=(200, 150))


def _histogram(values: Mapping[Label, FloatArray], title: str) -> Panel:
    everything = np.concatenate(list(values.values()))
    low, high = float(everything.min()), float(everything.max())
    if high - low < 1e-3 * max(abs(low), abs(high), 1e-3):  # all are the same but for rounding: one narrow peak
        middle, half = (low + high) / 2, 0.05 * max(abs(low), abs(high), 1.0)
        low, high = middle - half, middle + half
    edges = np.linspace(low, high, BINS + 1)
    colours: Mapping[Label, Colour] = {"particle": "particle", "noise": "noise"}
    series = [
        Series(edges.tolist(), np.histogram(found, edges)[0].tolist(), colours[label], NAMES[label], "steps")
        for label, found in values.items()
    ]
    return Panel("grey value of a box", "boxes", series, title, y_from_zero=True)


def _map(look: Look, threshold: float | None) -> Iterator[Picture]:
    there = {when: look.maps[when] for when in WHENS if when in look.maps}
    if not there:
        return
    rows = "above before, below after the operations" if len(there) == 2 else f"{next(iter(there))} the operations"
    about = f"central slices across x, y and z, and the sum along z; {rows}"
    sheet = map_picture(list(there.values()), side_px=SLICE_PX)
    yield _jpeg("map.jpg", sheet, about)
    thumb = map_picture([list(there.values())[-1]], side_px=SLICE_PX)
    thumb = thumb.crop((2 * SLICE_PX + 10, 2, 3 * SLICE_PX + 10, SLICE_PX + 2))  # the slice across z
    yield _jpeg("thumb.jpg", thumb, "small: central slice across z", MOST_BYTES // 8)
    colours: Mapping[When, Colour] = {"before": "other", "after": "particle"}
    spectra = []
    if look.pixel_size_angstrom:
        for when, volume in there.items():
            frequency, power = _map_power(volume)
            shown = np.log10(np.maximum(power / max(power.max(), 1e-300), 1e-12))
            spectra.append(Series((frequency / look.pixel_size_angstrom).tolist(), shown.tolist(), colours[when], when))
        panel = Panel("spatial frequency [1/Å]", "power / highest", spectra, "Radial power", powers=True)
        yield _svg("spectrum.svg", [panel], "radial power spectrum of three central sections of the map")
    panels = []
    for when, volume in there.items():
        counts, edges = np.histogram(volume, 80)
        shown = np.log10(np.maximum(counts, 0.5))
        marks = ((threshold, "threshold"),) if threshold is not None and edges[0] <= threshold <= edges[-1] else ()
        steps = Series(edges.tolist(), shown.tolist(), colours[when], "", "steps")
        panels.append(Panel("grey value", "voxels", [steps], f"Grey values {when}", powers=True, marks=marks))
    yield _svg("grey_values.svg", panels, "histograms of the grey values", columns=1, size=(400, 190))


def _map_power(volume: npt.NDArray[Any]) -> tuple[FloatArray, FloatArray]:
    """Radial power of the three central sections of a map's transform: those of its projections along the axes."""
    found = [measure.radial_power(volume.sum(axis=axis, dtype=np.float64)[None]) for axis in range(3)]
    shortest = min((frequency for frequency, _ in found), key=len)
    return shortest, np.asarray(np.mean([np.interp(shortest, frequency, power) for frequency, power in found], axis=0))


def caption(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Numbers of an item as pairs of a name and a text."""
    texts: list[tuple[str, str]] = []
    for name in ("particles", "noise"):
        if name in found:
            texts.append((name if name == "particles" else "noise boxes", f"{found[name]:,}"))
    if "shape_px" in found:
        texts.append(("size", " × ".join(map(str, found["shape_px"])) + " px"))
    if "pixel_size_angstrom" in found:
        texts.append(("pixel", f"{found['pixel_size_angstrom']:.4g} Å"))
    if "defocus_um" in found:
        texts.append(("defocus", f"{found['defocus_um']:.2f} µm"))
    if "ctf_fit" in found:
        texts.append(("correlation of Thon rings and |CTF|²", f"{found['ctf_fit']:.2f}"))
    for when in WHENS:
        if f"contrast_{when}" in found:
            value = found[f"contrast_{when}"]
            shade = "bright" if value > 0 else "dark"
            texts.append((f"particles {when}", f"{shade} ({value:+.2f} σ)" if abs(value) >= 0.02 else "no contrast"))
    for name in ("particles", "noise"):
        if f"{name}_std_after" in found:
            mean, deviation = found[f"{name}_mean_after"], found[f"{name}_std_after"]
            texts.append((f"{name} after", f"mean {number_text(round(mean, 4))}, std {number_text(deviation)}"))
    return texts
