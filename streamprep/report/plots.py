"""Plots as SVG text, without any library: lines, steps, areas and points on labelled axes, for light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal
from xml.sax.saxutils import escape, quoteattr

Colour = Literal["particle", "noise", "other", "ctf", "odd"]

STYLE = """
.plot{font:11px system-ui,sans-serif;fill:#3a414b}
.plot .grid{stroke:#8a919c;stroke-opacity:.28;stroke-width:.7}
.plot .frame{fill:none;stroke:#8a919c;stroke-opacity:.6}
.plot path.line{fill:none;stroke-width:1.7;stroke-linejoin:round}
.plot .particle{stroke:#12804a}.plot .noise{stroke:#bb5a00}.plot .other{stroke:#2f6fb0}
.plot .ctf{stroke:#8a919c;stroke-width:1}.plot .odd{stroke:#c4233b}
.plot .fill{stroke:none;fill-opacity:.22}.plot .dot{stroke:none}
.plot .fill.particle,.plot .dot.particle{fill:#12804a}.plot .fill.noise,.plot .dot.noise{fill:#bb5a00}
.plot .fill.other,.plot .dot.other{fill:#2f6fb0}.plot .fill.ctf{fill:#8a919c}.plot .dot.odd{fill:#c4233b}
@media (prefers-color-scheme:dark){.plot{fill:#c3cad5}
.plot .particle{stroke:#4fd08a}.plot .noise{stroke:#ff9d4d}.plot .other{stroke:#7db8f0}.plot .odd{stroke:#ff6b81}
.plot .fill.particle,.plot .dot.particle{fill:#4fd08a}.plot .fill.noise,.plot .dot.noise{fill:#ff9d4d}
.plot .fill.other,.plot .dot.other{fill:#7db8f0}.plot .dot.odd{fill:#ff6b81}}
"""
"""How plots look; of a page that holds them, or within each file."""


@dataclass(frozen=True, slots=True)
class Series:
    """One thing that a panel shows."""

    x: Sequence[float]
    y: Sequence[float]
    """As many as ``x``; of steps, the heights of the bars whose edges ``x`` are: one less."""
    colour: Colour
    label: str = ""
    how: Literal["line", "area", "steps", "dots"] = "line"
    titles: Sequence[str] = ()
    """Of dots: what each says when it is pointed at."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes."""

    x_label: str
    y_label: str
    series: Sequence[Series] = field(default_factory=tuple)
    title: str = ""
    powers: bool = False
    """Whether the values of y are exponents of ten."""
    y_from_zero: bool = False
    marks: Sequence[tuple[float, str]] = ()
    """Places on the x axis to be marked by an upright line, each with what it is."""


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between two others.

    Examples
    --------
    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    found = []
    while first * step <= high + 1e-9 * step:
        found.append(round(first * step, 12))
        first += 1
    return found


def figure(panels: Sequence[Panel], about: str, *, columns: int = 1, size: tuple[int, int] = (400, 250)) -> str:
    """Panels side by side and below one another, as one SVG element.

    Parameters
    ----------
    panels
        What to show; empty ones say that there is nothing.
    about
        What it shows, for those who cannot see it.
    columns
        Panels in a row.
    size
        Width and height of a panel, in units of the picture; text is 11 high.
    """
    width, height = size
    rows = -(-len(panels) // columns)
    view = f"0 0 {width * columns} {height * rows}"
    said = f'viewBox="{view}" role="img" aria-label={quoteattr(about)}'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" {said}>']
    for number, panel in enumerate(panels):
        shift = f"translate({number % columns * width} {number // columns * height})"
        parts.append(f'<g transform="{shift}">{_panel(panel, width, height)}</g>')
    return "".join([*parts, "</svg>"])


def as_file(svg: str) -> bytes:
    """A picture of its own: with the style that a page else has."""
    head, close, rest = svg.partition(">")
    return f"{head}{close}<style>{STYLE}</style>{rest}".encode()


def _panel(panel: Panel, width: int, height: int) -> str:
    top = 18 + (13 if any(series.label for series in panel.series) else 0) + (0 if panel.title else -10)
    left, right, bottom = min(60, width // 5), width - 12, height - 36
    values = [
        (x, y) for series in panel.series for x, y in zip(series.x, series.y, strict=False)
        if math.isfinite(x) and math.isfinite(y)
    ]  # fmt: skip
    parts = [f'<text x="{left}" y="12" font-weight="600">{escape(panel.title)}</text>'] if panel.title else []
    parts.append(f'<rect class="frame" x="{left}" y="{top}" width="{right - left}" height="{bottom - top}"/>')
    parts.append(f'<text x="{(left + right) / 2}" y="{height - 6}" text-anchor="middle">{escape(panel.x_label)}</text>')
    parts.append(
        f'<text transform="translate(11 {(top + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(panel.y_label)}</text>"
    )
    if not values:
        parts.append(f'<text x="{(left + right) / 2}" y="{(top + bottom) / 2}" text-anchor="middle">no values</text>')
        return "".join(parts)
    xs = [x for series in panel.series for x in series.x if math.isfinite(x)] + [place for place, _ in panel.marks]
    x_low, x_high = _wide(min(xs), max(xs))
    scaled = [(x, y) for series in panel.series if series.how != "area"
              for x, y in zip(series.x, series.y, strict=False) if math.isfinite(y)] or values  # fmt: skip
    y_low, y_high = min(y for _, y in scaled), max(y for _, y in scaled)
    if panel.y_from_zero:
        y_low = min(0.0, y_low)
    y_low, y_high = _wide(y_low, y_high)
    room = 0.06 * (y_high - y_low)
    y_high, y_low = y_high + room, y_low if panel.y_from_zero and y_low == 0 else y_low - room

    def px(x: float) -> float:
        return left + (x - x_low) / (x_high - x_low) * (right - left)

    def py(y: float) -> float:
        return bottom - (y - y_low) / (y_high - y_low) * (bottom - top)

    for tick in ticks(x_low, x_high, max(2, width // 75)):
        parts.append(f'<path class="grid" d="M{px(tick):.1f} {top}V{bottom}"/>')
        parts.append(f'<text x="{px(tick):.1f}" y="{bottom + 14}" text-anchor="middle">{number_text(tick)}</text>')
    for tick, shown in _power_ticks(y_low, y_high) if panel.powers else _y_ticks(y_low, y_high):
        parts.append(f'<path class="grid" d="M{left} {py(tick):.1f}H{right}"/>')
        parts.append(f'<text x="{left - 5}" y="{py(tick) + 4:.1f}" text-anchor="end">{shown}</text>')
    for series in panel.series:
        parts.append(_drawn(series, px, py, (top, bottom)))
    for place, said in panel.marks:
        parts.append(f'<path class="line odd" stroke-dasharray="4 3" d="M{px(place):.1f} {top}V{bottom}"/>')
        parts.append(f'<text x="{px(place) + 4:.1f}" y="{top + 12}">{escape(said)}</text>')
    place = float(left)
    for series in panel.series:
        if series.label:
            y = top - 8
            parts.append(f'<path class="line {series.colour}" d="M{place:.1f} {y}h14"/>')
            parts.append(f'<text x="{place + 18:.1f}" y="{y + 4}">{escape(series.label)}</text>')
            place += 32 + 6.2 * len(series.label)
    return "".join(parts)


def _drawn(series: Series, px: object, py: object, span: tuple[float, float]) -> str:
    assert callable(px)
    assert callable(py)
    top, bottom = span
    if series.how == "dots":
        drawn = []
        for number, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
            if math.isfinite(x) and math.isfinite(y):
                title = f"<title>{escape(series.titles[number])}</title>" if series.titles else ""
                radius = 4 if series.colour == "odd" else 2.2
                drawn.append(f'<circle class="dot {series.colour}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="{radius}">'
                             f"{title}</circle>")  # fmt: skip
        return "".join(drawn)
    if series.how == "steps":
        edges = zip(series.x, series.x[1:], series.y, strict=False)
        path = f"M{px(series.x[0]):.1f} {bottom}" + "".join(
            f"L{px(a):.1f} {py(y):.1f}L{px(b):.1f} {py(y):.1f}" for a, b, y in edges
        )
        path += f"L{px(series.x[-1]):.1f} {bottom}"
        return f'<path class="fill {series.colour}" d="{path}Z"/><path class="line {series.colour}" d="{path}"/>'
    if series.how == "area":  # 0 … 1 over the whole height, whatever the axis says
        points = [
            (px(x), bottom - min(1.0, max(0.0, y)) * (bottom - top)) for x, y in zip(series.x, series.y, strict=True)
        ]
        path = f"M{points[0][0]:.1f} {bottom}" + "".join(f"L{x:.1f} {y:.1f}" for x, y in points)
        return f'<path class="fill {series.colour}" d="{path}L{points[-1][0]:.1f} {bottom}Z"/>'
    points = [(px(x), py(y)) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="line {series.colour}" d="M{path}"/>' if points else ""


def _wide(low: float, high: float) -> tuple[float, float]:
    """Not of one value only, which no axis could show."""
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    half = 0.5 * abs(low) or 0.5
    return low - half, high + half


def number_text(value: float) -> str:
    """A number for an axis or a caption.

    Examples
    --------
    >>> number_text(0.25), number_text(12000.0), number_text(2.5e-6)
    ('0.25', '12,000', '2.5e-06')
    """
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:.3g}"


def _y_ticks(low: float, high: float) -> list[tuple[float, str]]:
    return [(tick, number_text(tick)) for tick in ticks(low, high, 4)]


def _power_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Ticks of a logarithmic axis: powers of ten, and 2 and 5 times these where there are few."""
    factors = (1, 2, 5) if high - low < 2 else (1,)
    step = max(1, math.ceil((high - low) / 6))
    found = []
    for exponent in range(math.floor(low), math.ceil(high) + 1, step):
        for factor in factors:
            tick = exponent + math.log10(factor)
            if low <= tick <= high:
                plain = number_text(factor * 10.0**exponent)
                power = f'10<tspan dy="-4" font-size="8">{exponent}</tspan>'.replace('8">-', '8">−')
                found.append((tick, plain if -2 <= exponent <= 3 else power if factor == 1 else ""))
    return found
