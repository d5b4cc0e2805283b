"""How files look: a reason to exist, a name that says something, no imports that hide."""

import ast
import re
import tomllib

from gateway.providers.registry import KINDS
from gateway.server.routes import ACCESS, ADMIN, PUBLIC
from tests.house.source import ROOT, imports, name_of, python_files, tracked, tree

PRODUCT = python_files("gateway", "chaos")
EVERYTHING = python_files("gateway", "chaos", "tests", "bench")
DRAWERS = {
    "utils",
    "util",
    "helpers",
    "helper",
    "common",
    "misc",
    "manager",
    "managers",
    "base",
    "lib",
}
LATE = {  # imports inside a function, and why
    # none: what is loaded late is loaded by name, below
}
BY_NAME = {
    "gateway/app/house.py": "what checks tokens costs 0.1 s and is seldom needed",
    "gateway/app/state.py": "redis-py costs 0.2 s and few need it",
    "gateway/cli/main.py": "commands are found by name, so that --help loads none of them",
    "gateway/cli/chat.py": "readline may be missing",
    "gateway/config/prices.py": "the catalogue costs 0.4 s and is seldom needed",
}


def test_a_file_begins_by_saying_what_it_is_for() -> None:
    silent = []
    for path in EVERYTHING:
        package_of_tests = path.name == "__init__.py" and name_of(path).startswith("tests/")
        if package_of_tests and not path.read_text():
            continue
        if not ast.get_docstring(tree(path)):
            silent.append(name_of(path))
    assert not silent


def test_no_file_is_a_drawer() -> None:
    folders = {path.parent for path in EVERYTHING}
    assert not [name_of(path) for path in EVERYTHING if path.stem in DRAWERS]
    assert not [name_of(folder) for folder in folders if folder.name in DRAWERS]


def test_a_package_says_what_it_is_and_no_more() -> None:
    for path in PRODUCT:
        if path.name == "__init__.py":
            assert [type(node) for node in tree(path).body] == [ast.Expr], name_of(path)


def test_imports_stand_at_the_top() -> None:
    late = set()
    for path in PRODUCT:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and any(
                imports(node)
            ):
                late.add(name_of(path))
    assert late == set(LATE)


def test_what_is_loaded_by_name_has_a_reason() -> None:
    found = {name_of(path) for path in PRODUCT if "import_module(" in path.read_text()}
    assert found == set(BY_NAME)


def test_no_star_and_no_relative_imports() -> None:
    for path in EVERYTHING:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, name_of(path)
                assert all(alias.name != "*" for alias in node.names), name_of(path)


def test_nothing_is_evaluated_or_executed() -> None:
    """No input becomes code."""
    calls = [
        f"{name_of(path)}:{node.lineno}"
        for path in PRODUCT for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        and node.func.id in {"eval", "exec", "compile", "__import__"}
    ]  # fmt: skip
    assert not calls


def test_nobody_changes_a_global() -> None:
    assert not [name_of(path) for path in PRODUCT for node in ast.walk(tree(path))
                if isinstance(node, ast.Global)]  # fmt: skip


def test_broad_excepts_stand_at_the_boundaries_only() -> None:
    """`except Exception`: where nobody above could answer, and nowhere else."""
    found = {
        name_of(path)
        for path in PRODUCT for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id == "Exception"))
    }  # fmt: skip
    assert found <= {
        "gateway/server/desk.py",  # a request
        "gateway/state/embedded/open.py",  # a background chore
        "gateway/pipeline/road.py",  # marks the request as our mistake, and raises on
        "gateway/pipeline/recall.py",  # the same, of a detached call
        "gateway/pipeline/unpark.py",  # a parked request
        "gateway/app/house.py",  # a task of the process
        "gateway/telemetry/metrics.py",  # one figure of a scrape
    }


# Routes and vendors


def test_every_route_has_a_role_and_only_roads_are_for_clients() -> None:
    for route in (*PUBLIC, *ADMIN):
        assert route.role in ACCESS
    assert {route.role for route in PUBLIC} == {"anyone", "client"}
    assert {route.role for route in ADMIN} == {"anyone", "metrics", "admin"}
    assert {route.handler for route in (*PUBLIC, *ADMIN) if route.role == "anyone"} == {
        "hello",
        "healthz",
        "readyz",
    }
    known = [(route.method, route.path) for route in PUBLIC]
    assert len(known) == len(set(known))


def test_every_vendor_stands_in_the_contracts_and_in_the_registry() -> None:
    folder = ROOT / "gateway/providers"
    vendors = {path.stem for path in folder.glob("*.py")} - {"__init__", "registry"}
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    layers = next(one for one in contracts if one.get("containers") == ["gateway.providers"])
    blind = {name.strip() for name in layers["layers"][1].split("|")}
    protected = next(one for one in contracts if one["type"] == "protected")
    assert vendors == blind
    assert {name.rpartition(".")[2] for name in protected["protected_modules"]} == vendors
    assert {kind.__module__.rpartition(".")[2] for kind in KINDS.values()} == vendors
    assert set(KINDS) == vendors


def test_every_room_has_a_floor() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    floors = next(one for one in contracts if one.get("containers") == ["gateway"])["layers"]
    named = {name.strip() for floor in floors for name in floor.split("|")}
    there = {path.stem for path in (ROOT / "gateway").iterdir()
             if path.suffix == ".py" or (path / "__init__.py").exists()}  # fmt: skip
    assert named == there - {"__init__", "__main__"}


# Where it was made does not show

MACHINE = re.compile(r"/[w]ork/|/[r]oot/|/[U]sers/[a-z]|C:\\[U]sers|/\.[p]yenv/")
REGISTRY = re.compile(
    r"https?://[\w.-]*(?:[a]rtifactory|[n]exus|[j]frog|[p]ypi|[p]ythonhosted|[r]egistry|[m]irror"
    r"|[p]roxy)[\w.-]*\.[a-z]{2,}"
)
BINARY = {".png", ".ico", ".gz", ".sqlite3", ".pyc"}


def test_no_file_names_the_machine_it_was_written_on() -> None:
    told = []
    for path in tracked():
        if path.suffix in BINARY:
            continue
        text = path.read_text(errors="replace")
        told += [f"{name_of(path)}: {found[0]}" for found in MACHINE.finditer(text)]
        told += [f"{name_of(path)}: {found[0]}" for found in REGISTRY.finditer(text)]
    assert not told
