"""The loss of a run as an SVG that every gradio version shows: what was measured, pale, and a smooth line over it."""

from __future__ import annotations

from collections.abc import Sequence

from lib_methods.jobs.log import Progress

POINTS, BANDS = 240, 60  # drawn at most; read out at most, under the pointer
SMOOTHING = 0.9  # of the moving average, by point
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 170, 44, 20
_GROUND = _HEIGHT - _BOTTOM + 4

Points = Sequence[tuple[float, float]]


def curve_svg(progress: Progress) -> str:
    """The losses over the steps, of the subject and of the class. "" before two."""
    steps = sorted(progress.losses)
    if len(steps) < 2:
        return ""
    losses = {"subject": [(step, progress.losses[step][0]) for step in steps]}
    losses["prior"] = [(s, loss) for s in steps if (loss := progress.losses[s][1]) is not None and loss > 0]
    binned = {name: _binned(points, POINTS) for name, points in losses.items() if points}
    top = max(loss for points in binned.values() for _, loss in points) * 1.05 or 1.0
    last = max(progress.steps, steps[-1])
    lines = ""
    for name in reversed(binned):  # the subject's on top
        lines += _line(binned[name], last, top, f"{name} steer-dreambooth-raw")
        lines += _line(smoothed(binned[name]), last, top, name)
    labels = (
        f'<text x="{_LEFT - 6}" y="14" text-anchor="end">{top:.2g}</text>'
        f'<text x="{_LEFT - 6}" y="{_GROUND}" text-anchor="end">0</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT}" text-anchor="end">step {last}</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT}">loss: <tspan class="steer-dreambooth-subject">subject</tspan>'
        + (' <tspan class="steer-dreambooth-prior">class</tspan>' if "prior" in binned else "")
        + "</text>"
    )
    axes = f'<path class="steer-dreambooth-axes" d="M{_LEFT} 4V{_GROUND}H{_WIDTH}"/>'
    return (
        f'<svg class="steer-dreambooth-curve" viewBox="0 0 {_WIDTH} {_HEIGHT + 5}" role="img" '
        f'aria-label="loss by step">{axes}{lines}{labels}{_bands(losses, last)}</svg>'
    )


def smoothed(points: Points) -> list[tuple[float, float]]:
    """The exponential moving average, without the bias towards its start."""
    mean, weight, found = 0.0, 0.0, []
    for step, value in points:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + 1 - SMOOTHING
        found.append((step, mean / weight))
    return found


def _line(points: Points, last: int, top: float, name: str) -> str:
    at = " ".join(f"{_x(step, last):.0f},{(_GROUND - 4) * (1 - loss / top) + 4:.1f}" for step, loss in points)
    return f'<polyline class="steer-dreambooth-{name}" points="{at}"/>'


def _x(step: float, last: int) -> float:
    return _LEFT + (_WIDTH - _LEFT) * step / last


def _bands(losses: dict[str, list[tuple[int, float]]], last: int) -> str:
    """Upright bands without colour, which say the mean losses of their steps under the pointer."""
    told: dict[int, dict[str, list[float]]] = {}
    first: dict[int, tuple[int, int]] = {}
    for name, points in losses.items():
        for step, loss in points:
            place = min(int(BANDS * step / last), BANDS - 1)
            told.setdefault(place, {}).setdefault(name, []).append(loss)
            low, high = first.get(place, (step, step))
            first[place] = min(low, step), max(high, step)
    width, bands = (_WIDTH - _LEFT) / BANDS, ""
    for place, values in sorted(told.items()):
        low, high = first[place]
        steps = f"step {low}" if low == high else f"steps {low} to {high}"
        means = ", ".join(
            f"{'class' if name == 'prior' else name} {sum(found) / len(found):.3g}" for name, found in values.items()
        )
        bands += (
            f'<rect x="{_LEFT + width * place:.0f}" width="{width:.0f}" y="4" height="{_GROUND - 4}">'
            f"<title>{steps}: {means}</title></rect>"
        )
    return bands


def _binned(points: Points, most: int) -> list[tuple[float, float]]:
    """At most so many points, each the mean of its neighbours."""
    every = max(1, -(-len(points) // most))
    groups = [points[start : start + every] for start in range(0, len(points), every)]
    return [(sum(s for s, _ in group) / len(group), sum(v for _, v in group) / len(group)) for group in groups]
