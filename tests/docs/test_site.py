"""The site of the documentation: no warnings, nothing loaded from other hosts, no drift."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from exporters.errors import MissingPackageError
from hgkd_edge.bench import records
from hgkd_edge.data.input_spec import InputSpec
from hgkd_edge.recipe import load_recipe
from reference import bench_json, cli, errors, files, tables

ROOT = Path(__file__).parents[2]
# Tags whose address a browser loads with the page.
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; warnings are errors."""
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings_handlers.python")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


class _Loads(HTMLParser):
    """Collects what a browser would load from other hosts."""

    def __init__(self) -> None:
        super().__init__()
        self.foreign: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        address = given.get(LOADED.get(tag, ""), "") or ""
        is_link = tag == "link" and given.get("rel") in ("canonical", "prev", "next")
        if address.startswith(("http:", "https:", "//")) and not is_link:
            self.foreign.append(f"{tag} {address}")


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    loads = _Loads()

    for page in pages:
        loads.feed(page.read_text(encoding="utf-8"))
    styles = "".join(file.read_text(encoding="utf-8") for file in site.rglob("*.css"))

    assert len(pages) > 25
    assert loads.foreign == []
    assert not re.search(r"url\(\"?(https?:)?//", styles)


def test_every_page_of_docs_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")

    missing = [page.name for page in (ROOT / "docs").glob("*.md") if page.name not in navigation]

    assert missing == []


def test_every_extra_is_explained() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = text[text.index("[project.optional-dependencies]") : text.index("[project.scripts]")]
    page = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")

    extras = set(re.findall(r"^([\w-]+) = \[", table, flags=re.MULTILINE)) - {"dev"}

    assert len(extras) > 7
    assert [extra for extra in sorted(extras) if f"`{extra}`" not in page] == []


def test_the_lowest_versions_are_those_of_the_package() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")

    stated = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \|", page, flags=re.MULTILINE)

    required = text[text.index("\ndependencies = [") : text.index("\ndev = [")]
    assert {name for name, _ in stated} >= set(re.findall(r'"([\w-]+)>=', required))
    assert [f"{name}>={low}" for name, low in stated if f'"{name}>={low}"' not in text] == []


def test_every_command_and_option_is_in_the_reference() -> None:
    page = cli.page()

    for command in ("distill", "finetune", "export", "bench", "recipes validate"):
        assert f"## hgkd-edge {command}\n" in page
    for option in ("--max-drop", "--trust-engine", "--host", "--check-updates"):
        assert f"`{option}" in page


def test_every_file_says_what_it_does() -> None:
    page = files.page()

    rows = re.findall(r"^\| `([\w.]+)` \| (.*) \|$", page, flags=re.MULTILINE)
    folders = re.findall(r"^## (.+)/\n\n(.+)$", page, flags=re.MULTILINE)

    assert dict(rows)["loop.py"].startswith("The loop itself")
    assert dict(rows)["device.sh"].startswith("Runs on the device")
    assert len(rows) > 280
    assert len(folders) > 15
    assert [name for name, text in rows if len(text) < 10] == []


def test_every_field_of_bench_json_is_in_the_reference() -> None:
    page = bench_json.page()

    for record in (records.Measurement, records.Telemetry, records.Session, records.Latency):
        assert f"## {record.__name__}\n" in page
        assert all(f"| `{name}` |" in page for name in record.model_fields)
    assert "| `schema` |" in page


def test_the_reference_lists_exactly_the_metadata_that_export_writes(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from hgkd_edge.export_plan import _metadata

    weights = tmp_path / "backbone.safetensors"
    weights.write_bytes(b"weights")
    spec = InputSpec((64, 64), (0.5,) * 3, (0.5,) * 3, "cover")
    subject = SimpleNamespace(
        task="embed",
        spec=SimpleNamespace(name="resnet18"),
        input=spec,
        classes=[],
        weights=weights,
        threshold=0.5,
    )

    written = _metadata(SimpleNamespace(path=tmp_path), subject)  # type: ignore[arg-type]

    # What baking adds is written by `exporters.bake`.
    source = (ROOT / "exporters" / "bake.py").read_text(encoding="utf-8")
    baked = set(re.findall(r'metadata\[f"{prefix}(\w+)"\]', source))
    keys = {key.removeprefix("hgkd_edge.") for key in written}
    assert keys | baked == {*tables.METADATA, *tables.INPUT}


def test_the_recipe_of_the_tutorial_is_valid(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "tutorial-photos.md").read_text(encoding="utf-8")
    written = page[page.index("```yaml\n") + len("```yaml\n") :]
    path = tmp_path / "recipe.yaml"
    path.write_text(written[: written.index("```")], encoding="utf-8")

    recipe = load_recipe(path)

    assert (recipe.teacher.cache, recipe.train.epochs, recipe.data.image_size) == (16, 32, 128)


def test_every_error_that_the_docs_quote_is_one_that_the_source_raises() -> None:
    known = {(message.text, message.hint) for message in errors.messages()}
    missing = MissingPackageError("...", package="...", extra="...")
    known.add((missing.message, missing.hint))
    texts = {text for text, _ in known}
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")

    quoted = re.findall(r"^error: (.+)\n(?:hint: (.+)\n)?", page, flags=re.MULTILINE)

    assert len(quoted) > 15
    assert [text for text, _ in quoted if text not in texts] == []
    assert [pair for pair in quoted if pair[1] and pair not in known] == []
