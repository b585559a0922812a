"""Images that cannot be used: named once, counted, and the end of a run when they are too many."""

from __future__ import annotations

import contextlib
import math

from etils import epath

from xtra_jax.data.ahead import BadRecord, say
from xtra_jax.data.mixture import repeats
from xtra_jax.errors import RunFailed

MAX_NAMED = 20  # lines on stderr
MAX_LISTED = 100_000  # lines of a file
ALWAYS_ALLOWED = 10  # a small data set may have these, whatever their share
_MAX_IN_A_SENTENCE = 5


class BadImages:
    """Those that this process met: each is named once on stderr, the first few of them.

    Args:
        file: where `write` lists them; "" for nowhere.
    """

    def __init__(self, file: str = ""):
        self._file = file
        self._met: dict[int, BadRecord] = {}

    def add(self, record: BadRecord) -> None:
        if record.index in self._met or len(self._met) >= MAX_LISTED:
            return
        self._met[record.index] = record
        if len(self._met) <= MAX_NAMED:
            say(f"Image {record.key} is unusable and counts for nothing: {record.reason}.")
        elif len(self._met) == MAX_NAMED + 1:
            say("More images are unusable; they are counted but no longer named.")

    @property
    def indices(self) -> list[int]:
        """Their places in the source, in the order in which they were met."""
        return list(self._met)

    def write(self) -> str:
        """Lists all of them in the file: a key, a tab and a reason per line.

        Returns:
            A clause that names the first, and the file if it could be written.
        """
        met = list(self._met.values())
        if not met:
            return ""
        named = ", ".join(record.key for record in met[:_MAX_IN_A_SENTENCE])
        named += ", ..." if len(met) > _MAX_IN_A_SENTENCE else ""
        with contextlib.suppress(OSError):
            if self._file:
                file = epath.Path(self._file)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("".join(f"{r.key}\t{_line(r.reason)}\n" for r in met))
                return f" ({named}; {self._file} lists them)"
        return f" ({named})"


class BadImageLimit:
    """Counts the samples of weight 0 of each epoch.

    Where every image comes once per epoch they are as many images. In a mixture with shares they
    are samples, of which a single broken image may be many: then the share is one of samples, and
    those that are allowed whatever their share may come as often as an image can.

    It looks at what a step itself counted over all devices, so that all processes of a run come
    to the same end at the same step. A run that is continued begins counting anew.

    Args:
        examples: of the training set, which are as many as an epoch has samples.
        batch_size: images per step.
        fraction: the share of an epoch's samples that may be bad: `ALWAYS_ALLOWED` images may be
            in any case, but none where it is 0.
        met: those that this process knows, which the message then names.
        repeats: how often an image may come in an epoch, see `xtra_jax.data.mixture.repeats`.
    """

    def __init__(
        self,
        examples: int,
        batch_size: int,
        fraction: float,
        met: BadImages | None = None,
        repeats: int = 1,
    ):
        self._examples = examples
        self._batch_size = batch_size
        self._fraction = fraction
        self._met = met or BadImages()
        epochs_at_once = math.ceil(batch_size / examples)
        self._allowed = max(ALWAYS_ALLOWED * repeats, fraction * examples) * epochs_at_once
        self._repeats = repeats
        self._epoch = -1
        self._bad = 0
        self._any_good = False

    @classmethod
    def of(cls, source, batch_size: int, fraction: float, met: BadImages) -> BadImageLimit:
        """The limit for a training set."""
        return cls(len(source), batch_size, fraction, met, repeats(source))

    def add(self, step: int, valid: int) -> None:
        """Takes the number of valid images that the batch of a step (from 1) had.

        Raises:
            RunFailed: none is left to train on, or too many are bad.
        """
        bad = self._batch_size - valid
        epoch = (step - 1) * self._batch_size // self._examples
        if epoch != self._epoch:
            self._epoch, self._bad = epoch, 0
        # A batch that reaches into the next epoch may hold an image twice: it does not count.
        whole = step * self._batch_size <= (epoch + 1) * self._examples
        if whole or self._batch_size > self._examples:
            self._bad += bad
        self._any_good = self._any_good or valid > 0
        if not self._any_good:
            raise RunFailed(
                f"all {self._batch_size} images of the first batch are unusable"
                f"{self._met.write()}, so there is nothing to train on: mend the data set"
            )
        if bad and not self._fraction:
            raise RunFailed(
                f"there are training images that are unusable{self._met.write()}, and "
                "data.bad_fraction=0 allows for none: mend the data set, or raise that share"
            )
        if self._bad > self._allowed:
            counted = "training images are" if self._repeats == 1 else "samples of an epoch are"
            raise RunFailed(
                f"{self._bad} of the {self._examples} {counted} unusable"
                f"{self._met.write()}, which is more than data.bad_fraction={self._fraction:g} of "
                "them: mend the data set, or raise that share"
            )


def _line(reason: str) -> str:
    return " ".join(reason.split())
