"""The library table: which package may be imported where. A new one is given a room here first."""

import functools
import sys
import tomllib

import pytest

from tests.house.source import ROOT, imported, name_of, python_files

WHERE = {
    "aiohttp": ("gateway/client/", "gateway/server/", "gateway/transport/"),
    "click": ("gateway/cli/",),
    "cryptography": ("gateway/transport/tokens.py",),  # by PyJWT: which sort of key it is
    "genai_prices": ("gateway/config/prices.py",),  # by name: it is loaded when a price is missing
    "jwt": ("gateway/transport/tokens.py",),
    "msgspec": ("gateway/wire/json.py",),
    "orjson": ("gateway/wire/json.py",),
    "prometheus_client": ("gateway/telemetry/metrics.py", "gateway/telemetry/sums.py"),
    "pydantic": ("gateway/config/",),
    "pydantic_core": (),
    "redis": ("gateway/state/redis/",),
    "rich": ("gateway/cli/",),
    "tenacity": ("gateway/pipeline/backoff.py",),
    "uvloop": ("gateway/cli/serve.py", "gateway/cli/demo.py"),
    "yaml": ("gateway/config/nodes.py", "gateway/config/show.py"),
    "yarl": ("gateway/transport/http.py",),  # aiohttp's own URLs
}
"""chaos speaks HTTP by hand and imports nothing."""

STANDARD = {
    "sqlite3": ("gateway/state/embedded/", "gateway/cli/serve.py"),  # serve: only its Error
    "fcntl": (
        "gateway/state/journal.py",
        "gateway/state/embedded/lease.py",
        "gateway/server/workers.py",
    ),
    "logging": ("gateway/telemetry/logs.py",),
    "time": ("gateway/clock.py",),
    "json": (),  # gateway/wire/json.py is the door
    "pickle": (),
    "subprocess": (),
    "threading": ("gateway/telemetry/", "gateway/state/embedded/sqlite.py", "chaos/upstream.py"),
    "tempfile": ("gateway/app/state.py", "gateway/cli/demo.py", "gateway/cli/doctor.py"),
    "urllib.request": (),
    "http.client": ("gateway/cli/healthcheck.py",),  # must be quick: no aiohttp there
}
"""Of the standard library, what would be a door as well."""

QUIET = (
    "gateway/cli/main.py",
    "gateway/cli/exits.py",
    "gateway/cli/options.py",
    "gateway/cli/completion.py",
    "gateway/cli/version.py",
    "gateway/cli/healthcheck.py",
    "gateway/errors.py",
)
"""What `--help` loads: click and nothing heavier."""

PRODUCT = python_files("gateway", "chaos")


@functools.cache
def users(package: str) -> tuple[str, ...]:
    """The files that import a package."""
    mark = f"{package}."
    return tuple(
        name_of(path) for path in PRODUCT
        if any(f"{dotted}.".startswith(mark) for dotted in imported(path))
    )  # fmt: skip


@pytest.mark.parametrize(("package", "rooms"), [*WHERE.items(), *STANDARD.items()])
def test_a_library_stays_in_its_rooms(package: str, rooms: tuple[str, ...]) -> None:
    strays = (
        [user for user in users(package) if not user.startswith(rooms)] if rooms else users(package)
    )
    assert not strays


def test_every_library_has_a_room() -> None:
    ours = {"gateway", "chaos", *sys.stdlib_module_names}
    used = {dotted.partition(".")[0] for path in PRODUCT for dotted in imported(path)}
    assert used - ours <= set(WHERE)


@pytest.mark.parametrize("room", sorted({room for rooms in WHERE.values() for room in rooms}))
def test_a_room_of_the_table_is_there(room: str) -> None:
    assert (ROOT / room).exists()


def test_every_dependency_is_used_and_every_import_is_a_dependency() -> None:
    named = {
        "genai-prices": "genai_prices",
        "pyjwt": "jwt",
        "prometheus-client": "prometheus_client",
        "pyyaml": "yaml",
    }
    with (ROOT / "pyproject.toml").open("rb") as file:
        listed = tomllib.load(file)["project"]["dependencies"]
    declared = {one.partition(">")[0].partition("[")[0].strip() for one in listed}
    packages = {named.get(one, one) for one in declared}
    assert packages <= set(WHERE)
    brought_along = {"yarl", "pydantic_core", "cryptography"}  # by aiohttp, pydantic, pyjwt[crypto]
    used = {package for package in WHERE if users(package)}
    assert used - brought_along <= packages
    by_name = {"genai_prices"}
    assert packages - used == by_name


def test_a_library_that_is_loaded_by_name_is_loaded_where_the_table_says() -> None:
    found = [name_of(path) for path in PRODUCT if '"genai_prices.' in path.read_text()]
    assert found == ["gateway/config/prices.py"]


@pytest.mark.parametrize("name", QUIET)
def test_what_help_loads_is_light(name: str) -> None:
    heavy = set(WHERE) - {"click"}
    assert not {dotted.partition(".")[0] for dotted in imported(ROOT / name)} & heavy


def test_the_tests_bring_their_own() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    assert {one.partition(">")[0] for one in project["optional-dependencies"]["test"]} >= {
        "openai",
        "hypothesis",
        "pytest",
    }
    product = "".join(path.read_text() for path in PRODUCT)
    assert "import pytest" not in product
    assert "import hypothesis" not in product
