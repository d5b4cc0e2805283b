"""`gateway healthcheck`: the probe of a container that has no curl."""

import http.client
from urllib.parse import urlsplit

import click

from gateway.cli.exits import UNAVAILABLE, USAGE, Stop

MEND = "gateway serve    (or --url http://HOST:PORT of a running gateway)"


@click.command(help="Ask a running gateway whether it is alive (/healthz): exit 0, else 6.")
@click.option("--url", default="http://127.0.0.1:8081", show_default=True, help="Any listener.")
@click.option("--ready", is_flag=True, help="Ask whether it takes traffic (/readyz) instead.")
@click.option("--timeout", default=3.0, show_default=True, help="Seconds.")
@click.option("-q", "--quiet", is_flag=True, help="Only the exit code.")
def command(*, url: str, ready: bool, timeout: float, quiet: bool) -> None:
    path = "/readyz" if ready else "/healthz"
    status = _ask(url, path, timeout)
    if status != 200:
        raise Stop(f"{url}{path} answered HTTP {status}.", "gateway status", UNAVAILABLE)
    if not quiet:
        click.echo("ok")


def _ask(url: str, path: str, timeout: float) -> int:
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme not in {"http", "https"} or not host:
        raise Stop(f"{url!r} is no address.", "--url http://127.0.0.1:8081", USAGE)
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(host, port, timeout=timeout)
    try:
        connection.request("GET", parts.path.rstrip("/") + path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        raise Stop(f"Nobody answers at {url}.", MEND, UNAVAILABLE) from None
    finally:
        connection.close()
