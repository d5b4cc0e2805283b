"""Every claim holds on both event loops: with the fast lane (uvloop) and without (asyncio)."""

import asyncio

import uvloop


def pytest_asyncio_loop_factories(config, item):
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
