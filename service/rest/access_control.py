"""Access control of HTTP requests: tokens, the names by which the server may be called, and the web pages that may call it.

A page may let its own name resolve to a loopback address (DNS rebinding): to the browser, requests to the server then are requests to the
page's own site. The name in `Host` reveals this, since the server has no such name. An IP address cannot be rebound.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request

from tlcli.service.security.tokens import Token, refusal
from tlcli.service.system.addresses import is_loopback
from tlcli.service.system.reloading_file import ReloadingFile

OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready"})
"""Paths that need no token: load balancers and container managers check health without one."""

ANY = "*"
_DEFAULT_PORTS = {"http": 80, "https": 443}
_READING_METHODS = ("GET", "HEAD", "OPTIONS")
_CONTROL_PATH = "/v2/repository/models/"
_OTHER_SITES = ("cross-site", "same-site")


class AccessControl:
    """Check of requests, before anything of their bodies is read."""

    def __init__(self, tokens: ReloadingFile[tuple[Token, ...]] | None, hosts: AllowedHosts) -> None:
        """Create the check. tokens: tokens of which requests must carry one; None if they need none. hosts: names of this server."""
        self._tokens = tokens
        self._hosts = hosts

    def check(self, request: Request) -> None:
        """Raise an exception if a request is not allowed.

        A page of another site can make its visitors' browsers send requests to a server that only their machine reaches, without seeing
        the answer. If a browser says so (`Sec-Fetch-Site`, `Origin`), the request may only read. A page whose name resolves to this
        machine belongs to the same site for a browser, and is detected by its `Host`.

        Raises:
            HTTPException: 401: the token is missing or invalid. 403: the request is for another host, or from a page of another site.
        """
        host = request.headers.get("host", "")
        if host and request.scope["path"] not in OPEN_PATHS and not self._hosts.includes(host):
            raise HTTPException(403, f"host {host!r:.100} is no name of this server: use its address, or add the name to allowed_hosts")
        if self._tokens is not None and request.scope["path"] not in OPEN_PATHS:
            values = [value.encode("latin-1") for value in request.headers.getlist("authorization")]
            if reason := refusal(values, self._tokens.get()):
                raise HTTPException(401, reason, {"WWW-Authenticate": "Bearer"})
        if request.method not in _READING_METHODS and self._is_cross_site(request, host):
            raise HTTPException(403, "the request comes from a web page of another site: send it from a program")

    def _is_cross_site(self, request: Request, host: str) -> bool:
        site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
        if site in _OTHER_SITES:
            return True
        if origin is None:
            return False
        if request.scope["path"].startswith(_CONTROL_PATH):
            return not self._hosts.may_control(origin, host)
        return site is None and self._hosts.is_foreign(origin, host)  # behind a proxy, `Host` may differ from the browser's


class AllowedHosts:
    """Names that the headers `Host` and `Origin` may hold."""

    def __init__(self, allowed: str | None, listening_at: str) -> None:
        """Parse the allowed names.

        Args:
            allowed: names separated by commas, or `*` for any; None for the default of the address.
            listening_at: the server's address. By default, only loopback names and IP addresses are allowed on a loopback address, and
                any name on another.
        """
        names = {name.strip().lower().rstrip(".") for name in (allowed or "").split(",")} - {""}
        self._any = ANY in names or (allowed is None and not is_loopback(listening_at))
        self._names = names - {ANY}

    def includes(self, host: str) -> bool:
        """Return True for a `Host` header that names this server."""
        return self._any or self._is_known(_split(f"//{host}")[0])

    def is_foreign(self, origin: str, host: str) -> bool:
        """Return True for an `Origin` that is neither the address in `Host` nor one of the names."""
        name, _ = page = _split(origin)
        if name in self._names:
            return False
        scheme = origin.partition("://")[0].lower()
        return not name or not host or page != _split(f"{scheme}://{host}")

    def may_control(self, origin: str, host: str) -> bool:
        """Return True for an `Origin` whose pages may load and unload models: not foreign, and with a name that cannot be rebound."""
        return not self.is_foreign(origin, host) and self._is_known(_split(origin)[0])

    def _is_known(self, name: str) -> bool:
        return name in self._names or name == "localhost" or name.endswith(".localhost") or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _split(url: str) -> tuple[str, int | None]:
    """Return the name and the port; an empty name if there is none, or more than a name and a port (RFC 9110, 7.2)."""
    if set("@/?#\\") & set(url.partition("//")[2]):
        return "", None
    try:
        parts = urlsplit(url)
        name, port = parts.hostname or "", parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return "", None
    return name.lower().rstrip("."), port
