"""What MkDocs calls while it builds the site: adds the pages that are written from the code.

The repository's own files (CONTRIBUTING.md, ...) become pages too, so that links to them work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from reference import api, bench_json, cli, errors, files, tables

ROOT = Path(__file__).parents[1]
# Page -> the file of the repository that it shows.
OF_THE_REPOSITORY = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security-policy.md": "SECURITY.md",
}
GENERATED: Mapping[str, Callable[[], str]] = {
    "reference/cli.md": cli.page,
    "reference/api.md": api.page,
    "reference/tolerances.md": tables.tolerances,
    "reference/devices.md": tables.devices,
    "reference/metadata.md": tables.metadata,
    "reference/bench-json.md": bench_json.page,
    "reference/errors.md": errors.page,
    "reference/files.md": files.page,
}


def on_files(site: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those found under docs/."""
    for address, write in GENERATED.items():
        site.append(File.generated(config, address, content=write()))
    for address, source in OF_THE_REPOSITORY.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        site.append(File.generated(config, address, content=site_links(text)))
    return site


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Let links out of docs/ point to the page of that file; without one, keep the text alone."""
    if "/" in page.file.src_uri:
        return markdown
    pages = {source: address for address, source in OF_THE_REPOSITORY.items()}

    def target(link: re.Match[str]) -> str:
        address = pages.get(link[2])
        return f"[{link[1]}]({address})" if address else f"`{link[1]}`"

    return re.sub(r"\[([^\]]+)\]\(\.\./([^)]+)\)", target, markdown)


def site_links(text: str) -> str:
    """A repository file's links, seen from docs/."""
    return re.sub(r"\]\(docs/", "](", text)
