"""The runs under one folder, looked for again now and then, and the logs of those that are looked at."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

from luban.board.log import RunLog
from luban.board.runs import Place, details, find_places, summary
from luban.board.series import answer

FRESH_SECONDS = 2.0  # in which what was found is not looked for again; in a large tree ten times as long as the looking took
SOON_SECONDS = 0.2  # the same where a run is asked for that was not found: it may just have begun
MOST_LOGS = 24  # held in memory; the one not asked for longest is let go


class Library:
    """May be used from many threads. A run is only ever found by its identity, so no request can name a path."""

    def __init__(self, root: Path):
        self.root = root.resolve()
        self._lock = threading.Lock()
        self._places: dict[str, Place] = {}
        self._looked, self._took = float("-inf"), 0.0
        self._logs: OrderedDict[str, RunLog] = OrderedDict()
        self._summaries: dict[str, tuple[Any, dict[str, Any]]] = {}

    def places(self, fresh: float = FRESH_SECONDS) -> dict[str, Place]:
        with self._lock:
            begun = time.monotonic()
            if begun - self._looked > max(fresh, 10 * self._took):
                self._places, self._looked = find_places(self.root), time.monotonic()
                self._took = self._looked - begun
            return self._places

    def place(self, identity: str) -> Place | None:
        return self.places().get(identity) or self.places(SOON_SECONDS).get(identity)

    def runs(self) -> list[dict[str, Any]]:
        """A line for each run."""
        return [self._summary(place) for place in self.places().values()]

    def details(self, identity: str) -> dict[str, Any] | None:
        """What a run was made with; None where there is no such run."""
        return details(place) if (place := self.place(identity)) else None

    def series(self, identity: str, points: int, window: tuple[float, float] | None, known: dict[str, Any]) -> dict[str, Any] | None:
        """What a page that knows ``known`` lacks of a run's curves; None where there is no such run."""
        if (place := self.place(identity)) is None:
            return None
        with self._lock:
            log = self._logs.setdefault(identity, RunLog())
            self._logs.move_to_end(identity)
            while len(self._logs) > MOST_LOGS:
                self._logs.popitem(last=False)
        with log.lock:
            log.refresh(place)
            return {**answer(log, points, window, known), "run": self._summary(place)}

    def _summary(self, place: Place) -> dict[str, Any]:
        """From the files, and again only when the log has changed or may have ended."""
        try:
            facts = place.log.stat()
            mark = (place, facts.st_mtime_ns, facts.st_size, int(time.monotonic() / FRESH_SECONDS) if place.partial else 0)
        except OSError:
            mark = (place,)
        known = self._summaries.get(place.identity)
        if known is None or known[0] != mark:
            known = self._summaries[place.identity] = (mark, summary(place))
        return known[1]
