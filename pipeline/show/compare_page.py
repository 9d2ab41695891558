"""The page of a comparison: one HTML file with all that it needs in it.

What users wrote (names, transcripts, urls) is escaped by the template engine, wherever it stands. A content security
policy lets the browser run the one script of ours and fetch nothing.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from mvqkd.pipeline.show.charts import HEIGHT, LEFT, WHISKER_WIDTH, line_charts, style_of, whiskers
from mvqkd.pipeline.show.run_table import show_bytes, show_times

TEMPLATES = Path(__file__).parent / "templates"
MOST_SPEAKERS = 500
"""Rows of the table of speakers on the page; the JSON file has all."""
DASH = "\N{EN DASH}"
_HEAT = (0.05, 0.1, 0.2, 0.35, 0.6)
"""Error rates from which a cell of the table of speakers is darker."""


def render(comparison: Mapping[str, Any]) -> str:
    """The page, as text.

    Args:
        comparison: fields of `Comparison`, or the same out of its JSON file.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "count": count,
        "size": lambda value: DASH if value is None else show_bytes(value),
        "times": show_times,
        "duration": duration,
        "seconds": lambda value: f"{value:.2f} s",
        "change": change,
        "between": between,
        "draws": draws,
        "prose": prose,
        "setting": setting,
        "heat": heat,
    }
    style, script = ((TEMPLATES / name).read_text("utf-8") for name in ("compare.css", "compare.js"))
    systems, reference = comparison["systems"], comparison["reference"]
    scores = {system["name"]: system["score"] for system in systems if system["score"] is not None}
    styles = _styles([system["name"] for system in systems], reference)
    places, ticks = whiskers(scores)
    return environment.get_template("compare.html.j2").render(
        it=comparison,
        # Ours, and the same on every page: nothing of them is a user's.
        style=Markup(style),
        script=Markup(script),
        script_hash=_hash(script),
        style_hash=_hash(style),
        scores=scores,
        styles=styles,
        whiskers=places,
        whisker_ticks=ticks,
        whisker_width=WHISKER_WIDTH,
        pairs={(pair["system"], pair["other"]): pair for pair in comparison["pairs"]},
        charts=line_charts(systems, styles),
        left=LEFT,
        height=HEIGHT,
        tiles=_tiles(comparison, scores),
        several_runs=len({system["run"] for system in systems}) > 1,
        delays={name: score["delay"] for name, score in scores.items() if score.get("delay")},
        has_waits=any(system["training"].get("wait_share") is not None for system in systems),
        most_speakers=MOST_SPEAKERS,
        made=datetime.fromisoformat(comparison["made"]).strftime("%d %B %Y, %H:%M UTC"),
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _styles(names: Sequence[str], reference: str | None) -> dict[str, str]:
    others = [name for name in names if name != reference]
    return {
        name: style_of(0 if name == reference else others.index(name), is_reference=name == reference)
        for name in names
    }


def _tiles(comparison: Mapping[str, Any], scores: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """The figures that people look for first: label, value, what it is of."""
    best, reference = comparison["best"], comparison["reference"]
    if best is None:
        return []
    score = scores[best]
    tiles = [{"label": "Lowest word error rate", "value": percent(score["wer"]), "of": best}]
    pair = next((p for p in comparison["pairs"] if (p["system"], p["other"]) == (best, reference)), None)
    if pair is not None and pair.get("relative_reduction") is not None:
        tiles.append(
            {
                "label": "Fewer word errors",
                "value": percent(pair["relative_reduction"], 1),
                "of": f"than {reference}",
            }
        )
    table = next((t for t in comparison["tables"] if best in t["systems"] and t["bytes_per_hour"]), None)
    if table is not None:
        less = (
            f"{show_times(table['times_smaller'])} times less than float32"
            if table["times_smaller"]
            else "of audio"
        )
        tiles.append(
            {"label": "Targets of an hour", "value": show_bytes(table["bytes_per_hour"]), "of": less}
        )
    hours = "" if score.get("hours") is None else f", {score['hours']:.2f} h"
    tiles.append(
        {
            "label": "Test part",
            "value": f"{count(score['words'])} words",
            "of": f"{count(score['utterances'])} utterances{hours}",
        }
    )
    return tiles


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction in percent, with a true minus sign."""
    return DASH if value is None else f"{value:.{digits}%}".replace("-", "\N{MINUS SIGN}")


def count(value: float | None, digits: int = 0) -> str:
    """A number with commas between its thousands."""
    return DASH if value is None else f"{value:,.{digits}f}"


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds for people."""
    if seconds is None:
        return DASH
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{count(hours)} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def change(reduction: float | None) -> str:
    """A relative reduction of errors in words."""
    if reduction is None:
        return DASH
    shown = f"{abs(reduction):.1%}"
    return "the same" if shown == "0.0%" else f"{shown} {_fewer(reduction)}"


def between(low: float, high: float) -> str:
    """The interval of a relative reduction of errors in words, the end nearer to none first."""
    if low < 0 < high:
        return f"{abs(low):.1%} more to {high:.1%} fewer"
    near, far = sorted((abs(low), abs(high)))
    return f"{near:.1%} to {far:.1%} {_fewer(low + high)}"


def _fewer(reduction: float) -> str:
    return "fewer" if reduction >= 0 else "more"


def draws(better: float) -> str:
    """In how many of the draws a system was better."""
    if better in (0, 1):
        return "every draw" if better else "no draw"
    # What happened in some draws and not in others is never rounded to all or none.
    return f"{min(max(better, 0.001), 0.999):.1%} of draws"


def prose(text: str) -> Markup:
    """Text with its commands, which stand between backquotes, as code."""
    parts = [escape(part) for part in text.split("`")]
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if at % 2 else part for at, part in enumerate(parts)
    )


def setting(value: Any) -> str:
    """A value of the run file."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def heat(wer: float) -> str:
    """Class name of a cell by its error rate."""
    return f"h{sum(wer >= limit for limit in _HEAT)}"
