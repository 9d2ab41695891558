"""The page of a comparison as text: nothing from outside, and nothing that users wrote as markup."""

import json
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from compare_runs import DELAY, FakeRun, curve, misheard, recognized, sentences, some_runs

from mvqkd.pipeline.show.charts import Scale, line_charts, log_ticks, ticks_of, whiskers
from mvqkd.pipeline.show.compare_page import between, change, draws, duration, percent, prose, render
from mvqkd.pipeline.stages.compare import compare_runs

EVIL = "<script>window.hacked=1</script> <img src=x onerror=window.hacked=2> \"' & </style> {{ 7*7 }}"
VOID = {"meta", "link", "input", "img", "br", "hr", "wbr"}


class Page(HTMLParser):
    """Elements, and whether each is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def page_of(*fakes: FakeRun, **options: Any) -> str:
    return render(json.loads(json.dumps(asdict(compare_runs([fake.run for fake in fakes], **options)))))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(*some_runs(tmp_path_factory.mktemp("page"), sentences(speakers=12, each=5)))


def test_all_parts_are_there_and_every_element_is_closed(text: str) -> None:
    page = Page(text)
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for part in ("errors", "pairs", "training", "targets", "settings", "utterances", "speakers", "method"):
        assert part in ids
    shown = " ".join(" ".join(page.texts).split())
    for words in (
        "mvq8",
        "not trained",
        "1,000 of 3,000",
        "MB",
        "distill.codebooks",
        "speaker-01",
        "95% interval",
    ):
        assert words in shown
    # Tables, charts and fields say what they are.
    for tag, attributes in page.elements:
        if tag == "th":
            assert attributes.get("scope") in ("row", "col")
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or attributes.get("aria-labelledby") in ids


def test_nothing_comes_from_outside(text: str) -> None:
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"<!doctype[^>]*>", "", text), re.I)
    assert not re.search(r"@import|url\(", text)
    for tag, attributes in Page(text).elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert not [
            name for name in attributes if name.startswith("on") or name in ("src", "srcset", "style")
        ]
        assert (attributes.get("href") or "#").startswith("#")


def test_what_users_wrote_is_text(tmp_path: Path) -> None:
    fake = FakeRun(tmp_path, "evil <b>run", {"baseline": {"distill": {"loss_scale": 0.0}}, "mvqkd": {}})
    for student, heard in (("baseline", "<b>bold</b>"), ("mvqkd", EVIL)):
        points = curve(200, final=3.0, with_codes=True, wer=None)
        for point in points:
            point["head_losses"] = {EVIL: 1.0 + point["step"] / 100}
        fake.trained(student, points)
        fake.decoded(
            student, [recognized(f"{EVIL}-{n}", f"{EVIL}{n}", f"say {EVIL}", heard) for n in range(3)]
        )
    fake.extracted()
    text = page_of(fake)
    page = Page(text)
    assert page.open == []
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert "img" not in {tag for tag, _ in page.elements}
    assert "<b>bold" not in text and "<b>run" not in text and "window.hacked=1</script>" not in text
    assert EVIL in " ".join(page.texts)


def test_delays_of_systems_that_hear_in_chunks(tmp_path: Path) -> None:
    fake = FakeRun(tmp_path, "run", {"live": {}, "unaligned": {}, "whole": {}})
    for student, delay in (("live", DELAY), ("unaligned", {**DELAY, "words": None}), ("whole", None)):
        fake.trained(student, curve(100, final=3.0, with_codes=True, wer=None))
        fake.decoded(student, misheard(sentences(speakers=4, each=3), 0.1, seed=1))
        if delay is not None:
            fake.run.reports.write(
                "decode", {**fake.run.reports.read("decode", student), "delay": delay}, student
            )
    page = Page(page_of(fake))
    shown = "|".join(text.strip() for text in page.texts if text.strip())
    assert "0.10 s|0.81 s|0.49 s|0.62 s|0.80 s|0.81 s|300" in shown
    assert "0.49 s|the test part has no alignment of its words" in shown
    assert [a for a in page.elements if a[1].get("href") == "#delay"] and not page.open


def test_a_page_without_anything(tmp_path: Path) -> None:
    text = page_of(FakeRun(tmp_path, "empty", {"one": {}}))
    assert Page(text).open == []
    for words in (
        "No system has been decoded yet",
        "There are no learning curves yet",
        "Nothing has been recognized",
    ):
        assert words in text


def test_one_perfect_system_of_one_utterance(tmp_path: Path) -> None:
    fake = FakeRun(tmp_path, "perfect", {"one": {}})
    fake.trained("one", curve(50, final=1.0, with_codes=True, wer=None))
    fake.decoded("one", [recognized("a", None, "all right", "all right")])
    text = page_of(fake)
    assert Page(text).open == [] and "No system made an error" in text and "No speakers are named" in text
    assert "one has a word error rate of 0.00%" in text and "no other system" not in text


def test_points_of_other_versions_are_drawn_as_far_as_they_are_known() -> None:
    old = [{"step": s, "transducer_loss": 9.0 - s, "codebook_loss": 4.0 - s} for s in (1, 2)]
    new = [
        {
            "step": s,
            "transducer_loss": 5.0,
            "head_losses": {"layer6": 2.0},
            "valid_wer": 0.2 if s == 2 else None,
            "valid_losses": {"transducer": 6.0, "layer6": 2.5},
            "wait_share": 0.01,
            "of_tomorrow": {"a": [1]},
        }
        for s in (1, 2)
    ]
    systems = [{"name": "old", "curve": old}, {"name": "new", "curve": new}, {"name": "none", "curve": []}]
    charts = line_charts(systems, {"old": "c0", "new": "c1", "none": "c2"})
    assert [(chart.title, [line.system for line in chart.lines]) for chart in charts] == [
        ("Recognition loss", ["old", "new", "new, held-out speech"]),
        ("Loss of the head “codebook”", ["old"]),
        ("Loss of the head “layer6”", ["new", "new, held-out speech"]),
    ]


def test_figures_of_an_epoch_are_drawn_once_and_a_loss_that_is_not_there_never() -> None:
    points = [{"step": s, "transducer_loss": 0.0, "valid_wer": 0.4 if s < 4 else 0.3} for s in range(1, 6)]
    (chart,) = line_charts([{"name": "a", "curve": points}], {"a": "c0"})
    assert chart.is_percent and [(p[2], p[3]) for p in chart.lines[0].points] == [(1, 0.4), (4, 0.3)]


def test_a_curve_stands_where_its_values_are() -> None:
    points = [
        {"step": step, "transducer_loss": loss} for step, loss in ((100, 1000.0), (200, 10.0), (400, 1.0))
    ]
    (chart,) = line_charts([{"name": "a", "curve": points}], {"a": "c0"})
    assert chart.is_log and [label for _, label in chart.y_ticks] == ["1", "10", "100", "1000"]
    at = {step: (x, y) for x, y, step, _ in chart.lines[0].points}
    ticks = {label: y for y, label in chart.y_ticks}
    assert (at[100][1], at[200][1], at[400][1]) == (ticks["1000"], ticks["10"], ticks["1"])
    assert at[400][0] - at[200][0] == pytest.approx(2 * (at[200][0] - at[100][0]), abs=0.05)


def test_ticks_are_round_and_hold_the_values() -> None:
    assert ticks_of(0, 0.27) == [0, 0.1, 0.2, 0.3]
    assert ticks_of(3.1, 5.4) == [3, 3.5, 4, 4.5, 5, 5.5]
    assert ticks_of(2, 2) == [2]
    assert log_ticks(0.3, 40) == [0.2, 0.5, 1, 2, 5, 10, 20, 50]
    assert log_ticks(0.3, 4000) == [0.1, 1, 10, 100, 1000, 10000]
    assert Scale(1, 100, 0, 10, is_log=True)(10) == 5
    assert whiskers({}) == ({}, [])
    places, ticks = whiskers({"a": {"wer": 0.0, "wer_low": None, "wer_high": None}})
    assert places["a"].low is None and ticks[0][1].startswith("0")


def test_figures_in_words() -> None:
    assert (percent(-0.0512, 1), percent(None)) == ("\N{MINUS SIGN}5.1%", "\N{EN DASH}")
    assert (change(0.405), change(-0.2), change(0.0001), change(None)) == (
        "40.5% fewer",
        "20.0% more",
        "the same",
        "\N{EN DASH}",
    )
    assert between(0.1, 0.2) == "10.0% to 20.0% fewer"
    assert between(-0.2, -0.1) == "10.0% to 20.0% more"
    assert between(-0.1, 0.2) == "10.0% more to 20.0% fewer"
    assert (draws(1), draws(0), draws(0.9999), draws(0.5)) == (
        "every draw",
        "no draw",
        "99.9% of draws",
        "50.0% of draws",
    )
    assert [duration(s) for s in (None, 9, 75, 7260)] == ["\N{EN DASH}", "9 s", "1 min 15 s", "2 h 01 min"]
    assert str(prose("run `a <b>` & go")) == "run <code>a &lt;b&gt;</code> &amp; go"


def test_a_page_of_many_systems_tells_them_apart(tmp_path: Path) -> None:
    students = {f"s{n}": {"distill": {"seed": n}} for n in range(10)}
    fake = FakeRun(tmp_path, "many", students)
    said = sentences(speakers=4, each=3)
    for n, student in enumerate(students):
        fake.trained(student, curve(100, final=1.0 + n, with_codes=True, wer=None))
        fake.decoded(student, misheard(said, 0.1, seed=n))
    styles = set(re.findall(r'class="line (c\d d\d)"', page_of(fake)))
    assert len(styles) == 10
