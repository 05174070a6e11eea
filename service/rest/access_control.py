"""Access control for HTTP requests: tokens, allowed host names, and origin checks for web pages.

An attacker's page can make its own host name resolve to a loopback address (DNS rebinding). The browser then treats requests to this server
as requests to the page's own site. The `Host` header reveals this, because it carries a name that the server does not have. An IP address
cannot be rebound.
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
"""Paths that need no token, because load balancers and container managers check health without one."""

ANY = "*"
_DEFAULT_PORTS = {"http": 80, "https": 443}
_READING_METHODS = ("GET", "HEAD", "OPTIONS")
_CONTROL_PATH = "/v2/repository/models/"
_OTHER_SITES = ("cross-site", "same-site")


class AccessControl:
    """Access check that runs before any of a request's body is read."""

    def __init__(self, tokens: ReloadingFile[tuple[Token, ...]] | None, hosts: AllowedHosts) -> None:
        """Create the access check.

        Args:
            tokens: accepted tokens; None if requests need no token.
            hosts: allowed names of this server.
        """
        self._tokens = tokens
        self._hosts = hosts

    def check(self, request: Request) -> None:
        """Raise an exception if a request is not allowed.

        A page of another site can make its visitors' browsers send requests to a server that only their machines can reach, even though
        the page cannot see the responses. If the headers `Sec-Fetch-Site` or `Origin` identify such a request, only read methods are
        allowed. A page whose name resolves to this machine counts as the same site in the browser; it is detected by its `Host` header.

        Raises:
            HTTPException: 401: the token is missing or invalid. 403: the request is for another host, or it comes from a page of another
                site and may change state.
        """
        host = request.headers.get("host", "")
        if host and request.scope["path"] not in OPEN_PATHS and not self._hosts.includes(host):
            raise HTTPException(403, f"host {host!r:.100} is not a name of this server: use its address, or add the name to allowed_hosts")
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
        return site is None and self._hosts.is_foreign(origin, host)  # behind a proxy, `Host` may differ from the one the browser sent


class AllowedHosts:
    """Host names that the headers `Host` and `Origin` may contain."""

    def __init__(self, allowed: str | None, listening_at: str) -> None:
        """Parse the allowed names.

        Args:
            allowed: comma-separated names, or `*` for any; None for the default of the address.
            listening_at: the server's address. By default, a loopback address allows only loopback names and IP addresses, and any other
                address allows all names.
        """
        names = {name.strip().lower().rstrip(".") for name in (allowed or "").split(",")} - {""}
        self._any = ANY in names or (allowed is None and not is_loopback(listening_at))
        self._names = names - {ANY}

    def includes(self, host: str) -> bool:
        """Return True if a `Host` header names this server."""
        return self._any or self._is_known(_split(f"//{host}")[0])

    def is_foreign(self, origin: str, host: str) -> bool:
        """Return True if an `Origin` header is neither the address in `Host` nor one of the allowed names."""
        name, _ = page = _split(origin)
        if name in self._names:
            return False
        scheme = origin.partition("://")[0].lower()
        return not name or not host or page != _split(f"{scheme}://{host}")

    def may_control(self, origin: str, host: str) -> bool:
        """Return True if pages of an `Origin` may load and unload models: it is not foreign, and its name cannot be rebound."""
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
    """Split a URL into host name and port.

    Return an empty name if the URL has no host name, or contains more than a host name and a port (RFC 9110, 7.2).
    """
    if set("@/?#\\") & set(url.partition("//")[2]):
        return "", None
    try:
        parts = urlsplit(url)
        name, port = parts.hostname or "", parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return "", None
    return name.lower().rstrip("."), port
