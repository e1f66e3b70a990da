"""What happens when a run is told to stop: by Ctrl-C, or by a cluster, a container or ``kill``."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

__all__ = ["Interrupted", "StopsAtOnce", "interruptible"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Those that ask a process to stop."""

Handler = Callable[[int, FrameType | None], Any] | int | None


class Interrupted(BaseException):
    """The process has been told to stop. No ``except Exception`` takes it for a failure of one run among many.

    Parameters
    ----------
    number : int
        The signal's.

    Attributes
    ----------
    message : str
        What is kept, and how to go on.
    status : int
        The exit status that shells give to a process that ended by this signal: 130 or 143.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.message = ""
        self.status = 128 + number

    @property
    def name(self) -> str:
        """The signal's name, such as ``"SIGTERM"``."""
        return signal.Signals(self.number).name


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise :class:`Interrupted` in the main thread when the process is told to stop; told again, it ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()
    told: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() == process:
            told.append(number)
            raise Interrupted(number)
        # A process that loads data: the one that it works for is told too.
        signal.raise_signal(number)

    before: dict[int, Handler] = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    except Exception as error:
        # What fails while all is cleared away, such as processes that have been stopped too, is no other end.
        if told:
            raise Interrupted(told[0]) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class StopsAtOnce(Callback):
    """Let a training stop when the process is told to, as any other part of a run does.

    Lightning's trainer notes the signal, ends the training some time later, and with it the process with the exit
    status 0, as if all were done. This puts back what the process did with signals before the training.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Handler] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remember what signals do: the trainer has not taken them yet."""
        self._handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take them back."""
        self._restore()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take them back where there is no check before."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop the processes that train together with this one."""
        launcher = trainer.strategy.launcher
        if isinstance(exception, Interrupted) and launcher is not None:
            launcher.kill(signal.SIGTERM)

    def _restore(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._handlers.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
