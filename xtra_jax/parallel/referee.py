"""The thread in process 0 that knows which processes of a run are there, and tells the others.

Every process, process 0 too, holds one connection to it (`xtra_jax.parallel.watch`). Messages are
JSON objects, one per line. What a process says:

    {"join": its number, "of": how many, "host": name}      first of all
    {"ping": 1}                 every few seconds, from a thread of its own
    {"failed": sentence}        its work failed; it stays until it hears the verdict
    {"stop": reason}            it was told to stop
    {"passed": step or null}    the last step it has begun, in answer to "freeze"; null for none
    {"finished": 1}             its work is done

What it hears:

    {"begin": port, "host": name}    all are there; where jax's coordination service is to
                                listen, and the host of process 0
    {"refused": sentence}       it cannot be part of this run
    {"ping": 1}
    {"freeze": reason}          somebody was told to stop: begin no further step, and answer
    {"stop_at": step or null, "reason": reason}    all stop there; null: nobody has begun, at once
    {"verdict": {...}}          a process ended: its number, host and reason
    {"end": 1}                  all have finished

A connection that closes tells at once that its process has ended, by whatever means; silence tells
after a while that its host or the network has. 1000 processes are 200 short lines per second.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import threading
import time
from typing import Any

PING_SECONDS = 5.0
SILENCE_SECONDS = 30.0

# After a failure, what the others have for the same mistake: it is then told once. They may be
# slower, by the time that a process takes to read a data set's index, say.
_SAME_FAILURE_SECONDS = 10.0

# For all to hear a verdict before process 0, and with it this thread, ends.
_FAREWELL_SECONDS = 10.0


class Peer:
    """A connection from a process, and what is known of that process."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        self.number: int | None = None
        self.host = ""
        self.heard = time.monotonic()
        self.finished = False
        self.passed: int | None = None
        self.answered = False
        self._buffer = b""

    def read(self) -> list[dict[str, Any]] | None:
        """The messages that have come; None when no more will."""
        try:
            data = self.connection.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            return None
        self.heard = time.monotonic()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if not data or len(self._buffer) > 1 << 20:
            return None
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:  # something else that found this port
            return None
        return messages if all(isinstance(message, dict) for message in messages) else None

    def tell(self, **message) -> None:
        with contextlib.suppress(OSError):  # one that does not listen is found out by its silence
            self.connection.send(json.dumps(message).encode() + b"\n")


class Referee:
    """See above. Its thread ends when the run has, or when all have heard the verdict.

    Args:
        listener: where the processes connect to.
        count: of processes.
        service_port: for jax's coordination service.
        timeout: seconds to wait for all processes to join.
    """

    def __init__(self, listener: socket.socket, count: int, service_port: int, timeout: float):
        self._listener = listener
        self._count = count
        self._service_port = service_port
        self._deadline = time.monotonic() + timeout
        self._timeout = timeout
        self._selector = selectors.DefaultSelector()
        self._peers: dict[int, Peer] = {}
        self._begun = False
        self._over: float | None = None  # since when
        self._failures: dict[int, tuple[str, str]] = {}  # host and sentence, in the order told
        self._first_failed = 0.0
        self._stop: str | None = None
        self._pinged = time.monotonic()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, daemon=True, name="referee")
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Returns when it has ended, or after so long."""
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._ended():
            for key, _ in self._selector.select(timeout=0.5):
                if key.data is None:
                    self._accept()
                else:
                    self._hear(key.data)
            self._look_at_the_clock()
        self._listener.close()

    def _ended(self) -> bool:
        if self._over is None:
            return False
        others = self._peers.keys() - {0}
        return not others or time.monotonic() - self._over > _FAREWELL_SECONDS

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(connection, selectors.EVENT_READ, Peer(connection))

    def _hear(self, peer: Peer) -> None:
        messages = peer.read()
        if messages is None:
            self._lost(peer, "ended")
            return
        for message in messages:
            if peer.number is None:
                self._join(peer, message)
            elif "failed" in message:
                if not self._failures:
                    self._first_failed = time.monotonic()
                self._failures[peer.number] = peer.host, message["failed"]
            elif "finished" in message:
                peer.finished = True
                if self._all(lambda peer: peer.finished):
                    self._tell_all(end=1)
                    self._over = time.monotonic()
            elif "stop" in message and self._stop is None:
                self._stop = message["stop"]
                self._tell_all(freeze=self._stop)
            elif "passed" in message:
                peer.answered, peer.passed = True, message["passed"]
                self._agree()

    def _join(self, peer: Peer, message: dict[str, Any]) -> None:
        number, count = message.get("join"), message.get("of")
        if not isinstance(number, int) or not isinstance(count, int):
            return  # no process of ours
        if count != self._count:
            self._refuse(
                peer,
                f"process {number} was told that the run has {count} processes, and process 0 "
                f"that it has {self._count}: give all the same --num_processes",
            )
        elif number in self._peers:
            self._refuse(
                peer,
                f"there is a process {number} already (on {self._peers[number].host}): give "
                "every process another --process_id, and every run another port",
            )
        else:
            peer.number, peer.host = number, str(message.get("host"))
            self._peers[number] = peer
            if len(self._peers) == self._count:
                self._begun = True
                self._tell_all(begin=self._service_port, host=self._peers[0].host)

    def _refuse(self, peer: Peer, sentence: str) -> None:
        """Before the run has begun this ends it, since a process will be missing."""
        peer.tell(refused=sentence)
        if not self._begun:
            self._tell_all(refused=sentence)
            self._over = time.monotonic()

    def _agree(self) -> None:
        """The step after the last that any process has begun is one that all can still reach."""
        if self._all(lambda peer: peer.answered):
            passed = [peer.passed for peer in self._peers.values() if peer.passed is not None]
            self._tell_all(stop_at=max(passed) + 1 if passed else None, reason=self._stop)
            if not passed:
                self._over = time.monotonic()

    def _lost(self, peer: Peer, how: str) -> None:
        self._selector.unregister(peer.connection)
        peer.connection.close()
        if peer.number is None:
            return
        del self._peers[peer.number]
        if self._over is None and peer.number not in self._failures:
            self._decide({"process": peer.number, "host": peer.host, how: True})

    def _look_at_the_clock(self) -> None:
        now = time.monotonic()
        if now - self._pinged > PING_SECONDS:
            self._pinged = now
            self._tell_all(ping=1)
        for peer in list(self._peers.values()):
            if now - peer.heard > SILENCE_SECONDS:
                self._lost(peer, "silent")
        if not self._begun and now > self._deadline and self._over is None:
            missing = sorted(set(range(self._count)) - self._peers.keys())
            some = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
            self._tell_all(
                refused=f"waited {self._timeout:g} s for process{'es' * (len(missing) > 1)} {some} "
                f"of {self._count}: start one xtra for every --process_id from 0 to "
                f"{self._count - 1}, all with the same --coordinator"
            )
            self._over = now
        if self._failures and self._over is None:
            everyone = self._peers.keys() <= self._failures.keys()
            if everyone or now - self._first_failed > _SAME_FAILURE_SECONDS:
                self._decide(self._failed())

    def _failed(self) -> dict[str, Any]:
        """The first failure, and the first of the processes that failed so."""
        _, first = next(iter(self._failures.values()))
        number = min(n for n, (_, failure) in self._failures.items() if failure == first)
        return {"process": number, "host": self._failures[number][0], "failed": first}

    def _decide(self, verdict: dict[str, Any]) -> None:
        self._over = time.monotonic()
        self._tell_all(verdict=verdict)

    def _all(self, holds) -> bool:
        return len(self._peers) == self._count and all(map(holds, self._peers.values()))

    def _tell_all(self, **message) -> None:
        for peer in self._peers.values():
            peer.tell(**message)
