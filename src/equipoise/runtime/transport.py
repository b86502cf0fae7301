"""How ranks talk while experts move. Every wait has a deadline; who notices a failure tells the others."""

from __future__ import annotations

import atexit
import contextlib
import re
import threading
import weakref
from collections.abc import Iterator
from datetime import timedelta
from time import monotonic, sleep
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store

from ..errors import ArgumentError, EquipoiseError

LONGEST_PAUSE_S = 0.25
"""seconds between two questions to the store, at most"""
LAST_WAIT_S = 5.0
"""seconds that a process which ends waits for a question that is under way: an answer after them aborts it"""

_NO_SUM = "windows could not be added up"
_PATH = re.compile(r"\[?(?<![\w:/])/[\w.+/-]+(?::\d+)?\]?\s*")
"""where torch's own sources stood when they were compiled, before most that it says"""


class TransportError(EquipoiseError):
    """Ranks could not talk: one is gone, hangs, or gave up."""


class Pending(Protocol):
    """What ranks have begun together. Both calls raise `TransportError` where it failed."""

    def done(self) -> bool:
        """Whether it is through; waits for nothing."""
        ...

    def wait(self) -> None:
        """Return when it is through, within the deadline of the transport."""
        ...


class Transport(Protocol):
    """What the executor needs of a network. Each call raises `TransportError` within its deadline, on every rank."""

    rank: int
    members: list[int]
    """names of the ranks, which stay theirs in later groups"""
    deadline_s: float

    @property
    def num_ranks(self) -> int:
        """Ranks of the group."""
        ...

    def exchange(self, send: tuple[int, Tensor] | None, receive: tuple[int, Tensor] | None) -> None:
        """One round: bytes to one rank at most, from one at most. Returns when both are through."""
        ...

    def lowest(self, *values: int) -> list[int]:
        """The lowest of each value over all ranks."""
        ...

    def add_up(self, table: Tensor) -> Pending:
        """Begin to replace integers on the CPU by their sums over all ranks."""
        ...

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Give all ranks what ``source`` has."""
        ...

    def check(self) -> None:
        """Raise where another rank has given up; waits for nothing."""
        ...

    def abort(self) -> None:
        """Leave, and tell the others that this rank has given up; waits for nothing."""
        ...


class TorchTransport:
    """A gloo group of its own; experts on another device go by a second group, of another backend.

    Parameters
    ----------
    ranks : global ranks of the group, in the order of the ranks of placements
    store : where ranks meet and leave word that they gave up; it should not live in a process that serves. Of two
        balancers of one process each needs a `PrefixStore` of its own
    rank : global rank of this process; that of the default group unless given, which a process that takes the place
        of one that died is not in
    deadline_s : seconds that any wait may take
    connect_s : seconds that ranks may need to come together
    epoch : counts groups of one life; a new group after a failure has a new one
    backend : of `torch.distributed`, for experts that gloo cannot carry: ``nccl``

    Raises
    ------
    ArgumentError
        if this process is none of the ranks
    TransportError
        if the group does not come together
    """

    def __init__(
        self,
        ranks: list[int],
        store: Store,
        *,
        rank: int | None = None,
        deadline_s: float = 5.0,
        connect_s: float = 30.0,
        epoch: int = 0,
        backend: str | None = None,
    ) -> None:
        self._deadline = timedelta(seconds=deadline_s)
        self._group: Any
        self._wire: Any = None
        rank = dist.get_rank() if rank is None else rank
        if rank not in ranks:
            raise ArgumentError(f"rank {rank} is not among the ranks of the group, {ranks}")
        self.rank, self.members, self.deadline_s = ranks.index(rank), list(ranks), deadline_s
        with _in_our_words("the group does not come together"):
            ours = cast(Any, store).clone()  # a connection of its own, since a question that hangs holds it
            # Not by new_group: the name that it makes up depends on how many groups a process has seen, so that
            # one that was away would wait for another group than the rest.
            room = PrefixStore(f"equipoise/group/{epoch}", store)
            self._group = dist.ProcessGroupGloo(room, self.rank, len(ranks), timedelta(seconds=connect_s))
            self._group.set_timeout(self._deadline)
            if backend is not None:
                self._wire = dist.new_group(
                    ranks, timeout=self._deadline, backend=backend, use_local_synchronization=True
                )
        self._word = _Word(ours, f"equipoise/abort/{epoch}", deadline_s)

    @property
    def num_ranks(self) -> int:
        """See `Transport`."""
        return len(self.members)

    def exchange(self, send: tuple[int, Tensor] | None, receive: tuple[int, Tensor] | None) -> None:
        """See `Transport`."""
        self.check()
        with _in_our_words("experts could not be exchanged"):
            for work in self._begun(send, receive):
                work.wait(self._deadline)

    def lowest(self, *values: int) -> list[int]:
        """See `Transport`."""
        table = torch.tensor(values, dtype=torch.int64)
        self.check()
        with _in_our_words("ranks could not vote"):
            self._group.allreduce([table], dist.ReduceOp.MIN).wait(self._deadline)
        return [int(value) for value in table]

    def add_up(self, table: Tensor) -> Pending:
        """See `Transport`."""
        self.check()
        with _in_our_words(_NO_SUM):
            return _Begun(self, self._group.allreduce([table], dist.ReduceOp.SUM), self._deadline)

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """See `Transport`."""
        self.check()
        with _in_our_words("a plan could not be handed round"):
            self._group.broadcast(tensor, source).wait(self._deadline)

    def check(self) -> None:
        """See `Transport`."""
        if self._group is None:
            raise TransportError("this rank has given up")
        if self._word.problem is not None:
            raise TransportError(self._word.problem)
        if self._word.unanswered(self.deadline_s):
            raise TransportError("the store does not answer")

    def abort(self) -> None:
        """See `Transport`."""
        self._word.over.set()
        if self._group is not None:
            # Whoever waits for this rank hears that connections close. What is under way may hold that up.
            going, self._group, self._wire = [self._group, self._wire], None, None
            leaving = threading.Thread(target=going.clear, name="equipoise-leave", daemon=True)
            leaving.start()
            _leaving.add(leaving)

    def _begun(self, send: tuple[int, Tensor] | None, receive: tuple[int, Tensor] | None) -> list[dist.Work]:
        """The transfers of a round, begun together."""
        if self._wire is None:
            out = [] if send is None else [self._group.send([send[1]], send[0], 0)]
            return out + ([] if receive is None else [self._group.recv([receive[1]], receive[0], 0)])
        pairs = ((dist.isend, send), (dist.irecv, receive))
        both = [dist.P2POp(what, to[1], group=self._wire, group_peer=to[0]) for what, to in pairs if to]
        return dist.batch_isend_irecv(both) if both else []


class _Begun:
    """What gloo does in a thread of its own; see `Pending`."""

    def __init__(self, transport: TorchTransport, work: Any, deadline: timedelta) -> None:
        self._transport, self._work, self._deadline = transport, work, deadline

    def done(self) -> bool:
        """See `Pending`."""
        self._transport.check()
        if not self._work.is_completed():
            return False
        self.wait()  # raises what went wrong
        return True

    def wait(self) -> None:
        """See `Pending`."""
        with _in_our_words(_NO_SUM):
            self._work.wait(self._deadline)


class _Word:
    """Asks the store in a thread whether a rank has given up: a store that hangs keeps nobody else waiting."""

    def __init__(self, store: Store, key: str, deadline_s: float) -> None:
        self.problem: str | None = None
        self.over = threading.Event()
        """set it to give up, and to end the thread"""
        self.silent = False
        """set it before ``over`` to end the thread without a word"""
        arguments = (store, key, min(deadline_s / 20, LONGEST_PAUSE_S))
        self._asked: float | None = None
        self._thread = threading.Thread(target=self._ask, args=arguments, name="equipoise-word", daemon=True)
        self._thread.start()
        _words.add(self)

    def end(self) -> None:
        """Let the thread end, without a word to others, and wait for a moment until it has."""
        self.silent = not self.over.is_set()  # a rank that has given up says so even now
        self.over.set()
        self._thread.join(LAST_WAIT_S)

    def unanswered(self, limit_s: float) -> bool:
        """Whether the store has owed an answer for so long."""
        asked = self._asked
        if asked is None or monotonic() - asked <= limit_s:
            return False
        sleep(0.1)  # whoever held the interpreter for long has to let the thread see its answer
        return self._asked == asked

    def _ask(self, store: Store, key: str, pause_s: float) -> None:
        try:
            while not self.over.wait(pause_s):
                self._asked = monotonic()
                if store.check([key]):
                    self.problem = "another rank has given up"
                    return
                self._asked = None
            if not self.silent:
                store.set(key, "1")
        except RuntimeError as error:
            self.problem = f"the store is gone: {_in_short(error)}"


_words: weakref.WeakSet[_Word] = weakref.WeakSet()
_leaving: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def _end_threads() -> None:
    """A thread that comes back from torch while the interpreter ends would abort the process."""
    for word in list(_words):
        word.end()
    for thread in list(_leaving):
        thread.join(LAST_WAIT_S)


atexit.register(_end_threads)


@contextlib.contextmanager
def _in_our_words(what: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch's own kinds of it: DistNetworkError, DistBackendError ...
        raise TransportError(f"{what}: {_in_short(error)}") from error


def _in_short(error: RuntimeError) -> str:
    """The first sentence of what torch says, without paths of its sources and the stack that may follow."""
    first = _PATH.sub("", str(error)).strip().partition("\n")[0].partition(". ")[0].strip()
    return first[:200] or type(error).__name__
