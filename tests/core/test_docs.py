"""What the docs point to is there: pages, headings, pictures, files, commands and benches."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [path for folder in (".", "docs", "web/docs", "demo_model") for path in sorted((ROOT / folder).glob("*.md"))]
COMMANDS = set(re.findall(r'^    "(\w+)": "', (ROOT / "dev.py").read_text(encoding="utf-8"), re.M))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The headings of a page, as a link names them."""
    heads = re.findall(r"^#+ (.*)$", text_of(page), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_points_to_what_is_there(page):
    text = text_of(page)
    for link in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if not link.startswith("http"):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link
    for name in re.findall(r"`((?:tests|docs|host|bayesdiff_core|nodes|tools|web)/[\w./]+)`", text):
        assert (ROOT / name).exists(), name
    for bench in re.findall(r"`(?:python dev\.py )?bench (\w+)", text):
        assert (ROOT / "benchmarks" / f"{bench}.py").exists(), bench
    assert COMMANDS >= set(re.findall(r"python dev\.py (\w+)", text)) - {"COMMAND", "help"}
