"""The tests mirror the tree, and each asserts something."""

import ast
from pathlib import Path

import pytest

from gateway.cli.main import COMMANDS
from tests.house.source import ROOT, direct, modules, name_of, python_files, reached, tree

SERVER = "tests/integration/server"
ELSEWHERE = {
    "gateway/__main__.py": "tests/end_to_end/test_two_commands.py",
    "gateway/app/headroom.py": "tests/integration/test_budgets.py",
    "gateway/app/house.py": "tests/integration/test_fallback.py",
    "gateway/app/key_room.py": "tests/integration/test_admin_api.py",
    "gateway/app/operator.py": "tests/integration/test_admin_api.py",
    "gateway/app/source.py": "tests/integration/test_fallback.py",
    "gateway/app/usage.py": "tests/integration/test_admin_api.py",
    "gateway/cli/check.py": "tests/unit/config/test_schema.py",
    "gateway/cli/config.py": "tests/unit/config/test_schema.py",
    "gateway/cli/demo.py": "tests/end_to_end/test_two_commands.py",
    "gateway/cli/exits.py": "tests/unit/cli/test_main.py",
    "gateway/cli/local.py": "tests/unit/cli/test_spend.py",
    "gateway/cli/options.py": "tests/unit/cli/test_spend.py",
    "gateway/cli/remote.py": "tests/unit/cli/test_status.py",
    "gateway/cli/say.py": "tests/unit/cli/test_chat.py",
    "gateway/clock.py": "tests/integration/test_fallback.py",
    "gateway/core/attempt.py": "tests/unit/pipeline/test_attempt.py",
    "gateway/core/events.py": "tests/unit/telemetry/test_logs.py",
    "gateway/core/plan.py": "tests/unit/pipeline/test_plan.py",
    "gateway/core/principal.py": "tests/unit/config/test_resolve.py",
    "gateway/core/request.py": "tests/unit/server/facades/test_chat.py",
    "gateway/core/snapshot.py": "tests/unit/config/test_resolve.py",
    "gateway/core/story.py": "tests/unit/telemetry/test_logs.py",
    "gateway/core/target.py": "tests/unit/config/test_resolve.py",
    "gateway/core/usage.py": "tests/unit/pipeline/test_settle.py",
    "gateway/errors.py": f"{SERVER}/test_openai_sdk.py",
    "gateway/state/redis/spent.py": "tests/unit/state/redis/test_ledger.py",
    "gateway/state/backlog.py": "tests/unit/state/embedded/test_ledger.py",
    "gateway/state/redis/reports.py": "tests/contract/test_reports.py",
    "gateway/state/rows.py": "tests/unit/state/embedded/test_ledger.py",
    "gateway/state/embedded/parking.py": "tests/contract/test_parking.py",
    "gateway/pipeline/unpark.py": "tests/unit/pipeline/test_park.py",
    "gateway/server/admin.py": f"{SERVER}/test_admin_port.py",
    "gateway/server/asked.py": f"{SERVER}/test_admin_port.py",
    "gateway/server/connection.py": f"{SERVER}/test_connections.py",
    "gateway/server/credential.py": "tests/unit/server/test_hints.py",
    "gateway/server/desk.py": f"{SERVER}/test_front_door.py",
    "gateway/server/doors.py": f"{SERVER}/test_front_door.py",
    "gateway/server/edge.py": f"{SERVER}/test_front_door.py",
    "gateway/server/health.py": f"{SERVER}/test_front_door.py",
    "gateway/server/incoming.py": f"{SERVER}/test_front_door.py",
    "gateway/server/key_desk.py": f"{SERVER}/test_admin_port.py",
    "gateway/server/reply.py": f"{SERVER}/test_streams.py",
    "gateway/server/serve.py": f"{SERVER}/test_drain.py",
    "gateway/state/embedded/key_rows.py": "tests/unit/state/embedded/test_register.py",
}
"""Modules without a unit test of their own, and the test that covers them all the same."""

TESTS = [path for path in python_files("tests") if path.name.startswith("test_")]


def units() -> list[Path]:
    """Modules in which something happens."""
    return [path for path in python_files("gateway") if path.name != "__init__.py" and acts(path)]


def acts(path: Path) -> bool:
    """Whether a file is more than shapes and protocols: a function of it does something."""
    if path.name == "__main__.py":
        return True
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    return any(does(node) for node in ast.walk(tree(path)) if isinstance(node, functions))


def does(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether there is more in it than a docstring or `...`."""
    return not all(
        isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) for line in node.body
    )


def unit_test_of(path: Path) -> Path:
    inside = path.relative_to(ROOT / "gateway")
    return ROOT / "tests/unit" / inside.parent / f"test_{inside.name}"


def test_every_module_has_its_unit_test_or_stands_in_the_list() -> None:
    bare = {name_of(path) for path in units() if not unit_test_of(path).exists()}
    assert bare - set(ELSEWHERE) == set(), "write the unit test, or say what covers it"
    assert set(ELSEWHERE) - bare == set(), "has its unit test now: take it off the list"


@pytest.mark.parametrize(("module", "test"), ELSEWHERE.items())
def test_the_list_is_honest(module: str, test: str) -> None:
    """The test that is named reaches the module, by imports or as a command."""
    there = ROOT / test
    assert there.exists()
    text = there.read_text()
    commands = [ROOT / f"gateway/cli/{name}.py" for name in COMMANDS if f'"{name}"' in text]
    found = set(commands).union(reached(there), *(reached(command) for command in commands))
    if '"-m", "gateway"' in text:
        found.add(ROOT / "gateway/__main__.py")
    assert ROOT / module in found


def test_a_unit_test_is_of_the_room_it_stands_in() -> None:
    """Named after a module, or after what it is about: it is one of the same folder's."""
    strays = []
    for path in (ROOT / "tests/unit").rglob("test_*.py"):
        inside = path.relative_to(ROOT / "tests/unit").parent
        room = ROOT / inside if inside.parts[:1] == ("chaos",) else ROOT / "gateway" / inside
        named = (room / path.name.removeprefix("test_")).exists()
        if not named and all(there.parent != room for there in direct(path)):
            strays.append(name_of(path))
    assert not strays


# Every test asserts something


def asserting() -> set[str]:
    """Names of functions of the tests that assert, themselves or by way of others."""
    calls: dict[str, set[str]] = {}
    found = {"run_state_machine_as_test"}  # hypothesis: its rules and invariants assert
    for path in python_files("tests"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                calls.setdefault(node.name, set()).update(called(node))
                if asserts(node):
                    found.add(node.name)
    while more := {name for name, below in calls.items() if name not in found and below & found}:
        found |= more
    return found


def asserts(node: ast.AST) -> bool:
    """Whether an `assert`, or a `pytest.raises` and the like, stands in it."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Assert):
            return True
        if isinstance(inner, ast.Attribute) and inner.attr in {"raises", "warns", "fail"}:
            return True
    return False


def called(node: ast.AST) -> set[str]:
    """The last names of what is called, or handed to a decorator."""
    names = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call):
            function = inner.func
            if isinstance(function, ast.Name):
                names.add(function.id)
            elif isinstance(function, ast.Attribute):
                names.add(function.attr)
        elif isinstance(inner, ast.Name):
            names.add(inner.id)
    return names


def test_every_test_asserts_something() -> None:
    known = asserting()
    empty = []
    for path in TESTS:
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if node.name.startswith("test_") and not asserts(node) and not called(node) & known:
                empty.append(f"{name_of(path)}::{node.name}")
    assert not empty


def test_nobody_mocks() -> None:
    """A fake can be wrong in one place; a mock repeats what its test believes."""
    told = []
    for path in python_files("tests"):
        text = path.read_text()
        if f"unittest import {'mock'}" in text or f"unittest.{'mock'}" in text:
            told.append(name_of(path))
    assert not told


def test_every_folder_of_tests_is_one_we_know() -> None:
    known = {"unit", "contract", "vectors", "integration", "end_to_end", "docs", "house", "support"}
    assert {path.name for path in (ROOT / "tests").iterdir()
            if path.is_dir() and path.name != "__pycache__"} <= known  # fmt: skip
    assert "tests.house.source" in modules()
