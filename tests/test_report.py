"""The report page: any run folder content is safe, and nothing is loaded from outside."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from hgkd_edge.comparison.rows import Circumstances, Comparison, Group, Row
from hgkd_edge.errors import RunError
from hgkd_edge.files import file_sha256
from hgkd_edge.manifest_record import Distilled, HeldOut, ManifestRecord, NetworkOrigin, SplitRecord
from hgkd_edge.recipe import Recipe
from hgkd_edge.report import report
from hgkd_edge.report.speed import choice_blocks
from hgkd_edge.report.view import Note
from hgkd_edge.rundir import RunDir


class Page(HTMLParser):
    """What a page holds, by kind; open tags must close."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.titles: list[str] = []  # of sections
        self.rows: list[str] = []  # of tables, cells joined by " | "
        self.notes: list[str] = []
        self.sources: list[str] = []
        self.links: list[str] = []
        self.curves: list[list[tuple[float, float]]] = []
        self.text, self.open = "", [""]
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(file.read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " "))
        assert self.open == [""]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        kind = values.get("class", "")
        if tag not in ("meta", "img", "wbr"):
            self.open.append("note" if kind.startswith("note") else tag)
        self.tags.add(tag)
        self.attributes |= values.keys()
        self.sources += [values["src"]] if "src" in values else []
        self.links += [values["href"]] if "href" in values else []
        if tag == "path" and "stroke-series" in kind and "transform" not in values:
            numbers = [float(number) for number in re.findall(r"[-.\d]+", values["d"])]
            self.curves.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
        elif tag == "tr":
            self.rows.append("")
        elif tag == "td" and self.rows[-1]:
            self.rows[-1] += " | "

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() in (tag, "note")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open[-1] == "h2":
            self.titles.append(data)
        if "td" in self.open:
            self.rows[-1] += data
        if "note" in self.open and data.strip():
            self.notes.append(data)


@pytest.fixture
def run(tiny_recipe: dict[str, Any], tmp_path: Path) -> RunDir:
    return RunDir.create(Recipe.model_validate(tiny_recipe), tmp_path / "a <b> & c")


def test_a_run_that_has_just_begun_has_its_recipe(run: RunDir) -> None:
    page = Page(report(run))

    assert page.titles == ["Recipe"]
    assert "a <b> & c" in page.text
    assert "name: vit_tiny_patch16_224" in page.text


def test_the_loss_is_drawn_also_when_the_log_ends_in_the_middle_of_a_line(run: RunDir) -> None:
    lines = [json.dumps({"step": i + 1, "loss": 2.0 - i / 500 + i // 5 % 2}) for i in range(1000)]
    run.log_file.write_text("\n".join([*lines, '{"step": 1001, "lo']))

    page = Page(report(run))

    (curve,) = page.curves
    assert 150 <= len(curve) <= 240
    assert curve == sorted(curve)  # to the right
    assert curve[0][1] < curve[-2][1]  # and, as y counts downwards, falling
    assert "1.002 at update 1,000" in page.text


def test_the_held_out_cosine_at_the_end_is_drawn_next_to_its_baseline(run: RunDir) -> None:
    lines = [json.dumps({"step": i, "loss": 1.0, "cosine": i / 10}) for i in range(1, 9)]
    run.log_file.write_text("\n".join(lines))
    result = Distilled(held_out=HeldOut(student=0.5, mean_token=0.125))
    run.update_manifest(ManifestRecord(result=result))

    page = Page(report(run))

    _loss, cosine, baseline = page.curves  # the score at the end is a marker
    assert len(cosine) == 8
    assert baseline[0][1] == baseline[1][1]
    assert (
        "training images 0.8, held-out images 0.5, baseline: mean token 0.125 at update 8"
        in page.text
    )
    assert "baseline: mean token" in page.text


def test_scores_pictures_and_origin_are_shown_and_everything_is_inside_the_page(
    run: RunDir,
) -> None:
    (run.path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(run.path / "pictures" / "segment-best-1.png")
    scores = {"top1": 0.8125, "per_class": {"<i>hat</i>": 0.25}}
    result = {"task": "classify", "photos": 16, "split": "test", "scores": scores}
    (run.path / "finetune.json").write_text(json.dumps(result))
    train = SplitRecord(photos=48, fingerprint="f" * 64, skipped=[("broken.jpg", "is truncated")])
    origin = NetworkOrigin(name="vit", license="cc-by-nc-4.0")
    run.update_manifest(ManifestRecord(teacher=origin, data={"train": train}))
    run.add_artifact(run.recipe_file)

    page = Page(report(run))

    assert page.titles[:-1] == ["Scores", "Provenance"]
    assert page.notes == [
        "The teacher's weights (vit) have the license cc-by-nc-4.0, which forbids commercial use."
    ]
    for text in (
        "81.2 %",
        "<i>hat</i>",
        "25.0 %",
        "cc-by-nc-4.0",
        "1 skipped",
        "recipe.yaml",
    ):
        assert text in page.text
    assert [source[:22] for source in page.sources] == ["data:image/png;base64,"]


def entry(name: str, *, passed: bool = True, split: str = "test") -> dict[str, Any]:
    proof = {"passed": passed, "cosine": 0.999, "max_abs_error": 1e-6}
    return {
        "kind": "onnx",
        "precision": "fp32",
        "path": f"runs/x/export/{name}",
        "size_bytes": 1 << 20,
        "verification": {**proof, "top1_agreement": None, "iou": None},
        "verified_on": {"split": split, "photos": 16},
    }


def measured(model: str, ms: float, *, to: str, median: float) -> dict[str, Any]:
    times = dict.fromkeys(("mean", "min", "p50", "p90", "p95", "p99", "max"), ms)
    return {
        **{"case": f"{model} ort-cpu b1", "model": model, "runner": "ort-cpu", "batch": 1},
        **{"runner_version": "1", "backend": "cpu", "precision": "fp32", "threads": None},
        **{"copies": "in", "inputs": [], "throughput_ips": 1000 / ms, "first_inference_ms": None},
        **{"load_ms": None, "build_ms": None, "host_memory_mb": None, "engine_mb": None},
        "latency_ms": {**times, "count": 9, "std": 0, "mean_ci95": [ms, ms]},
        "warmup": {"runs": 1, "seconds": 0.1, "stable": True},
        **{"measured_s": 1, "rounds_p50_ms": [ms, ms]},
        "noise": {"spread": 0, "drift": 0, "noisy": False},
        "ratio": {"to": to, "median": median, "low": median, "high": median},
    }


def write_bench(run: RunDir, *measurements: dict[str, Any]) -> None:
    models = [
        {
            **{"label": one["model"], "path": f"export/{one['model']}.onnx", "sha256": ""},
            **{"size_mb": 1, "precision": "fp32"},
            "metadata": {"hgkd_edge.baked": "[]"} if "baked" in one["model"] else {},
        }
        for one in measurements
    ]
    session = {
        **{"target": "cpu", "created": "", "tool_version": "", "settings": {}, "environment": {}},
        **{"models": models, "measurements": measurements},
    }
    record = {"schema": "hgkd-edge.bench", "version": 1, "sessions": [session]}
    (run.path / "bench.json").write_text(json.dumps(record))


def rows_with(page: Page, text: str) -> list[str]:
    return [row for row in page.rows if text in row]


def test_every_export_is_shown_with_the_images_it_was_verified_on(run: RunDir) -> None:
    files = [entry("x.fp32.onnx"), entry("x.fp16.onnx", split="holdout")]
    run.export_file.write_text(json.dumps({"files": files}))

    page = Page(report(run))

    (plain,) = rows_with(page, "x.fp32.onnx")
    (half,) = rows_with(page, "x.fp16.onnx")
    assert "16 test images" in plain
    assert "16 holdout images" in half


@pytest.mark.parametrize("known_from", ["the record", "its name"])
def test_a_file_that_failed_verification_never_looks_like_a_good_one(
    run: RunDir, known_from: str
) -> None:
    bad = "x.int8" if known_from == "the record" else "x.int8.failed-verification"
    files = [entry("x.fp32.onnx")]
    if known_from == "the record":
        files.append(entry("x.int8.onnx", passed=False))
    else:
        run.export_dir.mkdir()
        (run.export_dir / f"{bad}.onnx").touch()
    run.export_file.write_text(json.dumps({"files": files}))
    fast = measured(bad, 1.0, to="x.fp32 ort-cpu b1", median=0.25)
    write_bench(run, measured("x.fp32", 4.0, to="x.fp32 ort-cpu b1", median=1.0), fast)

    page = Page(report(run))

    assert len(rows_with(page, "agrees")) == 1
    assert all("FAILED" in row for row in rows_with(page, bad))
    assert f"{bad}.onnx: FAILED verification, do not deploy it" in page.notes
    assert f"{bad}: FAILED verification, do not deploy it" in page.notes
    assert rows_with(page, "0.25x")[0].startswith(f"{bad} (FAILED)")


@pytest.mark.parametrize(
    ("since", "expected", "failed"),
    [
        ("failed", "failed verification since it was measured", True),
        ("changed", "has changed since it was measured", False),
        ("damaged", "has changed since it was measured", False),
        ("gone", "", False),  # as where a run was copied without its files
        ("nothing", "", False),
    ],
)
def test_a_figure_of_a_file_that_is_another_one_by_now_says_so(
    run: RunDir, since: str, expected: str, failed: bool
) -> None:
    write_bench(run, measured("x.int8", 1.0, to="x.int8 ort-cpu b1", median=1.0))
    run.export_dir.mkdir()
    file = run.export_dir / "x.int8.onnx"
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))
    onnx.save(model, file)
    record = (run.path / "bench.json").read_text()
    (run.path / "bench.json").write_text(
        record.replace('"sha256": ""', f'"sha256": "{file_sha256(file)}"')
    )
    if since == "failed":
        file.rename(run.export_dir / "x.int8.failed-verification.onnx")
    elif since == "changed":
        onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "other", [], [])), file)
    elif since == "damaged":
        file.write_bytes(b"no network")
    elif since == "gone":
        file.unlink()

    page = Page(report(run))

    line = f"x.int8 {expected}; measure again: hgkd-edge bench {run.quoted}"
    assert [note for note in page.notes if "x.int8 " in note] == ([line] if expected else [])
    assert ("x.int8: FAILED verification, do not deploy it" in page.notes) == failed


@pytest.mark.parametrize("first", ["x.fp32.baked", "x.fp32.failed-verification"])
def test_the_plain_fp32_file_is_what_others_are_compared_with(run: RunDir, first: str) -> None:
    to = f"{first} ort-cpu b1"
    write_bench(
        run, measured(first, 2.0, to=to, median=1.0), measured("x.fp32", 4.0, to=to, median=2.0)
    )

    page = Page(report(run))

    assert rows_with(page, "x.fp32 | ")[-1].endswith("1.00x")
    assert rows_with(page, "0.50x")[0].startswith(first)


def test_a_result_that_does_not_beat_its_baseline_says_so_in_the_page(run: RunDir) -> None:
    result = {"task": "classify", "photos": 16, "split": "test", "scores": {"top1": 0.25}}
    result |= {"warnings": ["top1 25.0 % is not better"], "intervals": {"top1": [0.1, 0.5]}}
    result |= {"interval_method": "Wilson score interval, 95 %"}
    (run.path / "finetune.json").write_text(json.dumps(result))

    page = Page(report(run))

    assert "25.0 % (10.0 to 50.0)" in page.text
    assert page.notes == ["top1 25.0 % is not better"]
    assert "Wilson" in page.text


def test_a_damaged_bench_file_is_named_and_an_old_page_stays(run: RunDir) -> None:
    before = report(run).read_bytes()
    (run.path / "bench.json").write_text("{")

    with pytest.raises(RunError, match="bench.json is not JSON"):
        report(run)

    assert (run.path / "report.html").read_bytes() == before


ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "header", "nav", "main", "section"),
    *("footer", "div", "span", "p", "h1", "h2", "h3", "a", "figure", "figcaption", "img"),
    *("table", "thead", "tbody", "tr", "th", "td", "dl", "dt", "dd", "details", "summary", "pre"),
    *("svg", "path", "text", "wbr"),
}
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</pre></style><svg onload=alert(1)>",
    '[link=javascript:alert(1)" onmouseover="alert(1)]x[/link]',
    "{{ 7 * 7 }}{% raw %}",
    "}</style><style>body{background:url(//a.example)}",
    "&#60;iframe src=//a.example&#62;",
    "data:text/html,<base href=//a.example><form action=//a.example>",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_name_in_a_run_becomes_part_of_the_page(
    tiny_recipe: dict[str, Any], tmp_path: Path, text: str
) -> None:
    run = RunDir.create(Recipe.model_validate(tiny_recipe), tmp_path / text.replace("/", "|"))
    run.log_file.write_text(json.dumps({"step": 1, "loss": 1.0, text: 2.0}))
    scores = {text: 0.5, "per_class": {text: 0.5}}
    result = {"task": text, "photos": 1, "split": text, "scores": scores, "warnings": [text]}
    (run.path / "finetune.json").write_text(json.dumps(result))
    (run.path / "evaluation.json").write_text(
        json.dumps(
            {**result, "model": text, "runtime": text, "baseline": {"name": text, "score": 0}}
        )
    )
    run.export_file.write_text(json.dumps({"files": [entry(text.replace("/", "|"))]}))
    entries = {
        "teacher": {text: text},
        "git_revision": text,
        "artifacts": {text.replace("/", "|"): {"sha256": text, "made_from": [text]}},
    }
    run.update_manifest(ManifestRecord.model_validate(entries))
    with run.recipe_file.open("a") as recipe:
        recipe.write(f"# {text}\n")
    (run.path / "pictures").mkdir()
    picture = run.path / "pictures" / f"{text.replace('/', '|')}.png"
    Image.new("RGB", (8, 8)).save(picture, format="png")

    page = Page(report(run))

    assert page.tags <= ALLOWED
    assert not {name for name in page.attributes if name.startswith("on")}
    assert not page.attributes & {"style", "srcset", "action", "xlink:href", "srcdoc"}
    assert page.links == [f"#{link[1:]}" for link in page.links], "a link leaves the page"
    assert page.sources[0].startswith("data:image/png;base64,")
    assert len(page.sources) == 1
    assert text[:20] in page.text, "it is shown as the text that it is"


def test_the_page_allows_no_script_and_nothing_from_elsewhere(run: RunDir) -> None:
    html = report(run).read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)

    assert policy is not None
    assert style is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].replace("&#39;", "'").split(";"))
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert rules["default-src"] == "'none'"
    assert rules["style-src"] == f"'sha256-{digest}'"
    assert rules["img-src"] == "data:"
    assert "script-src" not in rules
    assert html.index("Content-Security-Policy") < html.index("<style>")


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100000,
        '{"step": "x", "loss": 1}',
        '{"step": 1, "loss": NaN}',
        "[1]",
        "3",
        "{}",
        f'{{"step": 1, "loss": {"9" * 5000}}}',
        '{"step": 1, "loss": 1e308}',
        "\\xff",
    ],
    ids=lambda line: line[:12],
)
def test_a_log_that_is_none_costs_its_lines_and_no_more(run: RunDir, line: str) -> None:
    run.log_file.write_text(f'{line}\n{{"step": 2, "loss": 1.5}}\n')

    page = Page(report(run))

    assert page.titles[0] == "Distillation"
    assert "1.5 at update 2" in page.text


@pytest.mark.parametrize(
    "name", ["finetune.json", "evaluation.json", "export.json", "manifest.json"]
)
@pytest.mark.parametrize("content", ["[1]", "{", '{"scores": 3, "files": [3], "artifacts": [3]}'])
def test_a_damaged_file_is_one_clear_error(run: RunDir, name: str, content: str) -> None:
    if name == "evaluation.json" and "scores" in content:
        content = '{"distilled": 3}'
    (run.path / name).write_text(content)

    with pytest.raises(RunError) as raised:
        report(run)

    assert "damaged" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [("none", "unchanged"), ("other bytes", "CHANGED"), ("removed", "MISSING")],
)
def test_the_page_recomputes_what_the_manifest_claims(
    run: RunDir, change: str, expected: str
) -> None:
    run.backbone_file.write_bytes(b"weights")
    run.add_artifact(run.backbone_file)
    if change == "other bytes":
        run.backbone_file.write_bytes(b"zeroed!")
    elif change == "removed":
        run.backbone_file.unlink()

    page = Page(report(run))

    (row,) = rows_with(page, "backbone.safetensors")
    assert expected in row


def test_no_mark_of_direction_in_a_run_reorders_the_page(run: RunDir) -> None:
    mark = "\u202e\u2066\u200b"
    run.log_file.write_text(json.dumps({"step": 1, "loss": 1.0, mark: 2.0}))
    with run.recipe_file.open("a") as recipe:
        recipe.write(f"# {mark}\n")
    (run.path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(run.path / "pictures" / f"{mark}.png")

    assert not set(mark) & set(report(run).read_text())


def test_large_pictures_are_made_smaller_and_broken_ones_are_skipped(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.path / "pictures").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (400, 2400, 3), np.uint8)
    Image.fromarray(noise).save(run.path / "pictures" / "detect-best-1.png")
    whole = (run.path / "pictures" / "detect-best-1.png").read_bytes()
    (run.path / "pictures" / "detect-best-2.png").write_bytes(whole[: len(whole) // 2])

    page = Page(report(run))

    (source,) = page.sources
    assert source.startswith("data:image/webp;base64,")
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as picture:
        assert picture.size == (1600, 267)
    assert "detect-best-2.png: is not a picture" in capsys.readouterr().err.replace("\n", "")


def test_what_the_student_sees_is_shown_and_a_forged_record_is_one_clear_error(
    run: RunDir,
) -> None:
    run.previews_dir.mkdir(parents=True)
    for panel in ("image", "visible", "teacher", "student", "cosine"):
        Image.new("RGB", (8, 8)).save(run.previews_dir / f"0-{panel}.webp")
    about = {"split": "test", "mask_ratio": 0.4, "sites": "masked", "cosine": [0.25, 0.5]}
    (run.previews_dir / "previews.json").write_text(json.dumps(about))

    page = Page(report(run))

    assert page.titles[0] == "What the student sees"
    assert len(page.sources) == 5  # the second image has no files
    assert "cosine 0.25" in page.text
    (run.previews_dir / "previews.json").write_text(json.dumps({**about, "cosine": "x"}))
    with pytest.raises(RunError, match="previews.json: is damaged"):
        report(run)

    moved = RunDir(run.path.rename(run.path.with_name("my run")))
    with pytest.raises(RunError, match="is damaged") as raised:
        report(moved)
    assert raised.value.hint == f"remove it: rm '{moved.previews_dir / 'previews.json'}'"


def test_without_a_plotting_library_the_page_has_figures_and_says_what_is_missing(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.log_file.write_text(json.dumps({"step": 7, "loss": 0.5}))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "matplotlib" else find(name)
    )

    page = Page(report(run))

    assert page.notes == ['charts need matplotlib: pip install "hgkd-edge[report]"']
    assert "0.5 at update 7" in page.text
    assert not page.curves


def test_the_same_scores_are_shown_once(run: RunDir) -> None:
    result = {"task": "classify", "metric": "top1", "photos": 16, "split": "test"}
    result |= {"scores": {"top1": 0.25, "pictures": ["a.png"]}}
    (run.path / "finetune.json").write_text(json.dumps(result))
    result |= {"model": "model.safetensors", "runtime": "PyTorch"}
    (run.path / "evaluation.json").write_text(json.dumps(result))

    once = Page(report(run)).text
    result |= {"scores": {"top1": 0.5}}
    (run.path / "evaluation.json").write_text(json.dumps(result))
    both = Page(report(run)).text

    assert once.count("Classification") == 1
    assert both.count("Classification") == 2


def test_runs_are_compared_by_scores_curves_and_settings(
    run: RunDir, tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    tiny_recipe["train"] = {**tiny_recipe["train"], "lr": 0.25}
    other = RunDir.create(Recipe.model_validate(tiny_recipe), tmp_path / "other")
    for each, share in ((run, 0.25), (other, 0.5)):
        lines = [json.dumps({"step": i, "loss": share + i % 3}) for i in range(9)]
        each.log_file.write_text("\n".join(lines))
        result = {"task": "classify", "metric": "top1", "photos": 16, "split": "test"}
        result |= {"scores": {"top1": share}}
        (each.path / "finetune.json").write_text(json.dumps(result))

    file = report(run, other)
    page = Page(file)

    assert file == run.path / "comparison.html"
    assert page.titles == ["Runs", "Scores", "Distillation", "Different settings"]
    assert len(page.curves) == 2
    assert [row.split(" | ")[-1] for row in rows_with(page, "Top-1")] == [
        "Top-1 accuracy 25.0 %",
        "Top-1 accuracy 50.0 %",
    ]
    assert rows_with(page, "train.lr")[0].endswith("0.25")
    assert not rows_with(page, "train.epochs")
    with pytest.raises(RunError, match="9 runs: a report compares up to 8"):
        report(*[run] * 9)


def test_a_record_of_very_many_devices_costs_a_bounded_number_of_plots() -> None:
    row = Row("r", "x.onnx", "ort-cpu", "fp32", "fp32", "", 1.0, score=50.0, p50_ms=1.0)
    groups = [Group(Circumstances(device=f"device {i}", batch=1), [row]) for i in range(1000)]

    blocks = list(choice_blocks(Comparison(["r"], 1.0, groups)))

    assert [block.kind for block in blocks].count("charts") == 20
    assert [block.lines for block in blocks if isinstance(block, Note)] == [
        ("20 of 1,000 devices and batch sizes are shown",)
    ]


def test_a_page_has_room_for_so_many_pictures_and_says_so(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.path / "pictures").mkdir()
    for name in "abc":
        Image.new("RGB", (8, 8)).save(run.path / "pictures" / f"{name}.png")
    size = (run.path / "pictures" / "a.png").stat().st_size
    encoded = 4 * math.ceil(size / 3)
    monkeypatch.setattr("hgkd_edge.report.pictures.MOST_PICTURES_BYTES", 2 * encoded)

    page = Page(report(run))

    assert len(page.sources) == 2
    assert "c.png: the report is full" in capsys.readouterr().err.replace("\n", "")


@pytest.mark.parametrize("name", ["log.jsonl", "finetune.json", "manifest.json", "bench.json"])
def test_a_file_of_a_run_that_would_fill_the_memory_is_refused_by_its_size(
    run: RunDir, name: str
) -> None:
    with (run.path / name).open("wb") as file:
        file.truncate(2**40)  # sparse: it takes no room on the disk

    with pytest.raises(RunError, match=r"1,099,511,627,776"):
        report(run)


def test_what_is_only_called_a_picture_is_not_embedded(run: RunDir) -> None:
    (run.path / "pictures").mkdir()
    (run.path / "pictures" / "key.png").write_text("-----BEGIN PRIVATE KEY-----")

    page = Page(report(run))

    assert page.sources == []
