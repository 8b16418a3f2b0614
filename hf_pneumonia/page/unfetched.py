"""Answers that wait to be fetched: few, and not for long. Gradio keeps those of 2,000 sessions, for ever."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from time import monotonic

from gradio.queueing import Queue
from gradio.utils import LRUCache

from hf_pneumonia.page.limits import KEPT_SECONDS, SWEEP_SECONDS, UNFETCHED


class Unfetched(LRUCache):
    """Answers by session, for a queue's `pending_messages_per_session`; beyond UNFETCHED the session that was
    quiet for longest goes first.

    Gradio drops the session that came first, though it may be waiting for its answer right now.
    """

    def __init__(self) -> None:
        super().__init__(UNFETCHED)
        self._touched: dict[str, float] = {}

    def __setitem__(self, session: str, answers: asyncio.Queue) -> None:
        self._touched[session] = monotonic()
        super().__setitem__(session, answers)

    def __getitem__(self, session: str) -> asyncio.Queue:
        answers = super().__getitem__(session)
        self.move_to_end(session)
        self._touched[session] = monotonic()
        return answers

    def quiet(self, seconds: float) -> list[str]:
        """Sessions in which nothing was put or asked for during so many seconds. Who waits for an answer asks
        every 10 s."""
        self._touched = {session: at for session, at in self._touched.items() if session in self}
        return [session for session, at in self._touched.items() if monotonic() - at > seconds]


def forget(queue: Queue, seconds: float) -> None:
    """Drop the sessions that were quiet for so long, but for those whose films wait, or are being answered:
    Gradio would stumble over their answers. To be called by the server's own thread."""
    answers, events = queue.pending_messages_per_session, queue.pending_event_ids_session
    # Of sessions that went for the others' sake, Gradio keeps the ids as well.
    for session in {*answers.quiet(seconds), *(session for session in events if session not in answers)}:
        if not any(event in queue.event_ids_to_events for event in events.get(session, ())):
            answers.pop(session, None)
            events.pop(session, None)


def forgetting(
    queue: Queue, kept_seconds: float = KEPT_SECONDS, sweep_seconds: float = SWEEP_SECONDS
) -> Callable[[object], AbstractAsyncContextManager[None]]:
    """A server's `lifespan`, during which old answers are forgotten."""

    async def sweep() -> None:
        while True:
            await asyncio.sleep(sweep_seconds)
            forget(queue, kept_seconds)

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        sweeper = asyncio.create_task(sweep())
        try:
            yield
        finally:
            sweeper.cancel()

    return lifespan
