"""Bars as SVG: enough for the results, and nothing to install."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#1f6feb", "#6ea8ff", "#0b3d91", "#b45309", "#d97706", "#f2b15c", "#64748b", "#047857", "#9f1239")
WIDTH, LEFT, RIGHT, BAR, GAP, TOP = 960, 300, 90, 17, 26, 56
STYLE = "font-family:system-ui,sans-serif;font-size:12px"


def bars(title: str, groups: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> str:
    """Horizontal bars on a logarithmic scale.

    Args:
        title: above the drawing.
        groups: for each heading the value of each name.
        names: in the order of their colours.
    """
    values = [value for group in groups.values() for value in group.values()]
    if not values:
        return ""
    low = 10 ** math.floor(math.log10(min(values)))
    high = max(values)
    scale = (WIDTH - LEFT - RIGHT) / math.log10(max(high / low, 1.01))

    def length(value: float) -> float:
        return max(math.log10(value / low) * scale, 1)

    drawn, y = [], float(TOP)
    for heading, group in groups.items():
        drawn.append(f'<text x="8" y="{y + 12:.0f}" font-weight="600">{escape(heading)}</text>')
        y += BAR + 2
        for name in names:
            if name not in group:
                continue
            colour, wide = COLOURS[names.index(name) % len(COLOURS)], length(group[name])
            drawn += [
                f'<text x="{LEFT - 8}" y="{y + 12:.0f}" text-anchor="end">{escape(name)}</text>',
                f'<rect x="{LEFT}" y="{y:.0f}" width="{wide:.1f}" height="{BAR - 4}" fill="{colour}"/>',
                f'<text x="{LEFT + wide + 6:.1f}" y="{y + 11:.0f}">{group[name]:.2f}</text>',
            ]
            y += BAR
        y += GAP
    ticks = []
    mark = low
    while mark <= high:
        x = LEFT + math.log10(mark / low) * scale
        ticks.append(f'<line x1="{x:.1f}" y1="{TOP - 14}" x2="{x:.1f}" y2="{y - GAP:.0f}" stroke="#d0d7de"/>')
        ticks.append(f'<text x="{x:.1f}" y="{TOP - 18}" text-anchor="middle" fill="#57606a">{mark:g}</text>')
        mark *= 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:.0f}" width="{WIDTH}" height="{y:.0f}" '
        f'style="{STYLE}">\n<rect width="100%" height="100%" fill="white"/>\n'
        f'<text x="8" y="20" font-size="15" font-weight="600">{escape(title)}</text>\n'
        + "\n".join([*ticks, *drawn])
        + "\n</svg>\n"
    )
