"""Every route and the role it needs, on one page; paths are matched exactly and decoded once."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args
from urllib.parse import unquote

from gateway.core.principal import OPEN_TO, Access, Role
from gateway.errors import GatewayError, MethodNotAllowed, NotAllowed, NotFound

ACCESS = frozenset(get_args(Access))


@dataclass(frozen=True, slots=True)
class Route:
    """One (method, path). `{name}` is one segment, `{name...}` the rest of the path.

    `role`: anyone (no key), or what a caller's role must give (`OPEN_TO`). `api` names it in
    metrics. Raises ValueError where a role is missing: the process does not start then.
    """

    method: str
    path: str
    role: Access
    handler: str
    api: str = "_other"

    def __post_init__(self) -> None:
        if self.role not in ACCESS:
            raise ValueError(f"{self.method} {self.path} has no role")

    def admits(self, role: Role) -> bool:
        return self.role == "anyone" or role in OPEN_TO[self.role]

    def refused(self, role: Role) -> NotAllowed:
        """What to say to a caller of another role."""
        wanted = " or ".join(sorted(OPEN_TO[self.role]))
        return NotAllowed(
            f"{self.method} {self.path} needs a key or token of role {wanted}; the role of this"
            f" one is {role}."
        )


def _everywhere(method: str, path: str, handler: str, api: str) -> tuple[Route, ...]:
    """The same route under each prefix that clients use."""
    return tuple(
        Route(method, prefix + path, "client", handler, api) for prefix in ("/v1", "", "/openai/v1")
    )


PUBLIC: tuple[Route, ...] = (
    *_everywhere("POST", "/chat/completions", "chat", "chat"),
    *_everywhere("POST", "/embeddings", "embeddings", "embeddings"),
    *_everywhere("GET", "/models", "models", "_other"),
    *_everywhere("GET", "/models/{id...}", "model", "_other"),
    *_everywhere("DELETE", "/requests/{key...}", "end", "_other"),
    *_everywhere("GET", "/parked/{id}", "parked", "_other"),
    *_everywhere("DELETE", "/parked/{id}", "drop", "_other"),
    *_everywhere("GET", "/usage", "usage", "_other"),
    Route("POST", "/openai/deployments/{model}/chat/completions", "client", "chat", "chat"),
    Route("POST", "/openai/deployments/{model}/embeddings", "client", "embeddings", "embeddings"),
    Route("GET", "/", "anyone", "hello"),
    Route("HEAD", "/", "anyone", "hello"),
    Route("GET", "/healthz", "anyone", "healthz"),
    Route("HEAD", "/healthz", "anyone", "healthz"),
    Route("GET", "/readyz", "anyone", "readyz"),
    Route("HEAD", "/readyz", "anyone", "readyz"),
)

ADMIN: tuple[Route, ...] = (
    Route("GET", "/healthz", "anyone", "healthz"),
    Route("HEAD", "/healthz", "anyone", "healthz"),
    Route("GET", "/readyz", "anyone", "readyz"),
    Route("HEAD", "/readyz", "anyone", "readyz"),
    Route("GET", "/metrics", "metrics", "metrics"),
    Route("GET", "/admin/status", "admin", "status"),
    Route("GET", "/admin/requests", "admin", "requests"),
    Route("GET", "/admin/requests/{id}", "admin", "request"),
    Route("GET", "/admin/chains", "admin", "chains"),
    Route("GET", "/admin/limits", "admin", "limits"),
    Route("GET", "/admin/config", "admin", "config"),
    Route("GET", "/admin/audit", "admin", "audit"),
    Route("GET", "/admin/openapi.json", "admin", "openapi"),
    Route("GET", "/admin/keys", "admin", "keys"),
    Route("GET", "/admin/keys/{name}", "admin", "key"),
    Route("PUT", "/admin/keys/{name}", "admin", "put_key"),
    Route("DELETE", "/admin/keys/{name}", "admin", "revoke_key"),
    Route("POST", "/admin/keys/{name}/rotate", "admin", "rotate_key"),
    Route("POST", "/admin/reload", "admin", "reload"),
    Route("POST", "/admin/drain", "admin", "drain"),
    Route("POST", "/admin/breaker/{target...}", "admin", "breaker"),
)


class Table:
    """Finds a route: one dict look-up for exact paths, a short list for the others."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._exact: dict[tuple[str, str], Route] = {}
        self._open: list[tuple[str, str, Route]] = []  # before the name, after it, route
        for route in routes:
            if "{" in route.path:
                before, _, rest = route.path.partition("{")
                _, _, after = rest.partition("}")
                self._open.append((before, after, route))
            else:
                self._exact[route.method, route.path] = route
        self.paths = tuple(dict.fromkeys(route.path for route in routes))

    def find(self, method: str, target: str) -> tuple[Route | None, str]:
        """The route and, for a path with a name in it, the decoded name."""
        route = self._exact.get((method, target))
        if route is not None:
            return route, ""
        path = path_of(target)
        route = self._exact.get((method, path))
        if route is not None:
            return route, ""
        for before, after, candidate in self._open:
            if candidate.method == method and (name := _between(path, before, after, candidate)):
                return candidate, name
        return None, ""

    def missing(self, method: str, target: str) -> GatewayError:
        """What to say of a path we do not serve: 405, or 404 with near paths."""
        path = path_of(target)
        methods = [m for m, p in self._exact if p == path]
        methods += [r.method for b, a, r in self._open if _between(path, b, a, r)]
        if methods:
            allow = ", ".join(sorted(set(methods)))
            refused = MethodNotAllowed(f"{_printable(path)} takes {allow}.")
            refused.told = {"allow": allow}
            return refused
        near = difflib.get_close_matches(path[:120], self.paths, n=3)
        told = f" Did you mean {' or '.join(near)}?" if near else ""
        return NotFound(f"There is nothing at {_printable(path)}.{told}")


def path_of(target: str) -> str:
    """The path of a request target, undecoded: without query, fragment, scheme and host."""
    if not target.startswith("/"):
        scheme, mark, rest = target.partition("://")
        if mark and scheme.lower() in {"http", "https"}:
            slash = rest.find("/")
            target = rest[slash:] if slash >= 0 else "/"
    cut = target.find("?")
    if cut >= 0:
        target = target[:cut]
    cut = target.find("#")
    return target if cut < 0 else target[:cut]


def _between(path: str, before: str, after: str, route: Route) -> str:
    if len(path) <= len(before) + len(after):
        return ""
    if not (path.startswith(before) and path.endswith(after)):
        return ""
    name = path[len(before) : len(path) - len(after)]
    if "/" in name and "...}" not in route.path:
        return ""
    try:
        return unquote(name, errors="strict")
    except UnicodeDecodeError:
        return ""


def _printable(path: str) -> str:
    """A path as it may stand in a message: short, ASCII, nothing that could be a secret query."""
    shown = path[:120].encode("ascii", "replace").decode()
    return shown + ("…" if len(path) > 120 else "")
