"""Who may ask over HTTP: as `service.guard` has it, for every path but health."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request

from service.guard import refusal
from service.renewing import Renewed
from service.tokens import Token

OPEN = frozenset({"/v2/health/live", "/v2/health/ready"})
"""Load balancers and container managers ask for health, and have no token."""

_OTHER_SITES = ("cross-site", "same-site")


class Guard:
    """Looks at a request before anything of its body is read."""

    def __init__(self, tokens: Renewed[tuple[Token, ...]] | None) -> None:
        """tokens: that requests must carry one of; None: they need none."""
        self._tokens = tokens

    def check(self, request: Request) -> None:
        """Let a request through.

        A page of another site may make its visitors' browsers ask a server that only their machine reaches, without seeing the answer:
        where a browser says that it is so, the request may look and no more.

        Raises:
            HTTPException: 401: without a token, or with another one. 403: from a page of another site.
        """
        if self._tokens is not None and request.scope["path"] not in OPEN:
            given = [value.encode("latin-1") for value in request.headers.getlist("authorization")]
            if reason := refusal(given, self._tokens.get()):
                raise HTTPException(401, reason, {"WWW-Authenticate": "Bearer"})
        if request.method == "POST" and request.headers.get("sec-fetch-site") in _OTHER_SITES:
            raise HTTPException(403, "this request comes from a page of another site: send it from a program")
