"""Blocks parse, links lead somewhere, pages are short enough to be read."""

import ast
import re
import subprocess

import pytest
import yaml

from gateway.config.lint import lint
from gateway.config.load import load_text
from gateway.config.models import Document
from gateway.wire import json
from tests.docs import made
from tests.docs.pages import (
    LINK,
    ROOT,
    Block,
    anchors,
    blocks,
    lines_of,
    name_of,
    page,
    pages,
    prose,
)

SECRETS = ("OPENAI_API_KEY", "OPENAI_API_KEY_2", "GROQ_API_KEY", "EAST_KEY", "EAST_URL")
ENV = dict.fromkeys(SECRETS, "sk-example") | {"EAST_URL": "https://east.example.net/v1"}
LONGEST = 200  # lines; a table made from the source included

# What a block that shows one section leaves out.
SECTIONS = {
    "providers": """
providers:
  openai: {kind: openai, key: "${OPENAI_API_KEY}"}
  east: {kind: openai, key: "${EAST_KEY}", base_url: "${EAST_URL}"}
  local: {kind: openai, base_url: "http://vllm:8000/v1", allow_http: true, allow_private: true}
""",
    "targets": """
targets:
  gpt: {model: openai/gpt-5-mini}
  gpt-east: {like: gpt, model: east/gpt-5-mini}
  gpt-west: {model: openai/gpt-5.4}
  llama: {model: local/llama-3.3-70b}
""",
    "chains": "\nchains: {smart: [gpt, llama], cheap: [llama, gpt]}\n",
    "tiers": "\ntiers: {free: {limits: {rpm: 20}}, team: {limits: {rpm: 600}}}\n",
    "teams": "\nteams: {search: {tier: team}}\n",
    "prices": "\nprices: {unpriced: allow}\n",
}
OURS = frozenset(Document.model_fields)


def whole(text: str) -> str:
    """A block with the sections it leaves out, unless it is a file of its own."""
    keys = set(re.findall(r"^([a-z_]+):", text, re.MULTILINE))
    if {"providers", "chains"} <= keys:
        return text
    return text + "".join(more for name, more in SECTIONS.items() if name not in keys)


def is_ours(block: Block) -> bool:
    return bool(OURS & set(yaml.safe_load(block.text)))


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_a_block_of_yaml_is_a_configuration_that_loads(block: Block) -> None:
    if not is_ours(block):
        assert block.text.startswith("scrape_configs:"), "of nobody we know"
        return
    loaded = load_text(whole(block.text), str(block), ENV)
    assert [finding for finding in lint(loaded) if finding.severity == "error"] == []


@pytest.mark.parametrize("name", ["config/minimal.yaml", "config/gateway.yaml"])
def test_the_examples_hold_without_an_error(name: str) -> None:
    loaded = load_text(page(name), name, ENV)
    assert [finding for finding in lint(loaded) if finding.severity == "error"] == []


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_a_block_of_json_parses(block: Block) -> None:
    assert json.loads(block.text.encode())


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_a_block_of_python_parses(block: Block) -> None:
    assert ast.parse(block.text).body


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_a_block_of_shell_parses_and_its_bodies_are_json(block: Block) -> None:
    done = subprocess.run(
        ["sh", "-n"], input=block.text, capture_output=True, text=True, check=False, timeout=10
    )
    assert done.returncode == 0, done.stderr
    for line in lines_of(block.text):
        for body in re.findall(r"-d '([^']*)'", line):
            assert json.loads(body.encode())


def test_every_block_says_its_language() -> None:
    known = {"sh", "yaml", "json", "python", "text", "js"}
    unknown = [f"{name_of(path)}: {mark}" for path in pages()
               for mark in re.findall(r"^```(.*)$", path.read_text(), re.MULTILINE)[::2]
               if mark not in known]  # fmt: skip
    assert not unknown


@pytest.mark.parametrize("path", pages(), ids=name_of)
def test_links_lead_somewhere(path) -> None:
    dangling = []
    for link in LINK.findall(prose(path.read_text())):
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        there = (path.parent / target).resolve() if target else path
        if not there.exists() or (anchor and anchor not in anchors(there.read_text())):
            dangling.append(link)
    assert not dangling


def test_every_page_of_docs_is_linked_from_the_readme() -> None:
    linked = set(LINK.findall(page("README.md")))
    missing = [name for path in sorted((ROOT / "docs").glob("*.md"))
               if (name := name_of(path)) not in linked]  # fmt: skip
    assert not missing


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=name_of)
def test_a_page_can_be_read_in_one_sitting(path) -> None:
    """What is made from the source is looked up, not read."""
    assert len(made.PART.sub("", path.read_text()).splitlines()) <= LONGEST


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=name_of)
def test_the_made_parts_are_those_of_the_source(path) -> None:
    """Mend: python -m tests.docs.made."""
    text = path.read_text()
    assert made.written(text) == text


def test_every_made_part_stands_in_some_page() -> None:
    standing = {part[1] for path in (ROOT / "docs").glob("*.md")
                for part in made.PART.findall(path.read_text())}  # fmt: skip
    assert standing == set(made.PARTS)


def test_the_readme_is_short_and_begins_with_the_two_commands() -> None:
    text = page("README.md")
    assert len(text.splitlines()) <= 150
    first = next(block for block in blocks("sh") if block.page == "README.md")
    assert [line.split()[:2] for line in lines_of(first.text)] == [
        ["make", "demo"],
        ["make", "test"],
    ]
    assert text.index("make demo") < 1_200, "nobody has to scroll for it"


def test_decisions_are_numbered_and_have_the_same_four_parts() -> None:
    found = sorted((ROOT / "docs/decisions").glob("*.md"))
    assert [int(path.name[:4]) for path in found] == list(range(1, len(found) + 1))
    for number, path in enumerate(found, 1):
        text = path.read_text()
        assert text.startswith(f"# {number}. ")
        parts = re.findall(r"^\*\*(.+?)\.\*\*", text, re.MULTILINE)
        assert parts == ["Context", "Decision", "Consequence", "What would change our mind"], (
            path.name
        )


def test_the_documents_name_no_neighbour() -> None:
    """Paths beside the repository; tests/house looks for names of machines."""
    told = [name_of(path) for path in pages() if "../shared" in path.read_text()]
    assert told == ["CONTRIBUTING.md"]
