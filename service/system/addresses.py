"""Parsing and formatting of server addresses in gRPC's notation, and detection of loopback addresses."""

from __future__ import annotations

import ipaddress
import re

from tlcli.contract.errors import SettingsError

DEFAULT_PORT = 8001

_SCHEMES = {"grpc": False, "grpcs": True}
_HOST = re.compile(r"[^\s/?#@\[\]:]+|[0-9A-Fa-f:.]+(%\w+)?")


def parse_target(target: str, port: int | None) -> tuple[str, int, bool]:
    """Split a server address into its host, its port, and a flag that is True if the scheme requires TLS.

    Args:
        target: `host`, `host:port` or `[IPv6]:port`, each optionally preceded by `grpc://` or `grpcs://` (TLS).
        port: port that is set separately; None for the port in `target`, or 8001 if it has none.

    Raises:
        SettingsError: the address is malformed, is an HTTP address, or contains a port other than `port`.
    """
    expected = "expected a name or an address, such as 127.0.0.1, host:8001 or grpc://host:8001"
    scheme, separator, rest = target.strip().rpartition("://")
    if scheme.lower() in ("http", "https"):
        raise SettingsError(f"host {target!r}: this is an HTTP address, but the client speaks gRPC on another port: {expected}")
    if separator and scheme.lower() not in _SCHEMES:
        raise SettingsError(f"host {target!r}: unknown scheme {scheme!r}: {expected}")
    rest = rest.rstrip("/")
    match = re.fullmatch(r"\[(?P<v6>[^\]]*)\](?::(?P<p6>.*))?|(?P<name>[^:]*)(?::(?P<p>[^:]*))?|(?P<bare6>.*:.*:.*)", rest)
    host = (match["v6"] or match["name"] or match["bare6"]) if match else None
    if match is None or not host or not _HOST.fullmatch(host):
        raise SettingsError(f"host {target!r}: {expected}")
    text = match["p6"] if match["v6"] else match["p"]
    if text is not None:
        if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
            raise SettingsError(f"host {target!r}: {text!r} is not a port: expected 1 to 65535, such as {host}:{DEFAULT_PORT}")
        if port is not None and port != int(text):
            raise SettingsError(f"host {target!r} and port {port}: two different ports: set only one")
        port = int(text)
    return host, DEFAULT_PORT if port is None else port, _SCHEMES.get(scheme.lower(), False)


def join_address(host: str, port: int) -> str:
    """Format an address as `host:port` in gRPC's notation, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Return True if only this machine can reach the address. Host names other than `localhost` count as reachable by others."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
