"""An HTTP connection to an address that was looked at before, with a deadline for all of it."""

import functools
import http.client
import io
import ipaddress
import socket
import ssl
import time
from typing import Any

# IPv6 networks by which IPv4 addresses are reached: they are the last 32 bits of the first.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_LOCAL_NAT64 = ipaddress.ip_network("64:ff9b:1::/48")


class PrivateAddressError(OSError):
    """A host name that stands for an address outside of the public internet."""


def connected(host: str, port: int, *, private_addresses: bool, deadline: float) -> socket.socket:
    """A connection to one of the host's addresses, every one of which may be asked.

    The address that was looked at is the one that is used: asked again, a name server may answer
    otherwise.

    Raises:
      PrivateAddressError: an address is not of the public internet, without `private_addresses`.
      OSError: none of them can be reached.
    """
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, address in addresses:
        if not private_addresses and not is_public(str(address[0])):
            raise PrivateAddressError(
                "its host has an address that is not of the public internet, which"
                " ImageUrls(private_addresses=True) allows"
            )
    failure = OSError("the host has no address")
    for family, kind, protocol, _, address in addresses:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(_left(deadline))
            connection.connect(address)
            return connection
        except OSError as error:
            connection.close()
            failure = error
    raise failure


def is_public(address: str) -> bool:
    """Whether an IP address is of the public internet, and so is an IPv4 one within it."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        tunnelled = [ip.sixtofour, *(ip.teredo or ())]
        if any(part is not None and not is_public(str(part)) for part in tunnelled):
            return False
        if ip in _LOCAL_NAT64 or ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


@functools.cache
def tls_context() -> ssl.SSLContext:
    """With which servers must prove who they are."""
    return ssl.create_default_context()


def _left(deadline: float) -> float:
    """Seconds until then; TimeoutError: none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Stream(io.RawIOBase):
    """What a socket receives, each part of it before the deadline."""

    def __init__(self, connection: socket.socket, deadline: float):
        self._connection, self._deadline = connection, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.settimeout(_left(self._deadline))
        return self._connection.recv_into(buffer)


class _Timed:
    """The part of a socket that `http.client` uses, with a deadline for all of it."""

    def __init__(self, connection: socket.socket, deadline: float):
        self.connection, self.deadline = connection, deadline

    def sendall(self, data: bytes) -> None:
        self.connection.settimeout(_left(self.deadline))
        self.connection.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(_Stream(self.connection, self.deadline))

    def close(self) -> None:
        """Nothing: an answer is read after `http.client` has closed its end."""


class Connection(http.client.HTTPConnection):
    """An HTTP connection over a socket that is connected already."""

    def __init__(self, host: str, port: int, connection: socket.socket, deadline: float):
        super().__init__(host, port)
        self._socket, self._deadline = connection, deadline
        self._use()

    def encrypt(self, host: str) -> None:
        """TLS, with the host's certificate checked."""
        self._socket.settimeout(_left(self._deadline))
        self._socket = tls_context().wrap_socket(self._socket, server_hostname=host)
        self._use()

    def hang_up(self) -> None:
        self._socket.close()

    def _use(self) -> None:
        self.sock = _Timed(self._socket, self._deadline)
