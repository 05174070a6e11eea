"""The tokens that requests may carry: `token` or `name: token`, one a line."""

from __future__ import annotations

import hmac
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tlcli.contract.errors import SettingsError
from tlcli.contract.files.text_file import read_text
from tlcli.service.system.reloading_file import Renewed

logger = logging.getLogger(__name__)

_MAX_FILE_BYTES = 16 * 1024 * 1024

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""As RFC 6750 (section 2.1) has it."""

_SCHEME = b"bearer "
_LETTERS = "letters, digits and -._~+/="


@dataclass(frozen=True, repr=False)
class Token:
    """name: whose it is, for people; may be empty. Has no `repr`, so that no log shows it."""

    name: str
    value: str


def read_tokens(path: Path) -> tuple[Token, ...]:
    """The tokens of a file; lines that begin with `#`, and empty ones, are left out.

    Raises:
        SettingsError: it cannot be read, a line is no token, or there is none.
    """
    try:
        lines = read_text(path, _MAX_FILE_BYTES).splitlines()
    except SettingsError as error:
        raise SettingsError(f"tokens_file {error}") from error
    found: list[Token] = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        name, _, token = line.rpartition(":")
        if not _TOKEN.fullmatch(token.strip()):
            raise SettingsError(f"tokens_file {path}: line {number}: expected TOKEN or NAME: TOKEN, the token of {_LETTERS}")
        found.append(Token(name.strip(), token.strip()))
    if not found:
        raise SettingsError(f"tokens_file {path}: no token in it: expected one a line (openssl rand -hex 32 makes one)")
    return tuple(found)


def renewed_tokens(path: Path | None) -> Renewed[tuple[Token, ...]] | None:
    """The tokens of a file as it is at each time; None where there is no file.

    Raises:
        SettingsError: see `read_tokens`.
    """
    if path is None:
        return None
    tokens = Renewed("the list of tokens", [path], lambda: read_tokens(path))
    logger.info("requests must carry a token of %s: %s", path, ", ".join(token.name or "one without a name" for token in tokens.get()))
    return tokens


def read_token(path: Path) -> str:
    """The only token of a file.

    Raises:
        SettingsError: see `read_tokens`; or there are several.
    """
    tokens = read_tokens(path)
    if len(tokens) != 1:
        raise SettingsError(f"{path}: {len(tokens)} tokens in it: expected the one to send")
    return tokens[0].value


def require_token(text: str) -> str:
    """Raises: SettingsError: not a token; it is not shown."""
    if not _TOKEN.fullmatch(text):
        raise SettingsError(f"the token that was given is none: expected {_LETTERS}")
    return text


def is_one_of(given: bytes, tokens: Sequence[Token]) -> bool:
    """Compared with all of them, in a time that tells nothing of how much of one fits."""
    return sum(hmac.compare_digest(given, token.value.encode()) for token in tokens) > 0


def refusal(given: Sequence[bytes], tokens: Sequence[Token]) -> str:
    """Why a request is not let in; empty where it is. given: the values of its `authorization`."""
    if not given:
        return "no token came, and this server asks for one: send 'authorization: Bearer TOKEN' with the call"
    if len(given) > 1 or given[0][: len(_SCHEME)].lower() != _SCHEME:
        return "the call's authorization is no token: expected 'authorization: Bearer TOKEN', once"
    if not is_one_of(given[0][len(_SCHEME) :].strip(), tokens):
        return "the token that came is none of this server's: it may have been replaced"
    return ""
