"""Every text of the project is in plain American English."""

from __future__ import annotations

import functools
import re
import subprocess
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
    r"(leave|leaves|left|leaving)( [^\s.;]+){0,4} (out|alone|away)": "skip, remove, keep",
    r"that one(?=[.,;:)?!]| (is|was|has|does|can|which|of|too|alone|also))": "name the thing again",
    r"which the same \w+ (does|do|has|have|is|are)": "name the thing again",
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
    "hgkd_edge/distillation/teacher_weights.py": r"hgkd_edge\.normalisation",
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


@functools.cache
def texts() -> dict[str, str]:
    """Path -> content of every tracked text file."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = {}
    for name in listed.stdout.split("\0"):
        file = ROOT / name
        if name and file.is_file() and not file.is_symlink() and not SKIPPED.search(name):
            content = file.read_bytes()
            if b"\0" not in content:
                text = content.decode("utf-8", "replace")
                # Names in code are words too.
                found[name] = re.sub(ALLOWED.get(name, "$^"), "", text).replace("_", " ")
    return found


# Between two words: a space; or the end of a line, with what starts the next one in a comment, a
# quotation, a table or a text in code.
GAP = r"(?: +|[ \"']*\n[\s#>*|/\"'f]*)"


def found(pattern: str) -> list[str]:
    """`path:line: text` of every place that a pattern matches, also over the end of a line."""
    words = re.compile(rf"(?<![A-Za-z])({pattern.replace(' ', GAP)})(?![A-Za-z])", re.IGNORECASE)
    return [
        f"{name}:{content.count(chr(10), 0, match.start()) + 1}: {match[0]!r}"
        for name, content in texts().items()
        for match in words.finditer(content)
    ]


@pytest.fixture(autouse=True)
def _needs_git() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("an archive without git has no list of tracked files")


@pytest.mark.parametrize("word", WORDS)
def test_no_text_uses_a_word_of_the_list(word: str) -> None:
    assert found(word) == [], f"write: {WORDS[word]}"


def test_spelling_is_american() -> None:
    assert found(BRITISH) == []


@pytest.mark.parametrize(
    "text",
    ["We go\n    # on here.", 'f"it goes "\n        f"on"', "> going\n> on", "is_going_on(x)"],
)
def test_a_phrase_is_found_over_the_end_of_a_line(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.test_words.texts", lambda: {"a": text.replace("_", " ")})

    assert found("(go|goes|went|gone|going) on")


@pytest.mark.parametrize("text", ["Leave the last row out.", "which of them? That one.", "told"])
def test_a_phrase_with_words_in_between_is_found(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.test_words.texts", lambda: {"a": text})

    assert any(map(found, WORDS))
