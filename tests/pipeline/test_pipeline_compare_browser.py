"""The page of a comparison in a real browser: it loads nothing, complains of nothing, and can be read and searched."""

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compare_runs import curve, misheard, recognized, sentences, some_runs

from mvqkd.pipeline.show.compare_page import render
from mvqkd.pipeline.stages.compare import compare_runs

pytestmark = pytest.mark.integration

# Every text in the page against what stands behind it, as WCAG counts contrast.
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const pixel = (colors) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const color of colors) { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("script, .skip")) continue;
    const behind = [];
    for (let at = element; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
    const style = getComputedStyle(element);
    const color = element.closest("svg") ? style.fill : style.color;
    const [one, other] = [light(pixel(behind)), light(pixel([...behind, color]))].sort((a, b) => b - a);
    found.push([(one + 0.05) / (other + 0.05), walker.currentNode.data.trim().slice(0, 40)]);
  }
  return found;
}"""


@dataclass
class Watched:
    """What a page asked for, and what it complained of."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("browser")
    said = sentences(speakers=12, each=5)
    first, second = some_runs(folder, said)
    evil = "<script>window.hacked=1</script><img src=x onerror=window.hacked=2>"
    first.trained("mvq8", curve(3000, final=3.3, with_codes=True, wer=0.1))
    bad = recognized("test-evil", "speaker-01", f"nobody said {evil} xylophone", " ".join([evil] * 12))
    first.decoded("mvq8", [*misheard(said, 0.1, seed=1), bad])
    path = folder / "compare.html"
    path.write_text(render(json.loads(json.dumps(asdict(compare_runs([first.run, second.run]))))))
    return path.as_uri()


@pytest.fixture(params=["light", "dark"])
def page(browser: Any, url: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme=request.param)
    page = context.new_page()
    watched = Watched()
    page.on("request", lambda asked: watched.requests.append(asked.url))
    page.on("console", lambda said: watched.complaints.append(said.text))
    page.on("pageerror", lambda error: watched.complaints.append(str(error)))
    page.goto(url)
    yield page
    assert watched.requests == [url], "a page asks for itself alone"
    assert watched.complaints == []
    assert page.evaluate("window.hacked") is None
    context.close()


def shown(page: Any) -> list[str]:
    return [each.inner_text() for each in page.locator(".utt").all() if each.is_visible()]


def test_it_is_drawn_and_says_what_came_out(page: Any, tmp_path: Path) -> None:
    assert "fewer word errors than baseline" in page.inner_text("h1")
    for part in ("errors", "pairs", "training", "targets", "settings", "utterances", "speakers"):
        page.locator(f"nav a[href='#{part}']").click()
        assert page.locator(f"#h-{part}").is_visible()
    picture = pixels(page.screenshot(full_page=True))
    height, width, _ = picture.shape
    assert width == 1280 and height > 3000
    colors, count = np.unique(picture.astype(np.int64) @ (65536, 256, 1), return_counts=True)
    assert len(colors) > 200 and count.max() < 0.95 * count.sum(), "the picture is blank"
    # Every screenful has something on it.
    for top in range(0, height - 900, 900):
        assert picture[top : top + 900].std() > 3, f"nothing from {top} on"


def test_the_search_finds_words_speakers_and_utterances(page: Any) -> None:
    assert len(shown(page)) == 15
    page.get_by_label("Search").fill("XYLOPHONE nobody")
    (only,) = shown(page)
    assert "test-evil" in only and "<script>window.hacked=1</script>" in only
    assert page.inner_text("#found") == "1 utterance"
    page.get_by_label("Search").fill("speaker-08")
    assert shown(page) and all("speaker-08" in each for each in shown(page))
    page.get_by_label("Search").fill("no such words anywhere")
    assert shown(page) == [] and page.locator("#nothing").is_visible()
    page.get_by_label("Search").fill("")
    page.get_by_role("button", name="more").click()
    assert len(shown(page)) > 15


def test_order_and_filter(page: Any) -> None:
    def data(key: str) -> list[float]:
        return [
            float(each.get_attribute(f"data-{key}"))
            for each in page.locator(".utt").all()
            if each.is_visible()
        ]

    assert data("errors") == sorted(data("errors"), reverse=True)
    page.get_by_label("Order").select_option("largest difference")
    assert data("spread") == sorted(data("spread"), reverse=True)
    page.get_by_label("only where systems differ").check()
    assert min(data("spread")) > 0


def test_by_keyboard_alone(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    chart = page.locator(".chart svg").first
    chart.focus()
    page.keyboard.press("ArrowLeft")
    readout = page.locator(".chart .readout").first
    assert readout.inner_text().startswith("step 3,000: baseline ")
    page.keyboard.press("ArrowLeft")
    assert readout.inner_text().startswith("step 2,950: baseline ")
    button = page.locator("#speakers th button").nth(3)
    button.focus()
    page.keyboard.press("Enter")
    rates = [
        float(t.rstrip("%")) for t in page.locator("#speakers tbody tr td:nth-child(4)").all_inner_texts()
    ]
    assert rates == sorted(rates, reverse=True)
    page.keyboard.press("Enter")
    assert page.locator("#speakers th").nth(3).get_attribute("aria-sort") == "ascending"


def test_light_and_dark_can_be_read(page: Any) -> None:
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    for _ in range(2):
        low = [found for found in page.evaluate(CONTRASTS) if found[0] < 4.5]
        assert not low, low[:5]
        page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == before
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


def test_on_a_telephone_only_tables_scroll_sideways(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_without_script_all_is_there(browser: Any, url: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(url)
    assert page.locator(".utt:visible").count() > 15
    assert not page.locator("#tools").is_visible() and not page.locator("#theme").is_visible()
    context.close()


def pixels(png: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
