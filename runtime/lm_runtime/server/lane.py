"""A lane: an engine in a thread of its own, which texts enter and leave from the server's event loop.

Knows nothing about HTTP or JSON.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence

from lm_runtime.generation.engine import Engine
from lm_runtime.generation.rows import Piece
from lm_runtime.generation.session import Session
from lm_runtime.models.protocol import StepModel
from lm_runtime.sampling.params import SamplingParams
from lm_runtime.sampling.sampler import NotFiniteError


class Text:
    """A text that is being generated; the lane's thread writes, the event loop reads.

    Args:
        session: where it goes on; the lane's until the text has ended.
        params: how.
        keeps: whether the session goes on later: then what it holds back stays in it.
    """

    def __init__(self, session: Session, params: SamplingParams, *, keeps: bool = False) -> None:
        self.session = session
        self.params = params
        self.pieces: list[tuple[int, Piece]] = []
        """Its tokens so far, with what is known of each."""
        self.shown: list[str] = []
        """Its text so far, a part for each step."""
        self.finish: str | None = None if params.max_tokens else "length"
        """Why it ended; set after the last piece."""
        self.error: Exception | None = None
        """Why it failed."""
        self._keeps = keeps

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self.finish is not None or self.error is not None

    def take(self, piece: Piece) -> None:
        """Add what a step brought."""
        if piece.token is not None:
            self.pieces.append((piece.token, piece))
        text = piece.text if self._keeps else piece.text + self.session.last_words(piece.finish)
        self.shown.append(text)
        self.finish = piece.finish


class Batch:
    """The texts of one request.

    Args:
        texts: which.
        streams: whether the event loop wants to know of each step, and not only of the end.
    """

    def __init__(self, texts: Sequence[Text], *, streams: bool = False) -> None:
        self.texts = texts
        self.streams = streams
        self.open = sum(not text.ended for text in texts)
        """How many texts have not ended."""
        self.news = asyncio.Event()
        """Set in the event loop when there is something to read."""
        if not self.open:
            self.news.set()


class Lane:
    """Steps an engine in a thread.

    Args:
        model: from :func:`lm_runtime.load`.
        max_batch: the most texts in one step.
        loop: where :attr:`Batch.news` are told.
        name: of the thread.
    """

    def __init__(
        self, model: StepModel, max_batch: int, loop: asyncio.AbstractEventLoop, name: str = "lane"
    ) -> None:
        self._model = model
        self._max_batch = max_batch
        self._loop = loop
        self._engine = Engine(model, max_batch=max_batch)
        self._texts: dict[int, tuple[Text, Batch]] = {}
        self._inbox: list[Callable[[], None]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """How many texts run or wait here."""
        return len(self._texts)

    def add(self, batch: Batch) -> None:
        """Let a request's texts enter at the next step."""
        self._tell(lambda: self._add(batch))

    def cancel(self, batch: Batch) -> None:
        """Let a request's texts leave at the next step."""
        self._tell(lambda: self._cancel(batch))

    def close(self) -> None:
        """Let the thread end after its step, which is not waited for; texts stay where they are."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def join(self, seconds: float) -> bool:
        """Wait until the thread has ended; return whether it has."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _tell(self, act: Callable[[], None]) -> None:
        with self._changed:
            self._inbox.append(act)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._inbox or self._texts or self._closed):
                    self._changed.wait()
                if self._closed:
                    return
                inbox, self._inbox = self._inbox, []
            for act in inbox:
                act()
            if self._texts:
                self._step()

    def _add(self, batch: Batch) -> None:
        for text in batch.texts:
            if text.ended:
                continue
            try:
                self._texts[self._engine.add(text.session, text.params)] = text, batch
            except Exception as error:  # whatever it is, it is this request's
                self._fail(text, batch, error)

    def _cancel(self, batch: Batch) -> None:
        for index in [index for index, (_, own) in self._texts.items() if own is batch]:
            self._engine.cancel(index)
            del self._texts[index]

    def _step(self) -> None:
        news: dict[Batch, None] = {}
        try:
            pieces = self._engine.step()
        except NotFiniteError as error:
            text, batch = self._texts.pop(error.row)
            self._fail(text, batch, error)
            return
        except Exception as error:  # of onnxruntime, or of memory: none of these texts can go on
            for text, batch in self._texts.values():
                self._fail(text, batch, error)
            self._texts.clear()
            self._engine = Engine(self._model, max_batch=self._max_batch)
            return
        for piece in pieces:
            text, batch = self._texts[piece.index]
            text.take(piece)
            if piece.finish is not None:
                del self._texts[piece.index]
                batch.open -= 1
            if batch.streams or not batch.open:
                news[batch] = None
        if news:
            self._notify(news)

    def _fail(self, text: Text, batch: Batch, error: Exception) -> None:
        text.error = error
        batch.open -= 1
        self._notify([batch])

    def _notify(self, batches: Iterable[Batch]) -> None:
        try:
            self._loop.call_soon_threadsafe(_set_all, batches)
        except RuntimeError:  # the loop is closed: nobody listens
            self._closed = True


def _set_all(batches: Iterable[Batch]) -> None:
    for batch in batches:
        batch.news.set()
