"""Addresses as gRPC reads them, and which of them only this machine reaches."""

from __future__ import annotations

import ipaddress


def join_address(host: str, port: int) -> str:
    """`host:port` as gRPC reads it, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Is it an address that only this machine reaches? A name other than `localhost` may mean any."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
