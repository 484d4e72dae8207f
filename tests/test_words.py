"""Every text of the project is in plain American English."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Files that others wrote, that hold no text, or that must name the words.
SKIPPED = re.compile(r"LICENSE$|^tests/test_words\.py$|\.(svg|json|csv|pem)$")

# What is not written -> what is.
WORDS = {
    r"mend(s|ed|ing)?": "fix, hint",
    r"beside": "next to; compared with",
    r"(go|goes|went|gone|going) on": "continue, resume",
    r"anew|once more": "again",
    r"told|said": "reported, shown, printed",
    r"held against": "compared with, checked against",
    r"(come|comes|came) of|(come|comes|came) out as": "result from, be",
    r"stands? there|stands? twice": "is defined",
    r"at hand|to be had": "available",
    r"of (its|their|his) own": "separate, its own X",
    r"(leave|leaves|left|leaving) (out|alone|away|it out|them out|one of them out)": "skip, remove",
    r"(one's|our|its) faults?|faults? of|at fault": "bug, error",
    r"begins? from|begun (with|from)": "starts from, initialized from",
    r"as (many|much) as will do": "enough",
    r"the host is the limit": "CPU-bound",
    r"whole photos": "whole images",
}
BRITISH = (
    r"artefact\w*|behaviour\w*|catalogue|centred?|centres|\w*colour\w*|defence|distils?|"
    r"favour\w*|flavour\w*|fulfil|grey\w*|honour\w*|judgement|\w*labell(ed|ing)|learnt|licence\w*|"
    r"modell(ed|ing)|neighbour\w*|programme|travell\w*|whilst|"
    r"\w*(custom|emphas|general|initial|local|memor|minim|maxim|normal|optim|organ|quant|"
    r"random|recogn|regular|serial|special|standard|summar|token|util|visual)is(e|ed|es|er|ers|ing|"
    r"ation|ations)"
)
# Earlier names of keys and options, which are still read; and names that others chose.
ALLOWED = {
    "hgkd_edge/cli/export.py": r"[Ff]lavours?",
    "hgkd_edge/distillation/weights.py": r"hgkd_edge\.normalisation",
    "hgkd_edge/export_record.py": r"flavour",
    "hgkd_edge/manifest_record.py": r"artefacts|licence",
    "hgkd_edge/tasks/config.py": r"colour",
    "tests/test_recipe.py": r"optimiser",  # a mistyped key
    "tests/test_export_record.py": r"flavour",
    "tests/test_manifest_record.py": r"artefacts",
    "tests/records/manifest_before_schema_versions.json": r"artefacts",
    "tests/test_earlier_names.py": r"flavour|--flavour|artefacts|licence|colour|normalisation",
    "CHANGELOG.md": r"--flavour|segment\.colour|detect\.colour|artefacts|licence|flavour|mend",
}


def texts() -> Iterator[tuple[str, str]]:
    """Path and content of every tracked text file."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.split("\0"):
        file = ROOT / name
        if name and file.is_file() and not file.is_symlink() and not SKIPPED.search(name):
            content = file.read_bytes()
            if b"\0" not in content:
                yield name, content.decode("utf-8", "replace")


def found(pattern: str) -> list[str]:
    """`path:line: text` of every place that a pattern matches, in code's names too."""
    whole = re.compile(rf"(?<![A-Za-z])({pattern})(?![A-Za-z])", re.IGNORECASE)
    places = []
    for name, content in texts():
        allowed = ALLOWED.get(name)
        for number, line in enumerate(content.splitlines(), 1):
            text = re.sub(allowed, "", line) if allowed else line
            if whole.search(text.replace("_", " ")):
                places.append(f"{name}:{number}: {line.strip()[:120]}")
    return places


@pytest.fixture(autouse=True)
def _needs_git() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("an archive without git has no list of tracked files")


@pytest.mark.parametrize("word", WORDS)
def test_no_text_uses_a_word_of_the_list(word: str) -> None:
    assert found(word) == [], f"write: {WORDS[word]}"


def test_spelling_is_american() -> None:
    assert found(BRITISH) == []
