"""A profile as a picture: F(p), and time against output tokens. SVG without a library.

Points are medians (hollow: held out of the fit), lines are the fitted model.
"""

import html
import math
from collections.abc import Callable, Sequence

from algoperf.inference.timing.profiler import Cell, refusal
from algoperf.inference.timing.profiles import Profile

_WIDTH, _HEIGHT = 470, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 16, 34, 46
_COLORS = ("#1b6ca8", "#c8553d", "#3a7d44", "#7a4ea3", "#b08900", "#4a4a4a")
_POINTS_OF_A_LINE = 60
_MOST_CURVES = 5


def profile_svg(profile: Profile) -> str:
    """Returns two panels side by side, as one SVG element."""
    medians = profile.result.medians
    held_out = set(profile.result.held_out)
    panels = (
        _Panel("Reading the prompt, first token included", "prompt tokens", 0),
        _Panel("Whole request", "output tokens", _WIDTH),
    )
    prompts = sorted({p for p, _ in medians if (p, 1) in medians})
    reading = [_Curve("F(p)", _COLORS[0], [(p, medians[p, 1], False) for p in prompts])]
    reading[0].line = _sampled(profile.runtime.prompt_seconds, prompts[0], prompts[-1])
    requests = [
        _request_curve(profile, medians, held_out, prompt, color)
        for prompt, color in zip(_chosen(medians, held_out), _COLORS, strict=False)
    ]
    body = panels[0].drawn(reading) + panels[1].drawn(requests)
    title = html.escape(_title(profile))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * _WIDTH} {_HEIGHT}" '
        f'width="{2 * _WIDTH}" height="{_HEIGHT}" font-family="sans-serif" '
        f'font-size="12" role="img" aria-label="{title}">'
        f'<rect width="100%" height="100%" fill="white"/>{body}</svg>'
    )


def profile_page(profile: Profile) -> str:
    """Returns an HTML page with the picture, the model and the measured cells."""
    title = html.escape(_title(profile))
    facts = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>"
        for name, text in summary(profile)
    )
    reason = refusal(profile.result)
    warning = ""
    if reason is not None:
        warning = f"<p><strong>Not to be trusted:</strong> {html.escape(reason)}.</p>"
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title>"
        "<style>body{font-family:sans-serif;max-width:60rem;margin:2rem auto;"
        "padding:0 1rem}svg{max-width:100%;height:auto}th{text-align:left;"
        "font-weight:normal;color:#555;padding-right:2rem}td{font-variant-numeric:"
        f"tabular-nums}}</style><h1>{title}</h1>{warning}{profile_svg(profile)}"
        f"<table>{facts}</table></html>\n"
    )


def summary(profile: Profile) -> list[tuple[str, str]]:
    """Returns what a profile says, as (name, text)."""
    runtime, result = profile.runtime, profile.result
    first = min(runtime.prompt_seconds)
    last = max(runtime.prompt_seconds)
    rows = [
        ("model", f"{profile.shape.name}, {profile.shape.num_parameters:,} parameters"),
        ("hardware", _hardware(profile)),
        ("F", f"{_time(runtime.prompt_seconds[first])} at {_tokens(first, 'prompt')}, "
         f"{_time(runtime.prompt_seconds[last])} at {last} "
         f"(rule {runtime.prompt_seconds.rule})"),
        ("g", f"{_time(runtime.seconds_per_token)} per output token"),
    ]  # fmt: skip
    if runtime.seconds_per_token_slope:
        slope = 1000 * runtime.seconds_per_token_slope
        rows.append(("", f"and {_time(slope)} more per 1,000 tokens of context"))
    if runtime.r2 is not None:
        rows.append(("R2", f"{runtime.r2:.4f}"))
    if result.held_out_error is not None:
        error = 100 * result.held_out_error
        rows.append(("error on held-out cells", f"{error:.1f} % on average"))
    rows += _served(profile)
    rows.append(
        (
            "spread",
            f"{100 * result.spread:.1f} % of one measurement, medians of "
            f"{result.rounds} rounds within {100 * result.uncertainty:.1f} %",
        )
    )
    return rows


def _served(profile: Profile) -> list[tuple[str, str]]:
    """Returns how the weights are stored, and the quality of a trained model."""
    served, rows = profile.served, []
    if "weight_bytes" in served:
        text = f"{served['recipe']}, {served['weight_bytes']:,} bytes"
        if served["weight_bytes"] < served["dense_bytes"]:
            text += f" ({served['dense_bytes']:,} if all were dense)"
        rows.append(("weights", text))
    if served.get("step_bytes"):
        rows.append(("moved by a decoding step", f"{served['step_bytes']:,.0f} bytes"))
    if "trial" in served:
        own = served["trial"]
        rows.append(
            (
                "trained by",
                f"{own['submission']}, study {own['study']}, trial {own['trial']}, "
                f"step {own['step']}",
            )
        )
    for name, text in (("quality", "as served"), ("trained_quality", "as trained")):
        if served.get(name) is not None:
            rows.append(
                (f"validation {served['metric']}", f"{served[name]:.5g} {text}")
            )
    return rows


def _title(profile: Profile) -> str:
    setting = profile.setting
    recipe = profile.served.get("recipe", setting.dtype)
    return f"{profile.shape.name}: {recipe}, batch size {setting.batch_size}"


def _hardware(profile: Profile) -> str:
    hardware, setting = profile.hardware, profile.setting
    if hardware.get("platform") != "cpu":
        return f"{setting.parallel} x {hardware.get('device_kind')}"
    cores = f"{setting.cores} core{'s' if setting.cores != 1 else ''}"
    clock = {"cpu": "process time", "wall": "wall time"}[setting.clock]
    return f"{cores} of {hardware.get('cpu')}, {clock}"


def _tokens(count: int, kind: str) -> str:
    return f"{count} {kind} token{'s' if count != 1 else ''}"


def _time(seconds: float) -> str:
    """Returns seconds with a fitting unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


class _Curve:
    """A line and its points: (x, y, hollow)."""

    def __init__(
        self, name: str, color: str, points: Sequence[tuple[float, float, bool]]
    ):
        self.name, self.color, self.points = name, color, points
        self.line: list[tuple[float, float]] = []


def _chosen(medians: dict[Cell, float], held_out: set[Cell]) -> list[int]:
    """Prompt lengths to draw: some of the grid's, evenly, and one held out."""
    of_grid = sorted({p for p, o in medians if (p, o) not in held_out})
    step = max(1, math.ceil(len(of_grid) / (_MOST_CURVES - 1)))
    unseen = sorted({p for p, _ in held_out})
    return sorted({*of_grid[::step], *unseen[-1:]})


def _request_curve(
    profile: Profile,
    medians: dict[Cell, float],
    held_out: set[Cell],
    prompt: int,
    color: str,
) -> _Curve:
    points = [
        (float(o), seconds, (p, o) in held_out)
        for (p, o), seconds in sorted(medians.items())
        if p == prompt
    ]
    curve = _Curve(_tokens(prompt, "prompt"), color, points)
    longest = int(max(x for x, _, _ in points))
    curve.line = [
        (o, profile.runtime.predict(prompt, o))
        for o in range(1, longest + 1, max(1, longest // _POINTS_OF_A_LINE))
    ]
    return curve


def _sampled(
    function: Callable[[float], float], low: float, high: float
) -> list[tuple[float, float]]:
    places = [
        low + (high - low) * i / _POINTS_OF_A_LINE for i in range(_POINTS_OF_A_LINE + 1)
    ]
    return [(x, function(x)) for x in places]


class _Panel:
    """One pair of axes, both from 0."""

    def __init__(self, title: str, x_label: str, offset: int):
        self.title, self.x_label, self.offset = title, x_label, offset

    def drawn(self, curves: Sequence[_Curve]) -> str:
        """Returns axes, curves and legend."""
        xs = [x for c in curves for x, *_ in (*c.points, *c.line)]
        ys = [y for c in curves for _, y, *_ in (*c.points, *c.line)]
        x_step, y_step = _step(max(xs)), _step(max(ys))
        x_end, y_end = _end(max(xs), x_step), _end(max(ys), y_step)
        wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

        def at(x: float, y: float) -> tuple[float, float]:
            left = self.offset + _LEFT + wide * x / x_end
            return round(left, 1), round(_TOP + high * (1 - y / y_end), 1)

        parts = [_text(self.offset + _LEFT, 18, self.title, weight="bold")]
        for i in range(round(y_end / y_step) + 1):
            (x1, y), (x2, _) = at(0, i * y_step), at(x_end, i * y_step)
            parts.append(f'<path d="M{x1} {y}H{x2}" stroke="#ddd"/>')
            parts.append(_text(x1 - 6, y + 4, _time(i * y_step) if i else "0", "end"))
        for i in range(round(x_end / x_step) + 1):
            x, y = at(i * x_step, 0)
            parts.append(_text(x, y + 17, f"{i * x_step:g}", "middle"))
        x, y = at(x_end / 2, 0)
        parts.append(_text(x, y + 36, self.x_label, "middle"))
        for number, curve in enumerate(curves):
            parts += _curve(curve, at)
            x, y = at(0, y_end)
            parts.append(
                _text(x + 10, y + 14 + 15 * number, curve.name, color=curve.color)
            )
        return "".join(parts)


def _curve(
    curve: _Curve, at: Callable[[float, float], tuple[float, float]]
) -> list[str]:
    path = " ".join(f"{x},{y}" for x, y in (at(*point) for point in curve.line))
    parts = [
        f'<polyline points="{path}" fill="none" stroke="{curve.color}" '
        'stroke-width="1.5"/>'
    ]
    for x_value, y_value, is_hollow in curve.points:
        x, y = at(x_value, y_value)
        fill = "white" if is_hollow else curve.color
        parts.append(
            f'<circle cx="{x}" cy="{y}" r="3.5" fill="{fill}" stroke="{curve.color}"/>'
        )
    return parts


def _step(most: float) -> float:
    """A round step that makes 4 to 8 ticks."""
    rough = most / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough)


def _end(most: float, step: float) -> float:
    return step * math.ceil(most / step * 1.0001)


def _text(
    x: float,
    y: float,
    text: str,
    anchor: str = "start",
    color: str = "#333",
    weight: str = "normal",
) -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{color}" '
        f'font-weight="{weight}">{html.escape(text)}</text>'
    )
