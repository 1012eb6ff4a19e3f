"""A server that speaks OpenAI's protocol and may fail: what fails in passing is asked again, and counted."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from email.utils import mktime_tz, parsedate_tz
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI
from pydantic import BaseModel, ValidationError

from selfreward.runtime.progress import console

if TYPE_CHECKING:
    from httpx2 import Response

    from selfreward.recipe.engine_settings import OpenAISettings

Answer = TypeVar("Answer", bound=BaseModel)
# The client insists on a key, a local server asks for none.
NO_KEY = "none"
# What passes besides all from 500 on: too slow a request, a conflict, too early, too many requests.
TRANSIENT_STATUSES = (408, 409, 425, 429)
# Seconds before the first retry. Each further pause is twice as long, up to the longest.
RETRY_PAUSE_S, MAX_RETRY_PAUSE_S = 0.5, 8.0
# A server that asks for a longer pause, in seconds, is closed.
MAX_RETRY_AFTER_S = 120.0
# How many times as many retries there are once the server has answered anything, so that a wrong address is told at
# once, and a server that fails half of the time ends one request in two million at the default of 5 retries.
MAX_GARBAGE_TRIES = 4
SHOWN_CHARACTERS = 300  # characters of what a server says


class _Failure(Exception):
    """A try that failed. ``pause`` is how many seconds the server asks to wait; what is not passing is final."""

    def __init__(self, kind: str, what: str, way_out: str, passing: bool = True, pause: float | None = None) -> None:
        super().__init__(what)
        self.kind, self.what, self.way_out, self.pause = kind, what, way_out, pause
        self.passing = passing and (pause or 0.0) <= MAX_RETRY_AFTER_S


class BadRequest(ValueError):
    """Status 400. ``said`` is all that the server says of it."""

    def __init__(self, message: str, said: str) -> None:
        super().__init__(message)
        self.said = said


class Server:
    """Sends requests, at most ``max_concurrency`` at once.

    ``failures`` counts all tries that failed: by status, or as ``timeout``, ``connection`` or ``garbage``, which is an
    answer with a good status that can't be read.
    """

    def __init__(self, settings: OpenAISettings) -> None:
        """Raises ValueError if the server needs a key and its environment variable is not set."""
        self._settings = settings
        self._key = _api_key(settings)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._answered = False
        self.name = _without_user(settings.base_url)
        self.failures: Counter[str] = Counter()

    async def ask(self, request: Callable[[AsyncOpenAI], Awaitable[Any]], kind: type[Answer]) -> Answer:
        """The answer to a request, which is tried again where it fails in passing.

        Args:
            request: sends it, and gives the client's raw response.
            kind: what the answer must be.

        Raises:
            BadRequest: the server can do nothing with it.
            ValueError: it refuses it for another reason, or has failed too often.
        """
        self._connect()
        tries = 0
        async with self._slots:
            while True:
                tries += 1
                try:
                    answer = await self._try(request, kind)
                except _Failure as failure:
                    self._note(failure)
                    if not failure.passing or tries > self._retries:
                        # Without its cause: that one's text may hold the key, and it holds the request.
                        raise self._error(failure, tries) from None
                    pause = failure.pause or min(RETRY_PAUSE_S * 2 ** (tries - 1), MAX_RETRY_PAUSE_S) * random.uniform(
                        0.75, 1.0
                    )
                    await asyncio.sleep(pause)
                else:
                    self._answered = True
                    return answer

    @property
    def _retries(self) -> int:
        return self._settings.max_retries * (MAX_GARBAGE_TRIES if self._answered else 1)

    def _connect(self) -> None:
        """Makes a client for the running loop, to which its connections are bound."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        self._client = AsyncOpenAI(
            api_key=self._key, base_url=self._settings.base_url, max_retries=0, timeout=self._settings.timeout
        )
        self._slots = asyncio.Semaphore(self._settings.max_concurrency)
        self._closer = loop.create_task(_close_with_loop(self._client))
        self._loop = loop

    async def _try(self, request: Callable[[AsyncOpenAI], Awaitable[Any]], kind: type[Answer]) -> Answer:
        try:
            # The client's own limit is for each read: a body that drips would pass it.
            async with asyncio.timeout(self._settings.timeout):
                response = await request(self._client)
            return kind.model_validate_json(response.http_response.content)
        except (TimeoutError, APITimeoutError):
            what = f"did not answer in {self._settings.timeout:g} s"
            raise _Failure("timeout", what, "Raise openai.timeout") from None
        except APIConnectionError as error:
            what = f"can't be reached, or broke off ({type(error.__cause__).__name__})"
            raise _Failure("connection", what, "Is it running, and is openai.base_url right?") from None
        except APIStatusError as error:
            failure = self._refusal(error)
            if error.status_code == 400:
                raise BadRequest(str(self._error(failure, 1)), f"{error.message} {error.body}") from None
            raise failure from None
        except ValidationError as error:
            raise self._garbage(response.http_response, error) from None

    def _refusal(self, error: APIStatusError) -> _Failure:
        status, headers = error.status_code, error.response.headers
        ways_out = {
            401: f"Put a valid key into the environment variable {self._settings.api_key_env}",
            403: f"Does the key in {self._settings.api_key_env} have access to model {self._settings.model!r}?",
            404: f"Is model {self._settings.model!r} one of the server's, and does openai.base_url end as it should "
            "(/v1)?",
            429: "Lower openai.max_concurrency, or raise openai.max_retries",
        }
        # An account without credit is told with the status of too many requests, and this header.
        passing = (status in TRANSIENT_STATUSES or status >= 500) and headers.get("x-should-retry") != "false"
        what = f"answered {status}: {self._told(error)}"
        way_out = ways_out.get(status, "See the server's log")
        return _Failure(str(status), what, way_out, passing, _asked_pause(headers))

    def _told(self, error: APIStatusError) -> str:
        """What the server says of an error."""
        said = error.body.get("message", error.body) if isinstance(error.body, Mapping) else error.body
        return self._hide(str(said or "no reason"))[:SHOWN_CHARACTERS].rstrip(".")

    def _hide(self, text: str) -> str:
        """A text of the server, which may repeat the key, without it."""
        return text if self._key == NO_KEY else text.replace(self._key, "***")

    def _garbage(self, response: Response, error: ValidationError) -> _Failure:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        what = f"gave an answer that can't be read ({f'{place}: ' if place else ''}{first['msg']}): "
        way_out = f"Does openai.base_url end as it should (/v1), and is model {self._settings.model!r} a chat model?"
        return _Failure(
            "garbage",
            f"{what}{self._hide(response.text)[:SHOWN_CHARACTERS]!r}",
            way_out,
            pause=_asked_pause(response.headers),
        )

    def _note(self, failure: _Failure) -> None:
        self.failures[failure.kind] += 1
        if failure.passing and self.failures[failure.kind] == 1:
            console.print(f"  {self.name} {failure.what}; trying again", markup=False, soft_wrap=True)

    def _error(self, failure: _Failure, tries: int) -> ValueError:
        often = f" (try {tries}; what was finished before is kept)" if failure.passing else ""
        return ValueError(f"{self.name} {failure.what}{often}. {failure.way_out}")


async def _close_with_loop(client: AsyncOpenAI) -> None:
    """Closes the client once ``asyncio.run`` cancels what is left in its loop."""
    try:
        await asyncio.Event().wait()
    finally:
        await client.close()


def _asked_pause(headers: Mapping[str, str]) -> float | None:
    """The seconds that a server asks to wait: given as such, as milliseconds, or as a date."""
    for header, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            pause = float(headers.get(header, "")) * scale
        except ValueError:
            continue
        return pause if pause > 0 else None
    try:
        date = parsedate_tz(headers.get("retry-after", ""))
        return None if date is None else max(mktime_tz(date) - time.time(), 0.0) or None
    except (ValueError, OverflowError):
        return None


def _api_key(settings: OpenAISettings) -> str:
    if key := os.environ.get(settings.api_key_env, "").strip():
        return key
    if urlsplit(settings.base_url).hostname in ("localhost", "127.0.0.1", "::1"):
        return NO_KEY
    raise ValueError(
        f"{_without_user(settings.base_url)} needs a key, and the environment variable {settings.api_key_env} "
        "is not set. Export it, or name another one in openai.api_key_env"
    )


def _without_user(url: str) -> str:
    """The URL without the user and password that it may hold."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
