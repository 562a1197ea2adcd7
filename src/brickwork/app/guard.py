"""Who may ask the studio: pages of its own, from this machine alone unless its owner asked for more."""

import hmac
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

COOKIE = "brickwork-key"
_DRAINED = 2**16  # bytes
_HEADERS = [
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


class Guard:
    """ASGI middleware. A page elsewhere must not reach the studio through a browser on this machine: names of other
    hosts (DNS rebinding) are refused, and so is what changes something and comes from another origin or is no JSON,
    which browsers send only to whom they asked first.

    Args:
        app: what it guards.
        hosts: names it may be called by.
        key: what a visitor must know where other machines can reach it, in the address once, then in a cookie.
    """

    def __init__(self, app, hosts: Collection[str], key: str | None = None):
        self.app, self.hosts, self.key = app, set(hosts), key

    async def __call__(self, scope, receive, send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = parse_qs(scope["query_string"].decode("latin-1")).get("key", [""])[0]
        wrong = self._wrong(scope["method"], headers, given)

        async def guarded(message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
                if self.key and given and not wrong:
                    cookie = f"{COOKIE}={self.key}; HttpOnly; SameSite=Strict; Path=/"
                    message["headers"].append((b"set-cookie", cookie.encode()))
            await send(message)

        if wrong:
            await _drain(receive)
            body = wrong.encode()
            start = {"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]}
            await guarded(start)
            await guarded({"type": "http.response.body", "body": body})
            return
        await self.app(scope, receive, guarded)

    def _wrong(self, method: str, headers: dict[str, str], given: str) -> str:
        host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
        if "*" not in self.hosts and host not in self.hosts:
            return "This studio is not called that; open the address that the terminal shows."
        if self.key and not self._knows(headers, given):
            return "Open the full address that the terminal shows, with its key."
        if method in ("GET", "HEAD"):
            return ""
        if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return "The studio takes JSON."
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            return "The studio takes nothing from other pages."
        return ""

    def _knows(self, headers: dict[str, str], given: str) -> bool:
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        return any(
            hmac.compare_digest(text.encode(), self.key.encode()) for text in (given, cookie.value if cookie else "")
        )


async def _drain(receive) -> None:
    """Take what a refused request still sends, up to a bound: a connection that is closed over unread bytes is reset,
    and whoever asked would not hear why."""
    left = _DRAINED
    while left > 0:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body"):
            return
        left -= len(message.get("body", b""))
