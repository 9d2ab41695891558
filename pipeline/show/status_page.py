"""`mvqkd status` for people: some lines, again and again if wanted."""

import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

WATCH_EVERY_S = 10.0
MOST_WORKERS = 20
_STATES = {
    "working": "working",
    "done": "done",
    "stopped": "stopped before its end; `mvqkd extract` goes on where it stopped",
    "silent": "no sign of life; the driver is gone or cannot write. `mvqkd extract` goes on where it stopped",
    "not begun": "not begun",
}


def print_status(status: dict[str, Any]) -> None:
    """One block of lines on standard output."""
    print("\n".join(_lines(status)), flush=True)


def watch(look: Callable[[], dict[str, Any]], *, every_s: float = WATCH_EVERY_S) -> dict[str, Any]:
    """Print the status anew until nothing works any more; returns the last one, which is not printed."""
    is_terminal = sys.stdout.isatty()
    while True:
        status = look()
        if is_terminal:
            print("\033[H\033[J", end="")
        if status["state"] != "working":
            return status
        print_status(status)
        if not is_terminal:
            print()
        time.sleep(every_s)


def _lines(status: dict[str, Any]) -> list[str]:
    shards, hours, driver = status["shards"], status["hours"], status["driver"]
    lines = [f"extract: {_STATES[status['state']]}"]
    if driver is not None:
        job = f" as {driver['job']}" if driver["job"] else ""
        lines.append(f"driver: {driver['host']}/{driver['process']}{job}, heard {_span(driver['age_s'])} ago")
    lines.append(
        f"shards: {shards['done']} of {shards['planned']} done, {shards['failed']} failed, "
        f"{shards['in_hand']} in hand, {shards['waiting']} waiting"
    )
    lines.append(f"hours: {hours['done']:.4g} of {hours['planned']:.4g} done, {hours['left']:.4g} left")
    if status["hours_per_hour"] is not None:
        lines.append(
            f"rate: {status['hours_per_hour']:.4g} hours of audio an hour, by the {status['rate_from']} of the last "
            "ten minutes"
        )
    if status["ends_at"] is not None:
        end = datetime.fromtimestamp(status["ends_at"]).astimezone()
        lines.append(f"left: {_span(status['seconds_left'])}, until {end:%Y-%m-%d %H:%M %Z}")
    if status["last_commit_age_s"] is not None:
        lines.append(f"last commit: {_span(status['last_commit_age_s'])} ago")
    for worker in status["workers"][:MOST_WORKERS]:
        lines.append(
            f"  {worker['worker']}: shard {worker['position']}, {worker['hours']:.3g} of {worker['of_hours']:.3g} h"
        )
    if len(status["workers"]) > MOST_WORKERS:
        lines.append(f"  and {len(status['workers']) - MOST_WORKERS} more workers, see --json")
    if status["failed_shards"]:
        more = ", ..." if shards["failed"] > len(status["failed_shards"]) else ""
        lines.append(f"failed: {', '.join(status['failed_shards'])}{more}; the failures table says why")
    return lines


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    )
