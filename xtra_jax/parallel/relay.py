"""A relay that keeps a process's connection to jax's coordination service from breaking.

jax aborts a process, with a stack trace of its C++ code, at the moment when the connection to the
coordination service breaks, which lives in process 0. A relay in each other process carries that
connection and holds its near end open when the far end is gone, so that there is time to say in a
sentence that process 0 has ended (`xtra_jax.parallel.watch`) and to leave.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time


class Relay:
    """Listens on the loopback interface and passes bytes to and from another address.

    Args:
        host, port: where to.
        timeout: seconds for which a connection to there is tried.

    Attributes:
        address: "127.0.0.1:PORT", to connect to instead.
    """

    def __init__(self, host: str, port: int, timeout: float):
        self._target = (host, port)
        self._timeout = timeout
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._kept: list[socket.socket] = []
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        _in_background(self._accept)

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            self._kept.append(near)
            _in_background(self._carry, near)

    def _carry(self, near: socket.socket) -> None:
        far = self._connect()
        if far is not None:
            _in_background(_pass_on, far, near)
            _pass_on(near, far)
            far.close()

    def _connect(self) -> socket.socket | None:
        end = time.monotonic() + self._timeout
        while time.monotonic() < end:
            try:
                far = socket.create_connection(self._target, timeout=5)
                far.settimeout(None)
                return far
            except OSError:
                time.sleep(0.2)
        return None


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    """Until the source ends; the target is left open."""
    for end in (source, target):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 20):
            target.sendall(data)


def _in_background(function, *arguments) -> None:
    threading.Thread(target=function, args=arguments, daemon=True, name="relay").start()
