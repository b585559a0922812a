"""Stopping a run from outside: SIGTERM and SIGUSR1 save a checkpoint and end it.

Schedulers send them before they take machines away: SIGTERM at a preemption, and Slurm whatever
`--signal` asks for. The run stops at the next step, also when only one of several processes was
told: all agree on a step that each can still reach. An evaluation under way is finished first,
one that would begin at that step is left out. Further signals change nothing.

Before the first step there is nothing to save, and the run ends at once, even within a
compilation of minutes. For that a thread of its own hears of the signal: Python runs handlers in
the main thread only, and not before compiled code gives control back.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

from xtra_jax.parallel.watch import Group, say

_SIGNALS = {signal.SIGTERM: "SIGTERM", signal.SIGUSR1: "SIGUSR1"}


class Stop:
    """Whether a run was told to stop, and where.

    Use it as a context manager around everything from the start of a command to the end of its
    training; elsewhere than in the main thread it leaves signals alone.

    Args:
        exit_code: of a process that is stopped before its first step.

    Attributes:
        reason: what told the run to stop; "" as long as nothing has.
    """

    def __init__(self, exit_code: int = 0):
        self.exit_code = exit_code
        self.reason = ""
        self._group: Group | None = None
        self._changed = threading.Condition()
        self._begun: int | None = None
        self._frozen = False
        self._at: int | None = None
        self._restore: Callable[[], None] = lambda: None

    def share(self, group: Group | None) -> None:
        """From here on all processes of the group stop together."""
        if group is not None:
            group.freeze, group.stop_at = self.freeze, self.stop_at
            self._group = group

    def tell_of(self, last_saved: Callable[[], int | None]) -> None:
        """What to call for the step of the last complete checkpoint."""
        if self._group is not None:
            self._group.last_saved = last_saved

    def reached(self, step: int) -> bool:
        """Whether to stop before this step. To be asked once before every step, in order.

        It waits while processes agree on where to stop, for a moment.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._frozen or self._at is not None)
            self._begun = step
            return self._at is not None and step >= self._at

    def request(self, reason: str) -> None:
        """Tells the run to stop; what tells it first is the reason given."""
        if self._group is not None:
            self._group.tell(stop=f"{reason} to process {self._group.place.process_id}")
        elif not self.reason:
            begun = self.freeze()
            self.stop_at(None if begun is None else begun + 1, reason)

    def freeze(self) -> int | None:
        """Lets no further step begin until `stop_at` is called.

        Returns:
            The last step that has begun, counted from 0; None if there is none yet.
        """
        with self._changed:
            self._frozen = True
            return self._begun

    def stop_at(self, step: int | None, reason: str) -> None:
        """Stops before a step that has not begun; with None, at once."""
        with self._changed:
            self.reason = reason
            self._at = step
            self._changed.notify_all()
        if step is None:
            self._leave()

    def _leave(self) -> None:
        message = f"stopped by {self.reason} before the first step: the same command continues"
        if self._group is not None:
            self._group.exit(self.exit_code, message * (self._group.place.process_id == 0))
        try:
            say((sys.stdout, message), (sys.stderr, ""))
        finally:
            os._exit(self.exit_code)

    def __enter__(self) -> Stop:
        if threading.current_thread() is not threading.main_thread():
            return self
        # Python writes the number of each signal to this socket from where the signal strikes.
        heard, written = socket.socketpair()
        written.setblocking(False)
        handlers = {number: signal.signal(number, _nothing) for number in _SIGNALS}
        before = signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(heard,), daemon=True, name="signals").start()

        def restore():
            signal.set_wakeup_fd(before)
            written.close()
            for number, handler in handlers.items():
                # What was stopped is about to end; a second signal is not to spoil its exit code.
                signal.signal(number, signal.SIG_IGN if self.reason else handler)

        self._restore = restore
        return self

    def __exit__(self, *exception) -> None:
        self._restore()

    def _listen(self, heard: socket.socket) -> None:
        with heard:
            while numbers := heard.recv(64):
                for number in numbers:
                    if number in _SIGNALS:
                        self.request(_SIGNALS[number])


def _nothing(number, frame) -> None:
    """A handler, without which the signal would end the process."""
