"""A process's part in a run of several: it knows when another has ended, and ends too.

A process that waits in a collective for one that is dead waits for ever. So each keeps a thread
that listens to the referee in process 0 (`xtra_jax.parallel.referee`) and speaks to it every few
seconds, whatever the main thread is busy with: compiling, saving and waiting for devices all
leave Python's lock to other threads. When a process has ended, this thread says which and why, and
ends this one without its main thread, which may be stuck for good.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn, TextIO

from xtra_jax.errors import RunFailed, UserError
from xtra_jax.parallel.referee import PING_SECONDS, SILENCE_SECONDS, Referee

# Longer than the referee may need to find out who broke a collective.
_VERDICT_SECONDS = SILENCE_SECONDS + 15.0


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a process stands in a run of several.

    Attributes:
        coordinator: "HOST:PORT" of process 0.
        num_processes: at least 2.
        process_id: in [0, num_processes).
        local_device_ids: the devices of this host that are this process's; None for all.
    """

    coordinator: str
    num_processes: int
    process_id: int
    local_device_ids: tuple[int, ...] | None = None

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.coordinator.rsplit(":", 1)
        return host.strip("[]"), int(port)

    @property
    def is_local(self) -> bool:
        """Whether all processes run on this machine, so that no other need reach them."""
        return self.address[0] in ("localhost", "127.0.0.1", "::1")


class Group:
    """All processes of a run, as one of them sees it.

    Making one waits until all are there.

    Args:
        place: of this process.
        timeout: seconds to wait for the others.

    Attributes:
        service_port: where jax's coordination service is to listen in process 0.
        last_saved: the step of the last checkpoint, if known, for what is said at the end.
        freeze, stop_at: called when a process was told to stop; see `xtra_jax.training.stopping`.

    Raises:
        UserError: process 0 cannot be reached, or another one did not come in time, or the
            processes were not told the same.
        RunFailed: another process ended before the run began.
    """

    def __init__(self, place: Place, timeout: float):
        self.place = place
        self.last_saved: Callable[[], int | None] = lambda: None
        self.freeze: Callable[[], int | None] = lambda: None
        self.stop_at: Callable[[int | None, str], None] = lambda step, reason: None
        self._lock = threading.Lock()
        self._failure: str | None = None
        self._verdict: dict[str, Any] | None = None
        self._decided = threading.Event()
        self._finished = threading.Event()
        self._buffer = b""
        self._referee = None
        deadline = time.monotonic() + timeout
        if place.process_id == 0:
            self._referee = _start_referee(place, timeout)
        self._socket = _connect(place, timeout)
        self._socket.settimeout(1.0)
        self._heard = self._spoke = time.monotonic()
        self.tell(join=place.process_id, of=place.num_processes, host=socket.gethostname())
        self.service_port = self._roll_call(deadline + SILENCE_SECONDS, timeout)
        threading.Thread(target=self._watch, daemon=True, name="watch").start()

    def tell(self, **message) -> None:
        """Sends a message to the referee. That it cannot be heard is found out by listening."""
        with contextlib.suppress(OSError), self._lock:
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def finish(self) -> None:
        """Returns when all processes have come here."""
        self.tell(finished=1)
        self._finished.wait()

    def fail(self, code: int, sentence: str, shown: str, *, perhaps_another: bool) -> NoReturn:
        """Ends this process because its work failed, and lets the others know.

        What several processes fail of alike is said by the first of them only.

        Args:
            code: to exit with.
            sentence: for the others.
            shown: what this process prints.
            perhaps_another: whether it may have failed because another process has ended, which
                is then what is told.
        """
        if self._finished.is_set():  # all is done and saved, and nobody is left to decide
            self._leave(code, shown)
        if perhaps_another:
            self._decided.wait(_VERDICT_SECONDS)
        with self._lock:
            self._failure = sentence
        self.tell(failed=sentence)
        self._decided.wait(_VERDICT_SECONDS)
        verdict = self._verdict or {}
        own = verdict.get("process") in (None, self.place.process_id)
        self._leave(code, shown if own or verdict.get("failed") != sentence else "")

    def exit(self, code: int, message: str) -> NoReturn:
        """Ends this process at once, whatever its other threads do; process 0 as the last."""
        self._leave(code, "", message)

    def _roll_call(self, deadline: float, timeout: float) -> int:
        while True:
            messages = self._hear()
            if messages is None or time.monotonic() > deadline:
                raise RunFailed(
                    f"process 0 at {self.place.coordinator} ended, or is no xtra, before the run "
                    "began: see what it says"
                )
            for message in messages:
                if "refused" in message:
                    self._await_referee()
                    raise UserError(message["refused"])
                if "verdict" in message:
                    self._await_referee()
                    raise RunFailed(f"{self._told(message['verdict'])}, before the run began")
                if "begin" in message:
                    self._host_of_0 = message["host"]
                    return message["begin"]

    def _watch(self) -> None:
        try:
            self._listen()
        except Exception as error:  # without this thread nobody would end a run that waits
            self._leave(1, f"xtra: the watch over the other processes failed: {error!r}")

    def _listen(self) -> None:
        while True:
            messages = self._hear()
            if messages is None:
                how = "silent" if self._is_silent() else "ended"
                self._judge({"process": 0, "host": self._host_of_0, how: True})
                return
            for message in messages:
                if "end" in message:
                    self._finished.set()
                    self._socket.close()
                    return
                if "verdict" in message:
                    self._judge(message["verdict"])
                    return
                if "freeze" in message:
                    self.tell(passed=self.freeze())
                if "stop_at" in message:
                    self.stop_at(message["stop_at"], message["reason"])

    def _hear(self) -> list[dict[str, Any]] | None:
        """The messages of the next second; None when process 0 is gone."""
        now = time.monotonic()
        if now - self._spoke > PING_SECONDS:
            self._spoke = now
            self.tell(ping=1)
        try:
            data = self._socket.recv(1 << 16)
        except TimeoutError:
            return None if self._is_silent() else []
        except OSError:
            return None
        if not data:
            return None
        self._heard = time.monotonic()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        try:
            return [json.loads(line) for line in lines]
        except ValueError:
            return None

    def _is_silent(self) -> bool:
        return time.monotonic() - self._heard > SILENCE_SECONDS

    def _judge(self, verdict: dict[str, Any]) -> None:
        """Ends this process, unless its main thread is about to end it itself."""
        self._verdict = verdict
        with self._lock:
            itself = self._failure is not None
        if itself:
            self._decided.set()
        else:
            self._leave(1, f"xtra: {self._told(verdict)}{self._advice(verdict)}")

    def _told(self, verdict: dict[str, Any]) -> str:
        who = f"process {verdict['process']} of {self.place.num_processes} ({verdict['host']})"
        if "failed" in verdict:
            return f"{who} failed: {verdict['failed']}"
        if "silent" in verdict:
            return f"{who} has said nothing for {SILENCE_SECONDS:g} s: its host or network is gone"
        return f"{who} ended without a word, as when it is killed or out of memory"

    def _advice(self, verdict: dict[str, Any]) -> str:
        step = self.last_saved()
        if "failed" in verdict:
            return "" if step is None else f"; the last checkpoint is that of step {step}"
        whence = "" if step is None else f", which continues from the checkpoint of step {step}"
        return f"; this process ends too: run the same command again on all{whence}"

    def _leave(self, code: int, complaint: str, message: str = "") -> NoReturn:
        try:
            say((sys.stderr, complaint), (sys.stdout, message))
            self._await_referee()
        finally:
            os._exit(code)

    def _await_referee(self) -> None:
        """In process 0: until the others have heard what it has to tell."""
        if self._referee is not None:
            self._referee.wait(SILENCE_SECONDS)


def say(*said: tuple[TextIO, str]) -> None:
    """Prints last words, as far as there is somebody left to read them."""
    for stream, text in said:
        # A closed connection, or a log on a full disk, is no reason to stay.
        with contextlib.suppress(OSError, ValueError):
            if text:
                print(text, file=stream)
            stream.flush()


def _start_referee(place: Place, timeout: float) -> Referee:
    port = place.address[1]
    _allow_files(1024 + 4 * place.num_processes)  # jax's service has connections of its own
    try:
        listener = _listener(place, port)
        with _listener(place, 0) as free:
            service_port = free.getsockname()[1]
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen on port {port}: {error.strerror or error}; give another "
            "free port in --coordinator"
        ) from error
    return Referee(listener, place.num_processes, service_port, timeout)


def _allow_files(count: int) -> None:
    """Raises the number of files and connections that this process may have open, if it can be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        allowed = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))


def _listener(place: Place, port: int) -> socket.socket:
    if place.is_local:
        family = socket.AF_INET6 if place.address[0] == "::1" else socket.AF_INET
        return socket.create_server((place.address[0], port), family=family, backlog=1024)
    if socket.has_dualstack_ipv6():
        everywhere = dict(family=socket.AF_INET6, dualstack_ipv6=True)
    else:
        everywhere = {}
    return socket.create_server(("", port), backlog=1024, **everywhere)


def _connect(place: Place, timeout: float) -> socket.socket:
    address = ("localhost", place.address[1]) if place.process_id == 0 else place.address
    address = place.address if place.is_local else address
    end = time.monotonic() + timeout
    while True:
        try:
            connection = socket.create_connection(address, timeout=5)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        except OSError as error:
            if time.monotonic() > end:
                raise UserError(
                    f"process {place.process_id} found no process 0 at {place.coordinator} within "
                    f"{timeout:g} s ({error.strerror or error}): start it there, and see that "
                    "--coordinator names its host and a port that this host can reach"
                ) from error
            time.sleep(0.5)
