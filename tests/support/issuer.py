"""An identity provider on loopback: it signs tokens and publishes its keys, or fails to."""

import asyncio
import base64
import contextlib
import functools
import http.server
import json
import threading
from typing import Any, Literal, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

ISSUER = "https://login.example.com/"
AUDIENCE = "gateway"
LIFE = 600  # seconds

Kind = Literal["RS256", "PS256", "ES256", "EdDSA"]


@functools.cache
def private_key(sort: Literal["rsa", "ec", "ed"], number: int = 0) -> Any:
    """Made once a run: an RSA key takes its time."""
    if sort == "rsa":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return (
        ec.generate_private_key(ec.SECP256R1())
        if sort == "ec"
        else ed25519.Ed25519PrivateKey.generate()
    )


_SORTS: dict[str, Literal["rsa", "ec", "ed"]] = {
    "RS256": "rsa", "RS512": "rsa", "PS256": "rsa", "ES256": "ec", "EdDSA": "ed",
}  # fmt: skip


def published(kid: str, kind: str, key: Any, **more: Any) -> dict[str, Any]:
    """The public half as a JWK."""
    algorithm = jwt.get_algorithm_by_name(kind)
    told = algorithm.to_jwk(key.public_key(), as_dict=True)
    return {**told, "kid": kid, "use": "sig", **more}


class Signer:
    """A private key with a name."""

    def __init__(self, kid: str, kind: Kind = "RS256", number: int = 0) -> None:
        self.kid = kid
        self.kind = kind
        self.key = private_key(_SORTS[kind], number)

    def public(self, **more: Any) -> dict[str, Any]:
        return published(self.kid, self.kind, self.key, **more)

    def sign(self, now: float, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """A good token of alice in the team search, with `claims` changed; None: left out."""
        told = {
            "iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "team": "search",
            "iat": int(now), "exp": int(now) + LIFE, **claims,
        }  # fmt: skip
        told = {name: value for name, value in told.items() if value is not None}
        head = {"kid": self.kid, **(headers or {})}
        head = {name: value for name, value in head.items() if value is not None}
        return jwt.encode(told, self.key, algorithm=self.kind, headers=head)


def by_hand(header: Any, claims: Any, signature: bytes = b"") -> str:
    """A token that no library would make."""
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


class KeyServer:
    """Serves a set of keys on a thread of its own; `answer` may be changed while it runs."""

    def __init__(self, *signers: Signer) -> None:
        self.asked = 0
        self.status = 200
        self.headers: dict[str, str] = {}
        self.silent = threading.Event()  # while set, nothing is answered
        self.let_go = threading.Event()
        self.publish(*signers)
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                if outer.silent.is_set():
                    outer.let_go.wait(10)
                body = outer.body
                self.send_response(outer.status)
                self.send_header("content-length", str(len(body)))
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # who asked may have had enough
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=functools.partial(self._server.serve_forever, poll_interval=0.01)
        )

    def publish(self, *signers: Signer, more: tuple[dict[str, Any], ...] = ()) -> None:
        self.body = json.dumps({"keys": [*(one.public() for one in signers), *more]}).encode()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/jwks"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Errands:
    """Owns the fetches of a test, as the house does."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []

    def start(self, work: Any) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(work))

    async def done(self) -> None:
        await asyncio.gather(*self.tasks)
