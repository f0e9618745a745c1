"""The processes that a launcher started together: how they meet, say things to each other, and part.

One process is the rule; then nothing here does anything. Under ``torchrun --nproc-per-node 2 -m luban run recipe.yaml`` or ``mpirun -np 2 luban run recipe.yaml`` there are two.
The first of them, rank 0, leads: it alone reads recipes, writes artifacts, prints and tracks; the others wait for it, and train with it.

Tensors go through torch.distributed (gloo on processors, NCCL beside it on GPUs), with a limit of :data:`PATIENCE` for one operation. Words go through a store that torchrun
or rank 0 keeps, and waiting for a word has no limit: the others may wait for hours while rank 0 curates a corpus.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from luban.foundation.console import hush, say
from luban.foundation.environment import Launch, launch, speak_as_torchrun
from luban.foundation.errors import Interrupted, LubanError
from luban.foundation.hardware import alive

PATIENCE = timedelta(minutes=30)  # for one operation on tensors, in which all ranks take part; longer than any step, validation or save of theirs
MEETING = timedelta(minutes=5)  # in which all ranks must have started
LONGEST_PAUSE = 0.2  # seconds between two looks for a word
LEFT = "luban/left"  # in torchrun's own store, which it keeps when it starts the ranks again: that they were asked to leave


class LostPeer(RuntimeError):
    """Another rank has ended, and this one waited for it."""


class Ranks:
    """This process among its peers. Every method but :meth:`call` is called by all of them, in the same order."""

    def __init__(self, place: Launch | None = None, store: dist.Store | None = None, scratch: Path | None = None):
        place = place or Launch()
        self.rank, self.size, self.local_rank, self.local_size = place.rank, place.world_size, place.local_rank, place.local_world_size
        self.store, self.scratch = store, scratch  # ``scratch``: where a rank that does not lead writes what nobody reads
        self.peers: list[tuple[str, int]] = []  # machine and process of each rank
        self.waited = 0.0  # seconds in :meth:`waiting`: the rank that the others wait for waits least
        self.group: dist.ProcessGroup | None = None  # these ranks, where they are not all that were started
        self.blocks = 1  # groups of as many ranks that do the same beside each other
        self.files: dist.ProcessGroup | None = None  # a connection of their own, for a thread that writes files while the steps use the other
        self._words = itertools.count()
        self._groups: dict[tuple[int, ...], Any] = {}
        self._said: list[str] = []  # words of this rank in the store
        self._calls = itertools.count()

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

    # ---- words -------------------------------------------------------------------------------------------------------

    def tell(self, value: Any = None) -> Any:
        """What rank 0 gives (plain data, as JSON has it), to all; they wait for it as long as it takes."""
        if self.alone:
            return value
        key = f"word/{next(self._words)}"
        if self.leads:
            self._say(key, value)
            return value
        return json.loads(self._wait(key))

    def lead(self, work: Callable[[], Any]) -> Any:
        """What ``work`` gives on rank 0, to all."""
        return self.tell(work() if self.leads else None)

    def everyone(self, value: Any = None) -> list[Any]:
        """What each gives, to all, in the order of ranks. Without a value: where all wait for the last. Who has come here has heard all that was said before, so that is dropped."""
        if self.alone:
            return [value]
        key = f"word/{next(self._words)}"
        before, self._said = self._said, []
        self._say(f"{key}/{self.rank}", value)
        found = [json.loads(self._wait(f"{key}/{rank}")) for rank in range(self.size)]
        for old in before:
            self.store.delete_key(old)
        return found

    def _say(self, key: str, value: Any) -> None:
        self.store.set(key, json.dumps(value))
        self._said.append(key)

    def in_turn(self) -> Iterator[None]:
        """Once around, on rank 0 first, and on the others when it is through."""
        if not self.leads:
            self.tell()
        yield
        if self.leads:
            self.tell()

    def call(self, what: str) -> None:
        """Rank 0 asks the others to do something with it; they hear of it in :meth:`calls`. ``""`` lets them go."""
        self.store.set(f"call/{next(self._calls)}", what)

    def calls(self) -> Iterator[str]:
        """What rank 0 calls for, until it lets go."""
        while what := self._wait(f"call/{next(self._calls)}").decode("utf-8"):
            yield what

    def _wait(self, key: str) -> bytes:
        pause = 0.001
        while not self.store.check([key]):  # not the store's own waiting, which has a limit, and which no signal interrupts
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            if pause == LONGEST_PAUSE and (gone := self._gone()) and not self.store.check([key]):
                raise LostPeer(f"rank {gone[0]} has ended")
        return self.store.get(key)

    def introduce(self) -> None:
        """Let each know the others' processes."""
        self.peers = [(machine, process) for machine, process in self.everyone([socket.gethostname(), os.getpid()])]

    def _gone(self) -> list[int]:
        """Ranks on this machine whose process has ended; of those on others torchrun tells."""
        machine = socket.gethostname()
        return [rank for rank, (where, process) in enumerate(self.peers) if where == machine and not alive(process)]

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While it lasts the slowest rank is waited for."""
        begun = time.monotonic()
        yield
        self.waited += time.monotonic() - begun

    # ---- tensors -----------------------------------------------------------------------------------------------------

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor, in place, with the sum over ranks."""
        if not self.alone:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def agree(self, wish: str) -> str:
        """A wish (to stop) that any of the ranks has, to all: the one of the lowest rank. One small reduction where there is none."""
        if self.alone:
            return wish
        wishing = torch.tensor([int(bool(wish))])
        dist.all_reduce(wishing, group=self.group)
        return next(filter(None, self.everyone(wish))) if int(wishing) else ""

    # ---- some of them ------------------------------------------------------------------------------------------------

    def block(self, size: int) -> Ranks:
        """The ``size`` neighbours that this rank belongs to, as ranks of their own; the other blocks are to do the same at the same time. All ranks call it, once for each size."""
        first = self.rank // size * size
        made = Ranks(Launch(self.rank - first, size, self.local_rank, self.local_size), dist.PrefixStore(f"block/{size}/{first}", self.store), self.scratch)
        made.peers, made.blocks = self.peers[first : first + size], self.size // size
        made.group = made.files = self.group_of([list(range(start, start + size)) for start in range(0, self.size, size)])
        made._groups = self._groups
        return made

    def group_of(self, groups: list[list[int]]) -> dist.ProcessGroup:
        """Of ``groups`` of ranks, numbered as they were started, the one that this rank is in. Each is made once, however often it is asked for; all ranks ask, for the same groups."""
        for members in map(tuple, groups):
            if members not in self._groups:
                self._groups[members] = dist.new_group(list(members), timeout=PATIENCE)
        return next(self._groups[members] for members in map(tuple, groups) if dist.get_rank() in members)

    # ---- ends --------------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """They were asked to leave: where torchrun starts them again all the same, they leave at once."""
        if not self.alone:
            with suppress(RuntimeError):  # torchrun has gone, and starts nothing any more
                _root(self.store).set(LEFT, "1")

    def first_to_fail(self) -> bool:
        """Whether no other rank has failed before; for the one that may say why the run ends."""
        try:
            return self.alone or self.store.add("failed", 1) == 1
        except RuntimeError:  # torchrun has gone, and its store with it
            return True


_here: Ranks | None = None
_unmet: LubanError | None = None  # why the ranks did not meet: trying again would only wait again


def here() -> Ranks:
    """The ranks that this process belongs to; it meets the others when it is asked for the first time."""
    global _here, _unmet
    if _unmet is not None:
        raise _unmet
    if _here is None:
        place = launch()
        try:
            _here = Ranks() if place.world_size == 1 else _meet(place)
        except LubanError as error:
            _unmet = error
            raise
    return _here


def settle_here(made: Ranks) -> None:
    """Have :func:`here` answer with these ranks, in a process that has met nobody."""
    global _here
    assert _here is None, "this process has met its peers already"
    _here = made


def first_to_fail() -> bool:
    """Whether this process may say why all of them end: the first that fails may, and each where they did not meet."""
    try:
        return here().first_to_fail()
    except LubanError:
        return True


def _meet(place: Launch) -> Ranks:
    if place.port == 0:
        raise LubanError("the ranks cannot meet: MASTER_PORT is 0", "torchrun --master-port 0 takes a free port and does not tell them which", "leave --master-port out, or write torchrun --standalone: both find a free port that the ranks know")
    if not place.address:
        raise LubanError("the ranks cannot meet: they are on several machines, and nobody said where", "{launcher} sets no address", "set MASTER_ADDR to the address of rank 0's machine (mpirun -x MASTER_ADDR=…, mpiexec -genv MASTER_ADDR …), or start them by luban launch --with mpi", launcher=place.by)
    speak_as_torchrun(place)
    if torch.cuda.is_available():
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=MEETING))
        store.set_timeout(PATIENCE)
        left = place.attempt > 0 and _root(store).check([LEFT])
        store = dist.PrefixStore(f"attempt/{place.attempt}", store)  # torchrun keeps its store when it starts the ranks again
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", store=dist.PrefixStore("group", store), rank=rank, world_size=size, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise LubanError("rank {rank} of {size} did not meet the others: {error}", "", "start it by torchrun or mpirun; leave RANK and WORLD_SIZE unset for a process of its own", rank=place.rank, size=place.world_size, error=str(error).splitlines()[0]) from error
    if left:
        raise Interrupted("the ranks were asked to leave, and do not begin again", "", "run the same command again: it continues")
    scratch = None
    if rank:
        hush()
        aside = tempfile.TemporaryDirectory(prefix="luban-rank-")
        scratch = Path(aside.name)
        atexit.register(aside.cleanup)
    atexit.register(_part)
    made = Ranks(place, dist.PrefixStore("luban", store), scratch)
    made.introduce()
    made.files = dist.new_group(backend="gloo", timeout=PATIENCE)
    if place.by == "Horovod":
        say("started by horovodrun: {count} ranks go through torch.distributed, and nothing of Horovod is used, which is no longer maintained; the same without it: luban launch RECIPE --processes-per-node {local}", count=size, local=place.local_world_size)
    return made


def meet_alone() -> None:
    """Let a process of its own speak torch.distributed to itself, for what knows no other way."""
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", store=dist.HashStore(), rank=0, world_size=1)
        atexit.register(_part)


def _root(store: dist.Store) -> dist.Store:
    """The store without the prefixes of an attempt."""
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    return store


def _part() -> None:
    """The one end of what :func:`_meet` began."""
    if dist.is_initialized():
        dist.destroy_process_group()


def lost_a_peer(error: BaseException) -> bool:
    """Whether an operation failed because another rank was not there any more."""
    text = str(error)
    return isinstance(error, (LostPeer, dist.DistError)) or (isinstance(error, RuntimeError) and any(sign in text for sign in ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL", "Broken pipe")))
