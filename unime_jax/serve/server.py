"""The process: a socket, uvicorn, and a stop at which no accepted request is lost."""

import socket
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from unime_jax.serve.service import Service

KEEP_ALIVE = 75  # seconds that an idle connection stays open; more than proxies keep one


class Server(uvicorn.Server):
    """Uvicorn that first answers what it has accepted.

    At the first SIGTERM or Ctrl-C the service refuses new requests with 503, over connections that
    are still open. When all accepted ones are answered, the sockets are closed. A second Ctrl-C
    ends at once.
    """

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self._service = service
        self._told = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._told:
            self.should_exit = self.force_exit = True
            return
        self._told = True
        self._service.status = "stopping"

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second; True ends the server."""
        if self._told and not self.should_exit and not self._service.places.taken:
            self.should_exit = True
        return await super().on_tick(counter)


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address, which takes no connection yet. Port 0: any free one.

    Raises:
      ValueError: there is no such address here, or another process listens at it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        raise ValueError(f"cannot listen at {host}, port {port}: {error}") from error
    return listener


def make_server(app: Starlette, service: Service) -> Server:
    """A server that has not started; its `run`, given `bound` sockets, returns after the stop."""
    config = uvicorn.Config(
        app,
        lifespan="on",
        access_log=False,
        log_config=None,
        timeout_keep_alive=KEEP_ALIVE,
        server_header=False,
        ws="none",
    )
    return Server(config, service)
