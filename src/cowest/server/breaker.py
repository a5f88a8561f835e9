"""A circuit breaker: after failures in a row a model is left alone for a while, then one request at a time tries it again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from cowest.server.errors import Unavailable

State = Literal["closed", "half_open", "open"]


class Breaker:
    """Opens after ``failures`` failures in a row; ``cooldown_s`` later it lets one probe through, whose outcome decides.

    ``clock`` gives seconds that never run backwards.
    """

    def __init__(
        self, name: str, failures: int = 5, cooldown_s: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name, self._failures, self._cooldown_s, self._clock = name, failures, cooldown_s, clock
        self._row = 0
        self._opened: float | None = None
        self._probing = False

    @property
    def state(self) -> State:
        """``half_open``: the cooldown is over, so that the next request is a probe, or one is under way."""
        if self._opened is None:
            return "closed"
        return "half_open" if self._clock() - self._opened >= self._cooldown_s else "open"

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Around one attempt. Raises Unavailable ``breaker_open`` at once where none is to be made.

        An attempt that is cancelled says nothing of the model; one that fails for the request's own fault shows that it lives.
        """
        probe = self._enter()
        try:
            yield
        except Unavailable as error:
            if error.down is None:
                self._probing = self._probing and not probe
            else:
                self._settle(probe, down=error.down)
            raise
        except Exception:
            self._settle(probe, down=False)
            raise
        except BaseException:
            self._probing = self._probing and not probe
            raise
        self._settle(probe, down=False)

    def refusal(self) -> Unavailable | None:
        """What an attempt would be told at once; None where it may be made."""
        if self._opened is None:
            return None
        left = self._cooldown_s - (self._clock() - self._opened)
        if left <= 0 and not self._probing:
            return None
        message = f"the {self._name} model has failed repeatedly and is left alone for a moment"
        return Unavailable("breaker_open", message, down=None, retry_after_s=max(1.0, left))

    def _enter(self) -> bool:
        """Whether the attempt is a probe. Raises Unavailable where none is to be made."""
        refused = self.refusal()
        if refused is not None:
            raise refused
        self._probing = self._probing or self._opened is not None
        return self._opened is not None

    def _settle(self, probe: bool, down: bool) -> None:
        if probe:
            self._probing = False
        elif self._opened is not None:
            return  # began before it opened: the probe decides
        if not down:
            self._row, self._opened = 0, None
            return
        self._row += 1
        if probe or self._row >= self._failures:
            self._opened = self._clock()
