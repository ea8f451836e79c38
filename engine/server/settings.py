"""What a server is told beside the engine's own configuration."""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass

from quiesce.engine.errors import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Raises InvalidRequest: the control routes would be open to the network without a token."""

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: str = "tiny"
    api_key: str | None = None
    """Asked of every generating call as `Authorization: Bearer`, where there is one."""
    enable_admin: bool = False
    """Control routes without a token; on loopback only."""
    admin_token: str | None = None
    """Control routes for whoever sends this as `Authorization: Bearer`."""
    admin_port: int | None = None
    """Control routes on a port of their own, and nowhere else."""
    shutdown_timeout_s: float = 30.0
    """Seconds that running requests have after the first SIGTERM."""
    max_body_bytes: int = 16 * 2**20
    max_header_bytes: int = 64 * 2**10

    def __post_init__(self) -> None:
        if self.enable_admin and self.admin_token is None and not is_loopback(self.host):
            raise InvalidRequest("enable_admin", f"needs --admin-token on {self.host}, which is not loopback")
        for name in ("api_key", "admin_token"):
            if getattr(self, name) == "":
                raise InvalidRequest(name, "must not be empty")

    @property
    def has_admin(self) -> bool:
        return self.enable_admin or self.admin_token is not None or self.admin_port is not None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_bearer(header: str | None, token: str) -> bool:
    """Whether an `Authorization` header carries the token; takes as long for a wrong one as for a right one."""
    return hmac.compare_digest((header or "").encode(), f"Bearer {token}".encode())
