"""What stands between the page and whoever calls it: sizes, names of hosts, one line an error."""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from convattn.demo.page import MAX_FILE_BYTES
from convattn.text import one_line, report

_MAX_BODY_BYTES = MAX_FILE_BYTES * 4 // 3 + 2**20
"""A file in base64, and what belongs to it."""
_LOCAL = ("127.0.0.1", "localhost", "::1")
_EVERYWHERE = ("0.0.0.0", "::", "")


class Page(gr.Blocks):
    """Blocks that tell a call that cannot be answered in a line of the log, without a traceback."""

    async def process_api(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As of ``gradio.Blocks``."""
        try:
            return await super().process_api(*args, **kwargs)
        except gr.Error as error:
            if error.print_exception:  # one of Gradio's own
                report(f"a call could not be answered: {one_line(error)}")
                error.print_exception = False
            raise
        except Exception as error:  # whatever the caller's values have led Gradio to
            report(f"a call could not be answered: {type(error).__name__}: {one_line(error)}")
            raise gr.Error("the call is not as the API has it", print_exception=False) from None
        finally:
            _return_memory()


def _return_memory() -> None:
    """Have the C library give back what images left free; each thread would keep its own share."""
    with contextlib.suppress(OSError, AttributeError):  # not every system has this function
        ctypes.CDLL(None).malloc_trim(0)


class Guard:
    """Refuses other hosts' names, bodies larger than an image may be, and what Gradio fails at.

    A page of another site whose name leads to this computer could else read what is shown here.

    Args:
        app: What answers the others.
        host: What the server listens on.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self.app, self.host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse a request, as ASGI has it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if not is_known_host(headers.get(b"host", b"").decode("latin-1"), self.host):
            refusal = PlainTextResponse("this host is not served here\n", status_code=400)
            await refusal(scope, receive, send)
            return
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > _MAX_BODY_BYTES:
            refusal = PlainTextResponse("the request is too large\n", status_code=413)
            await refusal(scope, receive, send)
            return
        await self._answered(scope, _counted(receive), send)

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer whatever the caller's words have led Gradio to, and log that in a line."""
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception as error:
            told = f"{type(error).__name__}: {one_line(error)[:200]}"
            report(f"a request could not be answered: {told}")
            if started:  # all that is left is to end it
                await send({"type": "http.response.body"})
            elif scope["type"] == "http":
                refusal = PlainTextResponse("the call is not as the API has it\n", status_code=400)
                await refusal(scope, receive, send)


def _counted(receive: Receive) -> Receive:
    """What is received, up to the limit; chunked bodies announce no length."""
    seen = 0

    async def counted() -> Any:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > _MAX_BODY_BYTES:
            return {"type": "http.disconnect"}
        return message

    return counted


def is_known_host(header: str, host: str) -> bool:
    """Whether a request is for this computer, by its ``Host`` header.

    Args:
        header: Name or address, with or without a port.
        host: What the server listens on; where that is every address, any address will do, but no
            name beside localhost.

    Examples:
        >>> is_known_host("localhost:7860", "127.0.0.1"), is_known_host("evil.example", "0.0.0.0")
        (True, False)
    """
    name = header.rpartition(":")[0] if header.rpartition(":")[2].isdigit() else header
    name = name.strip("[]").lower()
    if name in (*_LOCAL, host.strip("[]").lower()):
        return True
    return host in _EVERYWHERE and _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def guards(host: str) -> list[Middleware]:
    """For Gradio's application.

    Args:
        host: What the server listens on.
    """
    return [Middleware(Guard, host=host)]
