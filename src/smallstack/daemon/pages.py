"""The HTTP pages of a daemon: health for everybody, the rest for those who may see it.

``/healthz`` is open. Everything else wants a client certificate (HTTPS on the same port), a
connection from this machine's loopback, or a daemon that was started with open pages. ``/metrics``
is for Prometheus; a daemon adds its own pages with `Pages.add`.
"""

import asyncio
import html
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

from aiohttp import web

from smallstack.identity.peer import Peer
from smallstack.srpc.audit import Audit
from smallstack.srpc.server import Server
from smallstack.telemetry.errors import SmallStackError
from smallstack.telemetry.metrics import CONTENT_TYPE, Metrics

KEEP_ALIVE: Final = 15.0
"""Seconds a connection may be idle between two requests."""
_NOBODY: Final = Peer()

PageHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]
HealthCheck = Callable[[], str]
"""Returns "" when all is well, else one line saying what is not."""


class Pages:
    """The pages; `factory` makes the protocol of one connection for the listener."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        open_pages: bool = False,
        healthy: HealthCheck = lambda: "",
        server: Server | None = None,
    ) -> None:
        """With ``server``, its methods are listed below ``/_goSRPC_/`` as upstream's are."""
        self._metrics = metrics
        self._open_pages = open_pages
        self._healthy = healthy
        self._server = server
        self._audit = server.audit if server is not None else Audit()
        self._app = web.Application(middlewares=[self._guard])
        self._runner: web.AppRunner | None = None
        self._open_paths: set[str] = set()
        self.add("/healthz", self._health, open_to_all=True)
        self.add("/metrics", self._scrape)
        self.add("/_goSRPC_/getHostname", self._hostname)
        self.add("/_goSRPC_/listMethods", self._methods)
        self.add("/_goSRPC_/listPublicMethods", self._methods)

    def add(self, path: str, handler: PageHandler, *, open_to_all: bool = False) -> None:
        """A page more, for GET and HEAD; before `start` only."""
        self._app.router.add_get(path, handler)
        if open_to_all:
            self._open_paths.add(path)

    async def start(self) -> None:
        """Ready to serve."""
        self._runner = web.AppRunner(
            self._app,
            handle_signals=False,
            access_log=None,
            keepalive_timeout=KEEP_ALIVE,
            max_line_size=8190,
            max_headers=64,
        )
        await self._runner.setup()

    async def stop(self) -> None:
        """Close what is open."""
        if self._runner is not None:
            await self._runner.cleanup()

    def factory(self) -> asyncio.Protocol:
        """The protocol of one connection."""
        if self._runner is None or self._runner.server is None:
            raise RuntimeError("the pages are not started")
        return self._runner.server()

    @web.middleware
    async def _guard(self, request: web.Request, handler: PageHandler) -> web.StreamResponse:
        peer = _NOBODY
        if request.transport is not None:
            peer = request.transport.get_extra_info("peer", _NOBODY)
        allowed = peer.is_loopback or bool(peer.encrypted and peer.username)
        if not (allowed or self._open_pages or request.path in self._open_paths):
            self._audit.refused(peer.username, request.remote or "", f"page {request.path}")
            raise web.HTTPForbidden(
                text="This page needs a client certificate (HTTPS), a connection from this "
                "machine, or a daemon started with --open-pages.\n"
            )
        try:
            return await handler(request)
        except web.HTTPException:
            raise
        except SmallStackError as error:
            return web.Response(status=500, text=f"{error}\n")

    async def _health(self, _: web.Request) -> web.Response:
        trouble = self._healthy()
        return web.Response(text=f"{trouble or 'OK'}\n", status=503 if trouble else 200)

    async def _scrape(self, _: web.Request) -> web.Response:
        body = await asyncio.to_thread(self._metrics.render)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def _hostname(self, _: web.Request) -> web.Response:
        return web.Response(text=f"{socket.gethostname()}\n")

    async def _methods(self, request: web.Request) -> web.Response:
        if self._server is None:
            raise web.HTTPNotFound
        names = self._server.method_names(public_only=request.path.endswith("listPublicMethods"))
        return web.Response(text="".join(f"{name}\n" for name in names))


def document(title: str, *parts: str) -> web.Response:
    """A page: its title and parts that are HTML already, see `table` and `paragraph`."""
    style = (
        "body{font:14px system-ui,sans-serif;margin:2em}table{border-collapse:collapse}"
        "th,td{padding:.2em .8em;text-align:left;border-bottom:1px solid #ccc}"
    )
    name = html.escape(title)
    text = (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f"<style>{style}</style></head><body><h1>{name}</h1>{''.join(parts)}</body></html>\n"
    )
    security = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return web.Response(text=text, content_type="text/html", headers=security)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows as HTML; every cell is escaped."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def paragraph(text: str) -> str:
    """One paragraph as HTML, escaped."""
    return f"<p>{html.escape(text)}</p>"
