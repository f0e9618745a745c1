"""Signs of life: each rank says every few seconds where it stands, so that those who wait can say for whom."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from luban.foundation.messages import t
from luban.parallel.ranks import Ranks

SECONDS = 2.0  # between two signs
ANSWER = 20.0  # seconds in which the store must answer


@dataclass
class Finding:
    """Why ranks wait: a sentence, the ranks that it names, and whether this rank is the one to say it."""

    text: str
    ranks: list[int] = field(default_factory=list)
    speaks: bool = True


class Pulse:
    """The signs of this rank, from a thread with a connection of its own: the steps' connection may be what hangs. ``place`` gives the step and what is done in it."""

    def __init__(self, ranks: Ranks, place: Callable[[], tuple[int, str]]):
        self.ranks, self.place = ranks, place
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="luban-pulse", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(timeout=1)

    def _beat(self) -> None:
        try:
            store, count = self.ranks.store.clone(), 0
            while True:
                count += 1
                store.set(f"pulse/{self.ranks.rank}", json.dumps([count, *self.place()]))
                if self._ended.wait(SECONDS):
                    return
        except RuntimeError:  # the store has gone: whoever asks it next will say so
            return

    def finding(self) -> Finding:
        """Whom the ranks wait for; takes some seconds, and never as long as what hangs."""
        found: list[Finding] = []
        asking = threading.Thread(target=lambda: found.append(self._look()), daemon=True)
        asking.start()
        asking.join(ANSWER)
        return found[0] if found else Finding(t("the store over which the ranks talk does not answer: the machine where it is, that of rank 0, or the network to it is lost"))

    def _look(self) -> Finding:
        store = self.ranks.store.clone()
        speaks = store.add("hanging", 1) == 1
        before = self._signs(store)
        time.sleep(2.5 * SECONDS)
        now = self._signs(store)
        silent = [rank for rank in range(self.ranks.size) if now.get(rank) == before.get(rank)]
        if silent:
            return Finding(t("no sign of life of {ranks}: stopped, or its machine or the network to it is lost", ranks=self._named(silent)), silent, speaks)
        places = {rank: (step, section) for rank, (_, step, section) in now.items()}
        usual = Counter(places.values()).most_common(1)[0][0]
        apart = [rank for rank, place in places.items() if place != usual]
        if not apart:
            return Finding(t("all ranks live and stand at the same place: look at the network between them, and at where their threads stand"), [], speaks)
        where = sorted({places[rank] for rank in apart})
        return Finding(t("{ranks} stands elsewhere than the others: at {where}, and they at {usual}", ranks=self._named(apart), where=_shown(where), usual=_shown([usual])), apart, speaks)

    def _signs(self, store) -> dict[int, list]:
        return {rank: json.loads(store.get(key)) for rank in range(self.ranks.size) if store.check([key := f"pulse/{rank}"])}

    def _named(self, ranks: list[int]) -> str:
        return named(self.ranks, ranks)


def named(ranks: Ranks, some: list[int]) -> str:
    """``rank 3 (node7, process 4711)``, and the same of more; of many the first few."""
    told = [t("rank {rank} ({machine}, process {process})", rank=rank, machine=ranks.peers[rank][0], process=ranks.peers[rank][1]) for rank in some[:4]]
    return ", ".join(told) + (" …" if len(some) > 4 else "")


def _shown(places: list[tuple[int, str]]) -> str:
    return ", ".join(t("step {step} ({section})", step=step, section=section) for step, section in places[:4])
