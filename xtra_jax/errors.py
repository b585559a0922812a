"""What ends a command with one sentence instead of a traceback."""


class UserError(ValueError):
    """A mistake in what the user gave: a config, a path, an image, a checkpoint, a mesh.

    The message is one sentence that says what was wrong, where, and what would be right. The
    command line prints it on stderr without a traceback and exits with code 2.
    """


class RunFailed(RuntimeError):
    """A run that began well and cannot go on: its loss diverged, its images are broken.

    The message is one sentence that says what happened, at which step, and what is saved. The
    command line prints it on stderr without a traceback and exits with code 1.
    """
