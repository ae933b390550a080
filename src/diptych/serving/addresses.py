"""Where a server listens, and by which names it may be called."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from diptych.core.errors import UserError

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Address:
    """A host and port to listen at, and the public address that leads there, if there is one."""

    host: str
    port: int
    public: str | None = None
    """Origin that users see where a proxy or a tunnel stands before the server: https://study.example.org."""

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)

    @property
    def url(self) -> str:
        """What to open, without a slash at the end."""
        if self.public:
            return self.public
        host = self.host
        if is_unspecified(host):
            host = socket.gethostname()
        return f"http://{bracketed(host)}:{self.port}"

    def allows(self, authority: str) -> bool:
        """Whether a request may name this host and port in its `Host`.

        A page elsewhere can make its own name lead to this machine (DNS rebinding); then its requests are of the same
        origin, and only their Host betrays them. So names are those stated here. An IP address cannot be rebound: one
        is allowed where the server listens at all addresses.
        """
        public = urlsplit(self.public or "").netloc
        return self._allows_direct(authority) or (bool(public) and authority.casefold() == public.casefold())

    def _allows_direct(self, authority: str) -> bool:
        """Whether it is this server's, without what stands before it."""
        host, port = split_authority(authority)
        if host is None or port != self.port:
            return False
        if is_unspecified(self.host):
            return is_ip(host) or host in ("localhost", socket.gethostname().casefold())
        if self.local:
            return host == "localhost" or (is_ip(host) and is_loopback(host))
        return host == self.host.casefold()

    def allows_origin(self, origin: str) -> bool:
        """Whether a request that changes something may come from a page of this origin: only this server's own."""
        if self.public and origin.casefold() == self.public.casefold():
            return True
        scheme, _, authority = origin.partition("://")
        return scheme == "http" and self._allows_direct(authority)


def read_address(host: str, port: int, public: str | None = None) -> Address:
    """An `Address` from a user's words. Raises a `UserError` for what is none."""
    host = host.strip().removeprefix("[").removesuffix("]")
    if not host or any(letter in host for letter in "/@ \t\r\n"):
        raise UserError(f"--host is a name or an address to listen at, such as {LOOPBACK}, not {host!r}")
    if public is not None:
        public = public.rstrip("/")
        parts = urlsplit(public)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.path or parts.query or "@" in public:
            raise UserError(f"--url is what others open, such as https://studio.example.org, not {public!r}")
    return Address(host, port, public)


def listen(address: Address) -> tuple[socket.socket, Address]:
    """A socket that listens there, and the address with the port that it got (0 takes any). A `UserError` where the
    port is taken, or the address is not this machine's."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address.host, address.port))
        made.listen(128)
    except OSError as error:
        made.close()
        where = f"{bracketed(address.host)}:{address.port}"
        raise UserError(
            f"cannot listen at {where} ({error.strerror or error}): choose another --port or --host"
        ) from None
    return made, Address(address.host, made.getsockname()[1], address.public)


def split_authority(authority: str) -> tuple[str | None, int | None]:
    """Host in lower case without brackets, and port (80 if none), of `host:port`; none where it is malformed."""
    try:
        parts = urlsplit(f"//{authority}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return None, None
    if not host or parts.netloc != authority or "@" in authority:
        return None, None
    return host, 80 if port is None else port


def is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    return host.casefold() == "localhost" or (is_ip(host) and ipaddress.ip_address(host).is_loopback)


def is_unspecified(host: str) -> bool:
    """Whether a host stands for all addresses of the machine, as 0.0.0.0 does."""
    return is_ip(host) and ipaddress.ip_address(host).is_unspecified


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
