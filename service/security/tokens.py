"""Access tokens, and the files that store them: one `token` or `name: token` per line."""

from __future__ import annotations

import hmac
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tlcli.contract.errors import SettingsError
from tlcli.contract.files.text_file import read_text
from tlcli.service.system.reloading_file import ReloadingFile

logger = logging.getLogger(__name__)

_MAX_FILE_BYTES = 16 * 1024 * 1024

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""Syntax of a bearer token, as defined in RFC 6750, section 2.1."""

_SCHEME = b"bearer "
_CHARACTERS = "letters, digits and -._~+/="


@dataclass(frozen=True, repr=False)
class Token:
    """Access token and the name of its owner, which may be empty.

    The fields are excluded from `repr` so that the token never appears in logs.
    """

    name: str
    value: str


def read_tokens(path: Path) -> tuple[Token, ...]:
    """Read the tokens in a file, ignoring empty lines and lines that start with `#`.

    Raises:
        SettingsError: the file cannot be read, a line is not a valid token, or the file contains no token.
    """
    try:
        lines = read_text(path, _MAX_FILE_BYTES).splitlines()
    except SettingsError as error:
        raise SettingsError(f"tokens_file {error}") from error
    tokens: list[Token] = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        name, _, token = line.rpartition(":")
        if not _TOKEN.fullmatch(token.strip()):
            raise SettingsError(f"tokens_file {path}: line {number}: expected TOKEN or NAME: TOKEN, with a token of {_CHARACTERS}")
        tokens.append(Token(name.strip(), token.strip()))
    if not tokens:
        raise SettingsError(f"tokens_file {path}: no token found: expected one per line (openssl rand -hex 32 makes one)")
    return tuple(tokens)


def reloading_tokens(path: Path | None) -> ReloadingFile[tuple[Token, ...]] | None:
    """Read the tokens in a file and reload them whenever the file changes. Return None if `path` is None.

    Raises:
        SettingsError: see `read_tokens`.
    """
    if path is None:
        return None
    tokens = ReloadingFile("the list of tokens", [path], lambda: read_tokens(path))
    logger.info("requests must carry a token of %s: %s", path, ", ".join(token.name or "unnamed" for token in tokens.get()))
    return tokens


def read_token(path: Path) -> str:
    """Read a file that holds exactly one token.

    Raises:
        SettingsError: the file contains several tokens or cannot be used; see `read_tokens`.
    """
    tokens = read_tokens(path)
    if len(tokens) != 1:
        raise SettingsError(f"{path}: holds {len(tokens)} tokens: expected exactly one")
    return tokens[0].value


def require_token(text: str) -> str:
    """Return `text` unchanged if it is a valid token.

    Raises:
        SettingsError: `text` is not a valid token. The message does not include `text`.
    """
    if not _TOKEN.fullmatch(text):
        raise SettingsError(f"invalid token: expected {_CHARACTERS}")
    return text


def is_known(value: bytes, tokens: Sequence[Token]) -> bool:
    """Return True if the value equals one of the tokens. The comparison time does not reveal how much of a token matches."""
    return sum(hmac.compare_digest(value, token.value.encode()) for token in tokens) > 0


def refusal(authorization: Sequence[bytes], tokens: Sequence[Token]) -> str:
    """Return the reason to reject a request with these `authorization` values, or an empty string if the request is authorized."""
    if not authorization:
        return "no token: this server requires one: send 'authorization: Bearer TOKEN' with the call"
    if len(authorization) > 1 or authorization[0][: len(_SCHEME)].lower() != _SCHEME:
        return "invalid authorization: expected 'authorization: Bearer TOKEN', once"
    if not is_known(authorization[0][len(_SCHEME) :].strip(), tokens):
        return "unknown token: it may have been replaced"
    return ""
