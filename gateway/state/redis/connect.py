"""The way to Redis: short timeouts, nothing sent twice, and no calls at all while it is lost.

Every key carries the hash tag `{gateway}`, so all of them are in one slot: on a Redis Cluster the
one node that has it is followed (MOVED), and scripts may touch any of them.
"""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gateway.clock import Clock
from gateway.core.events import Event, StateTrouble, StoreMoved
from gateway.core.target import Secret
from gateway.state.redis.outage import Outage

CALL = 0.1  # seconds a call may take, connecting included
POOL = 0.05  # seconds to wait for one of the connections
CONNECTIONS = 8
LOOK = 0.5  # seconds between pings while it is lost
OLDEST = (6, 2)
TAG = "gateway:1:{gateway}:"  # 1: of the schema; what is laid out otherwise gets another number

_CODES = {  # Redis answers, and cannot serve; within a script's error the code is in its text
    "READONLY": "read-only",
    "OOM": "out of memory",
    "MISCONF": "cannot write its file",
    "CLUSTERDOWN": "cluster down",
    "MASTERDOWN": "cluster down",
}
_WORDS = {  # what went wrong, in a word; a library's own text may quote what is secret
    exceptions.BusyLoadingError: "loading",
    exceptions.ReadOnlyError: "read-only",
    exceptions.OutOfMemoryError: "out of memory",
    exceptions.AuthenticationError: "credentials refused",
    exceptions.AuthorizationError: "credentials refused",
    exceptions.NoPermissionError: "not permitted",
    exceptions.ClusterDownError: "cluster down",
    exceptions.MaxConnectionsError: "no free connection",
    exceptions.TimeoutError: "timeout",
    exceptions.ConnectionError: "connection",
    TimeoutError: "timeout",
    OSError: "connection",
}
_ANSWERED = "refused"


class RedisLost(Exception):
    """The call was not made, or not answered in time. The text is a word of ours."""


class RedisUnfit(Exception):
    """This Redis must not hold limits and money; the text says why and what to change."""


def key(*parts: str) -> str:
    """The name of a key: schema number, hash tag, parts."""
    return TAG + ":".join(parts)


class Script:
    """A Lua script that lies beside this module.

    Args:
        name: of the file, without `.lua`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = resources.files(__package__).joinpath(f"{name}.lua").read_text()
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class Link:
    """One worker's connections to Redis and the breaker around them.

    Args:
        url: `redis://` or `rediss://`, with its credentials; never printed.
        heard: told when Redis is lost and when it is back.
        patience: seconds a call may take; a command line has more than a gateway.

    Attributes:
        contacts: how often Redis came (back); a room that sees it grow has to register again.
    """

    def __init__(
        self, url: Secret, clock: Clock, heard: Callable[[Event], None], patience: float = CALL
    ) -> None:
        self._url = url
        self._patience = patience
        self._now = clock.monotonic
        self._heard = heard
        self._outage = Outage(slow=patience / 2)
        self._home = self._client = self._connect(None)
        self.contacts = 0

    @property
    def lost(self) -> bool:
        """No call will be made; `look` finds out when that is over."""
        return self._outage.lost

    @property
    def why(self) -> str:
        """Why it was lost, for people."""
        return self._outage.why

    async def greet(self) -> bool:
        """At the start: whether it is there. Being away is no error, being unfit is.

        Raises:
            RedisUnfit: too old, without an append-only file, a replica, or one that evicts.
        """
        try:
            await self.examine()
        except RedisLost as error:
            self._lose(f"not reached at the start: {error}")
            return False
        self.contacts += 1
        return True

    async def examine(self) -> str:
        """Its version. Raises RedisLost, RedisUnfit."""
        told = await self._ask("INFO")
        if not isinstance(told, dict):
            raise RedisLost("not permitted")
        complaint = unfit(told)
        if complaint:
            raise RedisUnfit(complaint)
        return str(told["redis_version"])

    async def run(
        self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int | float]
    ) -> Any:
        """What the script returns, texts as bytes. Raises RedisLost."""
        try:
            return await self.call("EVALSHA", script.sha, len(keys), *keys, *args)
        except exceptions.NoScriptError:
            return await self.call("EVAL", script.text, len(keys), *keys, *args)

    async def call(self, *command: Any) -> Any:
        """One command, texts in its answer as bytes.

        Raises:
            RedisLost: also for an error in the answer, but for NOSCRIPT, which is redis-py's.
        """
        if self._outage.lost:
            raise RedisLost("lost")
        began = self._now()
        try:
            found = await self._ask(*command)
        except exceptions.NoScriptError:
            raise
        except RedisLost as error:
            if str(error) == _ANSWERED:  # it serves; what it says is between it and our script
                self._answered(began)
            elif self._outage.failed(str(error)):
                self._lose(self._outage.why)
            raise
        self._answered(began)
        return found

    async def look(self) -> None:
        """While it is lost: one ping. After two good ones it is back, if it is still fit."""
        if not self._outage.lost:
            return
        if self._client is not self._home:  # the node we followed to may be gone for good
            await self._client.aclose()
            self._client = self._home
        await self._client.connection_pool.disconnect()  # its name may lead elsewhere by now
        began = self._now()
        try:
            await self._ask("PING")
        except RedisLost:
            self._outage.pinged(None)
            return
        if not self._outage.pinged(self._now() - began):
            return
        try:
            await self.examine()
        except RedisLost:
            return
        except RedisUnfit as error:
            if self._outage.why != str(error):
                self._lose(str(error))
            return
        self._outage.end()
        self.contacts += 1
        self._heard(StoreMoved("redis", lost=False))

    async def close(self) -> None:
        for client in {self._home, self._client}:
            await client.aclose()

    def _answered(self, began: float) -> None:
        if self._outage.answered(self._now() - began):
            self._lose(self._outage.why)

    def _lose(self, why: str) -> None:
        self._outage.lose(why)
        self._heard(StoreMoved("redis", lost=True, detail=why))

    async def _ask(self, *command: Any) -> Any:
        """Raises RedisLost, and NoScriptError."""
        try:
            async with asyncio.timeout(self._patience):
                try:
                    return await self._client.execute_command(*command)
                except exceptions.MovedError as moved:
                    await self._follow(moved)
                    return await self._client.execute_command(*command)
        except exceptions.NoScriptError:
            raise
        except (exceptions.RedisError, OSError) as error:
            if problem(error) == "connection":  # those that wait in the pool are dead as well
                await self._client.connection_pool.disconnect(inuse_connections=False)
            raise RedisLost(problem(error)) from error

    async def _follow(self, moved: exceptions.MovedError) -> None:
        """To the node of the cluster that has our slot."""
        if self._client is not self._home:
            await self._client.aclose()
        self._client = self._connect((moved.host, moved.port))

    def _connect(self, place: tuple[str, int] | None) -> Any:
        """A client; Any, because redis-py has no types for what we call."""
        where = {} if place is None else {"host": place[0], "port": place[1]}
        pool = BlockingConnectionPool.from_url(
            self._url.reveal(),
            max_connections=CONNECTIONS,
            timeout=POOL,
            socket_timeout=None,  # ours is around the whole call; redis-py's swallows cancellations
            socket_connect_timeout=self._patience,
            socket_keepalive=True,
            retry=Retry(NoBackoff(), 0),
            protocol=2,  # no handshake, and nothing that is pushed at us
            driver_info=None,
        )
        pool.connection_kwargs.update(where)
        return Redis.from_pool(pool)


def problem(error: BaseException) -> str:
    """What went wrong in a word of ours."""
    for kind in type(error).__mro__:
        if kind in _WORDS:
            return _WORDS[kind]
    said = str(error)
    return next((word for code, word in _CODES.items() if code in said), _ANSWERED)


def unfit(told: dict[str, Any]) -> str:
    """Why a Redis that says `told` of itself (INFO) must not be used; "" if it may."""
    version = str(told.get("redis_version", ""))
    if _number(version) < OLDEST:
        return (
            f"this Redis is {version or 'of an unknown version'}, and 6.2 is the oldest that"
            " serves; upgrade it"
        )
    if told.get("role") not in {None, "master"}:
        return "this Redis is a replica, which cannot be written; give the URL of its primary"
    if not told.get("aof_enabled"):
        return (
            "this Redis keeps no append-only file, so a restart would forget limits and spending;"
            " set appendonly yes on it"
        )
    policy = str(told.get("maxmemory_policy", "noeviction"))
    if told.get("maxmemory") and policy != "noeviction":
        return (
            f"this Redis throws keys away when it is full (maxmemory-policy {policy}), spending"
            " among them; set maxmemory-policy noeviction on it"
        )
    return ""


def _number(version: str) -> tuple[int, ...]:
    parts = version.split(".")[:2]
    return tuple(int(part) for part in parts) if all(map(str.isdecimal, parts)) else ()


def trouble(heard: Callable[[Event], None], op: str, error: RedisLost) -> None:
    """Say that `op` failed, unless it is known that Redis is lost."""
    if str(error) != "lost":
        heard(StateTrouble("redis", op, str(error)))
