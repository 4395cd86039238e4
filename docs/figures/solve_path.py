"""Draws the path of one solve, `solve_path.svg`: `python docs/figures/solve_path.py`."""

from __future__ import annotations

from html import escape
from pathlib import Path

__all__ = ["drawing"]

WIDTH = 600
INK, PAPER, LINE = "#1c2333", "#ffffff", "#5b6478"
ASKED, DONE, STEP, BACK = "#dfe7fb", "#dff3e4", "#fff3cf", "#fbe3dd"
SIZE = 15  # of the text, so that it can be read on a telephone


def text(x: float, y: float, words: str, *, bold: bool = False, anchor: str = "middle") -> str:
    """One line of text."""
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{SIZE}"{weight} '
        f'fill="{INK}">{escape(words)}</text>'
    )


def box(x: float, y: float, w: float, h: float, fill: str, *lines: str) -> str:
    """A box whose first line is its name."""
    first = y + h / 2 - 9.5 * (len(lines) - 1) + 5
    words = [text(x + w / 2, first + 19 * i, line, bold=i == 0) for i, line in enumerate(lines)]
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="8" fill="{fill}" '
        f'stroke="{LINE}"/>' + "".join(words)
    )


def frame(x: float, y: float, w: float, h: float, name: str) -> str:
    """What surrounds several boxes."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="10" fill="none" '
        f'stroke="{LINE}" stroke-dasharray="5 4"/>' + text(x + 12, y + 21, name, anchor="start")
    )


def arrow(*points: tuple[float, float], colour: str = LINE) -> str:
    """A line with a head at its end."""
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6" '
        f'marker-end="url(#head)"/>'
    )


def drawing() -> str:
    """The whole picture as SVG."""
    middle = WIDTH / 2
    parts = [
        box(20, 20, 270, 66, ASKED, "ODEProblem", "f, y0, t, args: what is asked", "checked once"),
        box(310, 20, 270, 66, ASKED, "Solver", "backend, method, tolerances,", "gradient: how"),
        arrow((155, 86), (155, 108)),
        arrow((445, 86), (445, 108)),
        box(20, 110, 560, 46, DONE, "registry", "a name becomes a backend, imported now"),
        arrow((middle, 156), (middle, 178)),
        box(
            20,
            180,
            560,
            66,
            DONE,
            "resolve, check",
            "every None filled in, alike for all backends;",
            "what cannot be done is refused by name",
        ),
        arrow((middle, 246), (middle, 300)),
        frame(20, 268, 560, 440, "backend.solve (native)"),
        box(130, 302, 340, 46, DONE, "pack", "a state of any structure becomes [B, N]"),
        arrow((middle, 348), (middle, 361)),
        frame(40, 362, 520, 236, "gradient method: direct, checkpointed, adjoint"),
        box(60, 396, 480, 46, STEP, "step", "stages of f; y1 and an estimate of its error"),
        arrow((middle, 442), (middle, 458)),
        box(
            60,
            460,
            480,
            46,
            STEP,
            "judge",
            "error against tolerance; the next size, sample by sample",
        ),
        arrow((middle, 506), (middle, 522)),
        box(60, 524, 480, 46, STEP, "observers", "outputs between steps, records, events, costs"),
        arrow((540, 547), (553, 547), (553, 419), (542, 419)),
        text(middle, 590, "until every sample has arrived or failed"),
        arrow((middle, 598), (middle, 618)),
        box(
            130,
            620,
            340,
            66,
            DONE,
            "attach, unpack",
            "gradients of the times;",
            "the structure of y0",
        ),
        arrow((middle, 686), (middle, 728)),
        box(
            20,
            730,
            560,
            66,
            ASKED,
            "Solution",
            "y, how each sample ended, what it cost",
            "odeint returns y, and raises if a sample failed",
        ),
        text(middle, 832, "backward(), from the last step to the first", bold=True),
        box(20, 846, 176, 104, BACK, "direct", "autograd's own", "graph of the", "accepted steps"),
        box(
            212,
            846,
            176,
            104,
            BACK,
            "checkpointed",
            "each step redone",
            "from its state,",
            "then taken back",
        ),
        box(
            404,
            846,
            176,
            104,
            BACK,
            "adjoint",
            "the same loop",
            "on state and adjoint,",
            "backwards in time",
        ),
    ]
    head = f'<path d="M0,0 L8,4 L0,8 z" fill="{LINE}"/>'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 970" role="img" '
            'font-family="system-ui, sans-serif" aria-label="The path of one solve">',
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto">{head}</marker></defs>',
            f'<rect width="{WIDTH}" height="970" rx="12" fill="{PAPER}"/>',
            *parts,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(drawing())
