"""Links in README and the guides resolve, and lines are short enough to read as plain text."""

import re

import pytest
from paths import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md")), REPOSITORY / "ports/c/README.md"]
ROOTS = [REPOSITORY, REPOSITORY / "backends", REPOSITORY / "conformance"]
FOLDERS = {folder.name for root in ROOTS for folder in root.iterdir() if folder.is_dir()}
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"(?<![\w./-])(?:\w+/)+[\w*-]+(?:\.\w+)?")
WIDTH = 120


def anchors(text: str) -> set[str]:
    """Those that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def page(request):
    return request.param


def test_links_lead_somewhere(page):
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        if path.startswith(("http:", "https:")):
            continue
        target = (page.parent / path) if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_paths_that_are_named_exist(page):
    """Of the repository, or as they are imported: `tests/core/test_spec.py`, `magma_torch/gpu/kernels.py`."""
    text = re.sub(r"https?://\S+", "", LINK.sub("]", page.read_text(encoding="utf-8")))
    named = {path for path in PATH.findall(text) if path.split("/")[0] in FOLDERS}
    assert [path for path in sorted(named) if not any(any(root.glob(path)) for root in ROOTS)] == []


def test_lines_are_short(page):
    """But for tables, links, pictures and code, which cannot be broken."""
    if page.name == "spec.md":
        pytest.skip("the specification is normative and not rewrapped")
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith(("|", "    ", "!")) and "](" not in line:
            assert len(line) <= WIDTH, f"{page.name}:{number} has {len(line)} characters"
