"""The report in a real browser: readable on a phone and a desktop, without requests or errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageStat

from hgkd_edge.manifest_record import Circumstances, ManifestRecord, NetworkOrigin, SplitRecord
from hgkd_edge.recipe import Recipe
from hgkd_edge.report import report
from hgkd_edge.rundir import RunDir
from tests.browser import CHROMIUM, Browser, open_browser
from tests.test_report import HOSTILE, entry, measured, write_bench

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

PHONE, DESKTOP = 390, 1280
LONG = "a_very_long_name_without_any_break_" * 6


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def fill(run: RunDir, *names: str) -> RunDir:
    """Give a run every section of a report, with these names in it."""
    classes = [*names, "hat", "shoe"]
    steps = [{"step": i, "loss": 2 / (1 + i), "cosine": 0.01 * i, "lr": 0.1} for i in range(50)]
    steps += [{"step": i, "knn": 0.01 * i} for i in range(0, 50, 10)]
    run.log_file.write_text("\n".join(map(json.dumps, steps)))
    scores = {"top1": 0.5, "per_class": dict.fromkeys(classes, 0.5)}
    scores["confusion"] = [[3] * len(classes)] * len(classes)
    result = {"task": "classify", "metric": "top1", "photos": 9, "split": "test", "scores": scores}
    result |= {"baseline": {"name": names[0], "score": 0.1}, "warnings": list(names)}
    result |= {"intervals": {"top1": [0.4, 0.6]}, "interval_method": "Wilson"}
    (run.path / "finetune.json").write_text(json.dumps(result))
    files = [entry("x.fp32.onnx"), *(entry(name.replace("/", "|")) for name in names)]
    run.export_file.write_text(json.dumps({"files": files}))
    write_bench(run, measured("x.fp32", 4.0, to="x.fp32 ort-cpu b1", median=1.0))
    origin = NetworkOrigin(name=names[0], weights="hub", license="cc-by-nc-4.0")
    train = SplitRecord(photos=9, classes=classes, fingerprint="f" * 64)
    run.update_manifest(
        ManifestRecord(teacher=origin, finetune=Circumstances(data={"train": train}), seed=0)
    )
    run.add_artifact(run.recipe_file)
    save_previews(run)
    Image.radial_gradient("L").convert("RGB").save(run.path / "pictures" / "segment-best-1.png")
    return run


def save_previews(run: RunDir) -> None:
    run.previews_dir.mkdir(parents=True)
    for panel in ("image", "visible", "teacher", "student", "cosine"):
        Image.new("RGB", (64, 48), "teal").save(run.previews_dir / f"0-{panel}.webp")
    about = {"split": "test", "mask_ratio": 0.4, "sites": "masked", "cosine": [0.25]}
    (run.previews_dir / "previews.json").write_text(json.dumps(about))


@pytest.fixture
def run(tiny_recipe: dict[str, Any], tmp_path: Path) -> RunDir:
    return fill(RunDir.create(Recipe.model_validate(tiny_recipe), tmp_path / "a run"), LONG)


def widest(browser: Browser) -> int:
    return browser.ask("document.documentElement.scrollWidth")


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("several", [False, True], ids=["one run", "two runs"])
def test_a_page_fits_its_window_and_asks_for_nothing(
    browser: Browser, run: RunDir, width: int, several: bool
) -> None:
    page = report(run, run) if several else report(run)

    browser.open(page, width=width)

    assert widest(browser) == width
    assert browser.requests() == [page.resolve().as_uri()]
    assert browser.complaints() == []
    assert browser.ask("document.querySelectorAll('svg.chart').length") >= 3
    broken = "[...document.images].filter(image => !image.naturalWidth).length"
    assert browser.ask(broken) == 0


def test_text_is_large_enough_on_a_phone(browser: Browser, run: RunDir) -> None:
    browser.open(report(run), width=PHONE)

    sizes = browser.ask(
        "[...document.querySelectorAll('svg.chart')].map(chart => {"
        " const text = parseFloat(getComputedStyle(chart.querySelector('text')).fontSize);"
        " return text * chart.getBoundingClientRect().width / chart.viewBox.baseVal.width })"
    )

    assert min(sizes) >= 9


def test_a_page_is_dark_where_the_reader_wants_it(
    browser: Browser, run: RunDir, tmp_path: Path
) -> None:
    page = report(run)
    shades, strokes = [], []
    for dark in (False, True):
        browser.open(page, width=DESKTOP, dark=dark)
        browser.screenshot(tmp_path / "page.png")
        with Image.open(tmp_path / "page.png") as shot:
            shades.append(ImageStat.Stat(shot.convert("L")).median[0])
        curve = "document.querySelector('svg.chart path.stroke-series0')"
        strokes.append(browser.ask(f"getComputedStyle({curve}).stroke"))

    assert shades[0] > 220
    assert shades[1] < 60
    assert strokes[0] != strokes[1]


def test_nothing_that_a_run_holds_runs_or_loads(
    browser: Browser, tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    made = RunDir.create(Recipe.model_validate(tiny_recipe), tmp_path / "hostile")
    page = report(fill(made, *HOSTILE))

    browser.open(page, width=PHONE)

    assert browser.requests() == [page.resolve().as_uri()]
    assert browser.complaints() == []
    assert browser.ask("document.scripts.length + document.forms.length + frames.length") == 0
    assert widest(browser) == PHONE


def test_the_policy_holds_where_the_template_would_not(
    browser: Browser, run: RunDir, tmp_path: Path
) -> None:
    """The second line of defense: markup that got into the page by a bug."""
    html = report(run).read_text()
    attack = "<script>document.title = 'owned'</script><img src='https://a.example/x.png'>"
    page = tmp_path / "attacked.html"
    page.write_text(html.replace("<main>", f"<main>{attack}"))

    browser.open(page, width=DESKTOP)

    assert browser.ask("document.title") != "owned"
    assert len(browser.complaints()) >= 2
    assert browser.ask("document.images[0].naturalWidth") == 0
