"""The report page: whatever a run folder holds, and nothing from outside the page."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hgkd_edge.errors import RunError
from hgkd_edge.recipe import Recipe
from hgkd_edge.report import report
from hgkd_edge.rundir import RunDir


class Page(HTMLParser):
    """Titles, links to elsewhere, pictures and points of curves; open tags must close."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.titles: list[str] = []
        self.sources: list[str] = []
        self.curves: list[list[tuple[float, float]]] = []
        self.text, self.open = "", [""]
        self.feed(file.read_text(encoding="utf-8"))
        assert self.open == [""]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        values = dict(attrs)
        self.sources += [value for key in ("src", "href") if (value := values.get(key))]
        if tag == "polyline":
            pairs = [point.split(",") for point in (values["points"] or "").split()]
            self.curves.append([(float(x), float(y)) for x, y in pairs])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open[-1] == "h2":
            self.titles.append(data)


@pytest.fixture
def run(tiny_recipe: dict[str, Any], tmp_path: Path) -> RunDir:
    return RunDir.create(Recipe.model_validate(tiny_recipe), tmp_path / "a <b> & c")


def test_a_run_that_has_just_begun_has_its_recipe(run: RunDir) -> None:
    page = Page(report(run))

    assert page.titles == ["Recipe"]
    assert "a <b> & c" in page.text
    assert "name: vit_tiny_patch16_224" in page.text


def test_the_loss_is_drawn_also_when_the_log_ends_in_the_middle_of_a_line(run: RunDir) -> None:
    lines = [json.dumps({"step": i + 1, "loss": 2.0 - i / 500}) for i in range(1000)]
    run.log_file.write_text("\n".join([*lines, '{"step": 1001, "lo']))

    page = Page(report(run))

    (curve,) = page.curves
    assert 200 <= len(curve) <= 300
    assert curve == sorted(curve)  # onwards and, as y counts downwards, falling
    assert curve[0][1] < curve[-1][1]
    assert "step 1000" in page.text


def test_scores_pictures_and_origin_are_told_and_everything_is_inside_the_page(run: RunDir) -> None:
    (run.path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(run.path / "pictures" / "confusion.png")
    scores = {"top1": 0.8125, "per_class": {"<i>hat</i>": 0.25}}
    result = {"task": "classify", "photos": 16, "split": "test", "scores": scores}
    (run.path / "finetune.json").write_text(json.dumps(result))
    run.update_manifest(
        teacher={"name": "vit", "licence": "cc-by-nc-4.0"},
        data={"train": {"photos": 48, "fingerprint": "f" * 64, "skipped": ["broken.jpg"]}},
    )
    run.add_artefact(run.recipe_file)

    page = Page(report(run))

    assert page.titles[:-1] == ["Scores", "Pictures", "Origin"]
    for text in (
        "81.2 %",
        "<i>hat</i>",
        "25.0 %",
        "cc-by-nc-4.0",
        "1 left out",
        "recipe.yaml",
    ):
        assert text in page.text
    assert [source[:22] for source in page.sources] == ["data:image/png;base64,"]


def test_a_damaged_bench_file_is_named_and_an_old_page_stays(run: RunDir) -> None:
    before = report(run).read_bytes()
    (run.path / "bench.json").write_text("{")

    with pytest.raises(RunError, match="bench.json is not JSON"):
        report(run)

    assert (run.path / "report.html").read_bytes() == before
