"""Line charts as SVG; both axes begin at 0 and end at the largest value, at least at 1."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

# Okabe and Ito (2008), for all kinds of colour vision.
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_LEFT, _TOP, _SIZE, _BELOW = 44, 12, 260, 48
_LEGEND: Final = 20  # height of an entry
_TICKS: Final = (0, 0.25, 0.5, 0.75, 1)


@dataclass(frozen=True)
class Series:
    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


def draw(series: Sequence[Series], *, x: str, y: str) -> str:
    """An <svg> element with a legend. A dashed series has the colour of the solid one before it."""
    points = [point for each in series for point in each.points]
    limits = max([1.0, *(x for x, _ in points)]), max([1.0, *(y for _, y in points)])
    height = _TOP + _SIZE + _BELOW + _LEGEND * len(series)
    width = _LEFT + _SIZE + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" font-size="11" fill="#343a40">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        *(_grid(tick, *limits) for tick in _TICKS),
        f'<text x="{_LEFT + _SIZE / 2}" y="{_TOP + _SIZE + 32}" text-anchor="middle">{escape(x)}</text>',
        f'<text transform="translate(12 {_TOP + _SIZE / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y)}</text>",
    ]
    colour = -1
    for row, each in enumerate(series):
        colour += not each.dashed
        parts.append(_line(each, limits, row, _COLOURS[colour % len(_COLOURS)]))
    return "".join((*parts, "</svg>"))


def _at(x: float, y: float) -> tuple[float, float]:
    return round(_LEFT + x * _SIZE, 1), round(_TOP + (1 - y) * _SIZE, 1)


def _grid(tick: float, last_x: float, last_y: float) -> str:
    (x, bottom), (_, top) = _at(tick, 0), _at(tick, 1)
    (left, y), (right, _) = _at(0, tick), _at(1, tick)
    return (
        f'<path d="M{x} {bottom}V{top}M{left} {y}H{right}" stroke="#dee2e6"/>'
        f'<text x="{x}" y="{bottom + 15}" text-anchor="middle">{tick * last_x:.4g}</text>'
        f'<text x="{left - 5}" y="{y + 4}" text-anchor="end">{tick * last_y:.3g}</text>'
    )


def _line(series: Series, limits: tuple[float, float], row: int, colour: str) -> str:
    """The line of a series and its entry in the legend."""
    points = " ".join("{},{}".format(*_at(x / limits[0], y / limits[1])) for x, y in series.points)
    dashes = ' stroke-dasharray="5 4"' if series.dashed else ""
    stroke = f'fill="none" stroke="{colour}" stroke-width="2"{dashes}'
    y = _TOP + _SIZE + _BELOW + _LEGEND * row + 4
    return (
        f'<polyline points="{points}" {stroke}/><path d="M{_LEFT} {y}h24" {stroke}/>'
        f'<text x="{_LEFT + 32}" y="{y + 4}">{escape(series.name)}</text>'
    )
