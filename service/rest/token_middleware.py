"""Who may ask over HTTP: by the rules of `tlcli.service.security.tokens`, for every path but health."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request

from tlcli.service.rest.allowed_hosts import AllowedHosts
from tlcli.service.security.tokens import Token, refusal
from tlcli.service.system.reloading_file import ReloadingFile

OPEN = frozenset({"/v2/health/live", "/v2/health/ready"})
"""Load balancers and container managers ask for health, and have no token."""

_LOOKING = ("GET", "HEAD", "OPTIONS")
_CHANGES = "/v2/repository/models/"
_OTHER_SITES = ("cross-site", "same-site")


class Guard:
    """Looks at a request before anything of its body is read."""

    def __init__(self, tokens: ReloadingFile[tuple[Token, ...]] | None, hosts: AllowedHosts) -> None:
        """tokens: that requests must carry one of; None: they need none. hosts: names of this server."""
        self._tokens = tokens
        self._hosts = hosts

    def check(self, request: Request) -> None:
        """Let a request through.

        A page of another site may make its visitors' browsers ask a server that only their machine reaches, without seeing the answer:
        where a browser says that it is so (`Sec-Fetch-Site`, `Origin`), the request may look and no more. A page whose name resolves to
        this machine is of the same site to a browser, and is known by its `Host`.

        Raises:
            HTTPException: 401: without a token, or with another one. 403: for another host, or from a page of another site.
        """
        host = request.headers.get("host", "")
        if host and request.scope["path"] not in OPEN and not self._hosts.takes(host):
            raise HTTPException(403, f"host {host!r:.100} is none of this server's names: ask for its address, or add it to allowed_hosts")
        if self._tokens is not None and request.scope["path"] not in OPEN:
            given = [value.encode("latin-1") for value in request.headers.getlist("authorization")]
            if reason := refusal(given, self._tokens.get()):
                raise HTTPException(401, reason, {"WWW-Authenticate": "Bearer"})
        if request.method not in _LOOKING and self._is_of_another_site(request, host):
            raise HTTPException(403, "this request comes from a page of another site: send it from a program")

    def _is_of_another_site(self, request: Request, host: str) -> bool:
        site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
        if site in _OTHER_SITES:
            return True
        if origin is None:
            return False
        if request.scope["path"].startswith(_CHANGES):
            return not self._hosts.may_change(origin, host)
        return site is None and self._hosts.is_foreign(origin, host)  # behind a proxy, `Host` may be another than the browser's
