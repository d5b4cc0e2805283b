"""The documents, cut into blocks, anchors and links."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```([a-z]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
SPAN = re.compile(r"`([^`\n]+)`")
ANCHOR = re.compile(r'<a id="([^"]+)"></a>')
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and where it begins."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Everything a user or contributor reads."""
    top = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
    return [*top, *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def page(name: str) -> str:
    return (ROOT / name).read_text()


def blocks(language: str) -> list[Block]:
    """The blocks of one language, of all pages."""
    return [block for path in pages() for block in _blocks(path) if block.language == language]


def _blocks(path: Path) -> Iterator[Block]:
    text = path.read_text()
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(name_of(path), line, found[1], found[2])


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """What may stand behind a #, as GitHub makes it of headings, and the anchors we set."""
    made = {_slug(heading) for heading in HEADING.findall(prose(text))}
    return made | set(ANCHOR.findall(text))


def _slug(heading: str) -> str:
    kept = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return kept.strip().replace(" ", "-")


def lines_of(text: str) -> list[str]:
    """The command lines of a block of shell, continued lines joined, comments left out."""
    joined = text.replace("\\\n", " ")
    found = (re.sub(r"\s+#.*$", "", line).strip() for line in joined.splitlines())
    return [line for line in found if line and not line.startswith("#")]
