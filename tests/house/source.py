"""The source as the rules see it: files, syntax trees, imports."""

import ast
import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def python_files(*folders: str) -> list[Path]:
    """Every Python file below these folders of the repository."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(node: ast.AST) -> Iterator[str]:
    """Dotted names of what is imported anywhere in a tree; `from a import b` gives `a.b`."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import):
            yield from (alias.name for alias in inner.names)
        elif isinstance(inner, ast.ImportFrom) and inner.module:
            yield from (f"{inner.module}.{alias.name}" for alias in inner.names)


@functools.cache
def imported(path: Path) -> frozenset[str]:
    """What a file imports."""
    return frozenset(imports(tree(path)))


def module_of(path: Path) -> str:
    """`gateway/cli/main.py` as `gateway.cli.main`."""
    dotted = name_of(path).removesuffix(".py").replace("/", ".")
    return dotted.removesuffix(".__init__")


@functools.cache
def modules() -> dict[str, Path]:
    """All modules of the product and the tests by their dotted names."""
    return {module_of(path): path for path in python_files("gateway", "chaos", "tests")}


@functools.cache
def direct(path: Path) -> frozenset[Path]:
    """The modules of ours that a file imports."""
    known = modules()
    found = set()
    for dotted in imported(path):
        owner = dotted if dotted in known else dotted.rpartition(".")[0]
        if owner in known:
            found.add(known[owner])
    return frozenset(found)


def reached(path: Path) -> set[Path]:
    """Everything of ours that a file imports, by way of others too."""
    seen: set[Path] = set()
    todo = [path]
    while todo:
        here = todo.pop()
        for there in direct(here) - seen:
            seen.add(there)
            todo.append(there)
    return seen


def tracked() -> list[Path]:
    """The files git knows or would take; without git, what a release holds."""
    if not (ROOT / ".git").exists():
        folders = ("gateway", "chaos", "tests", "docs", "config", "bench")
        inside = [path for folder in folders for path in (ROOT / folder).rglob("*")]
        return [path for path in [*ROOT.glob("*.*"), *inside] if path.is_file()]
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]
