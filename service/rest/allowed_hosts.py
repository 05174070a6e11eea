"""Which names a request may call the server by, and which web pages it may come from.

A page may have its own name resolve to a loopback address (DNS rebinding): to the browser, requests to the server then are requests to the
page's own site. The name in `Host` gives it away, since the server has no such name. An IP address cannot be rebound.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from tlcli.service.system.addresses import is_loopback

ANY = "*"
_DEFAULT_PORTS = {"http": 80, "https": 443}


class AllowedHosts:
    """Names that `Host` and `Origin` may have."""

    def __init__(self, allowed: str | None, listening_at: str) -> None:
        """
        Args:
            allowed: names with commas between them, or `*` for any; None: what the address suggests.
            listening_at: the server's address. Where only this machine reaches it, only loopback names and IP addresses are taken.
        """
        names = {name.strip().lower().rstrip(".") for name in (allowed or "").split(",")} - {""}
        self._any = ANY in names or (allowed is None and not is_loopback(listening_at))
        self._names = names - {ANY}

    def takes(self, host: str) -> bool:
        """True for a `Host` header that names this server."""
        return self._any or self._is_known(_split(f"//{host}")[0])

    def is_foreign(self, origin: str, host: str) -> bool:
        """True for an `Origin` that is neither the address in `Host` nor one of the names."""
        name, _ = page = _split(origin)
        if name in self._names:
            return False
        scheme = origin.partition("://")[0].lower()
        return not name or not host or page != _split(f"{scheme}://{host}")

    def may_change(self, origin: str, host: str) -> bool:
        """True for an `Origin` whose pages may change what is served: not foreign, and of a name that cannot be rebound."""
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
    """Return the name and the port; an empty name where there is none, or more than a name and a port (RFC 9110, 7.2)."""
    if set("@/?#\\") & set(url.partition("//")[2]):
        return "", None
    try:
        found = urlsplit(url)
        name, port = found.hostname or "", found.port or _DEFAULT_PORTS.get(found.scheme)
    except ValueError:
        return "", None
    return name.lower().rstrip("."), port
