"""Chat completions of any OpenAI-compatible endpoint: many at once, none lost, none asked twice.

Servers refuse, stall and tear answers; runs are killed. Every answer is appended to a cache before it is
returned, under a hash of all that was asked, so that the same program run again sends only what is missing.
"""

import concurrent.futures
import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
from tqdm import tqdm

from cot_jax.errors import UserError

Request = dict[str, Any]  # the body of a chat completion

_AGAIN_LATER = (408, 429)  # besides 5xx
_LONGEST_PAUSE = 600.0  # seconds
_HINTS = {401: "; is OPENAI_API_KEY right?", 404: "; the URL ends as in http://localhost:8000/v1"}


class Reply(NamedTuple):
    """`text` is empty where the model said nothing (a refusal); tokens are 0 where the server counts none."""

    text: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int


def chat(
    model: str,
    messages: Sequence[dict[str, str]],
    *,
    temperature: float,
    seed: int,
    max_tokens: int = 0,
    stop: Sequence[str] = (),
) -> Request:
    """Returns the request for one answer; k samples are k requests, each with a seed (servers ignore `n`).

    Without `max_tokens` the server's own limit holds, as reasoning models need it.
    """
    body = {"model": model, "messages": list(messages), "temperature": temperature, "seed": seed}
    optional = {"max_tokens": max_tokens, "stop": list(stop)}
    return body | {name: value for name, value in optional.items() if value}


class Endpoint:
    """A server, and what it has answered so far; a context manager.

    The API key is the environment variable OPENAI_API_KEY, if that is set; it is written nowhere.

    Args:
      url: what `/chat/completions` follows, `http://localhost:8000/v1`.
      cache: JSON lines with every request and its answer, appended to by one process at a time. A last line
        that was cut in two is dropped.
      concurrency: most requests under way at once.
      timeout: seconds without a byte after which a request is tried again.
      attempts: most attempts of one request.
      pause: most seconds before the second attempt; they double with each further one, up to a minute, and
        half of them is left to chance. A server's Retry-After is waited for in any case.

    Attributes:
      sent: requests sent by this object; each attempt counts.

    Raises:
      UserError: the URL is none, or the cache cannot be read or written.
    """

    def __init__(self, url: str, cache: Path, *, concurrency=8, timeout=120.0, attempts=8, pause=1.0):
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UserError("OPENAI_API_KEY holds signs that no key has: set it again")
        if not url.startswith(("http://", "https://")):
            raise UserError(f"{url!r} is not a URL: write it as in http://localhost:8000/v1")
        self.sent = 0
        self._url, self._cache, self._lock = url.rstrip("/"), cache, threading.Lock()
        self._concurrency, self._attempts, self._pause = concurrency, attempts, pause
        self._replies, self._reached = _read_cache(cache), False
        try:
            self._lines = cache.open("ab")
        except OSError as error:
            raise UserError(f"{cache} cannot be written: {error.strerror}") from None
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        limits = httpx2.Limits(max_connections=concurrency)
        self._client = httpx2.Client(headers=headers, timeout=timeout, limits=limits)

    def __enter__(self) -> "Endpoint":
        return self

    def __exit__(self, *_) -> None:
        self._client.close()
        self._lines.close()

    def ask(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """Yields the answer to each request, in order; equal requests are sent once.

        Raises:
          UserError: the server refuses a request, or has not answered it after all attempts. What is under
            way then is waited for and kept: it is paid for.
        """
        bodies = [json.dumps(request, sort_keys=True) for request in requests]
        keys = [hashlib.sha256(f"{self._url}\n{body}".encode()).hexdigest() for body in bodies]
        missing = {key: body for key, body in zip(keys, bodies, strict=True) if key not in self._replies}
        total, stop = len(set(keys)), threading.Event()
        with (
            tqdm(total=total, initial=total - len(missing), unit="answer", disable=None) as bar,
            concurrent.futures.ThreadPoolExecutor(self._concurrency) as pool,
        ):
            asked = {key: pool.submit(self._fetch, key, body, stop, bar) for key, body in missing.items()}
            try:
                for key in keys:
                    if key in asked:
                        asked[key].result()
                    yield self._replies[key]
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)

    def _fetch(self, key: str, body: str, stop: threading.Event, bar: tqdm) -> None:
        """Sends a request until it is answered, and keeps the answer; ends early once `stop` is set."""
        for attempt in range(1, self._attempts + 1):
            wait = random.uniform(0.5, 1) * min(self._pause * 2 ** (attempt - 1), 60.0)
            with self._lock:
                self.sent += 1
            try:
                response = self._client.post(f"{self._url}/chat/completions", content=body)
                self._reached, status = True, response.status_code
                problem = f"{status}: {_message(response)}"
                if status == 200:
                    return self._keep(key, body, _reply(response), bar)
                if status < 500 and status not in _AGAIN_LATER:
                    raise UserError(f"{self._url}: {problem}{_HINTS.get(status, '')}")
                wait = max(wait, _retry_after(response))
            except ValueError:  # cut in two, or no completion: `problem` quotes it
                pass
            except httpx2.InvalidURL as error:
                raise UserError(f"{self._url}: {error}") from None
            except httpx2.RequestError as error:
                problem = f"{type(error).__name__}: {error}"
                if isinstance(error, httpx2.ConnectError) and not self._reached:
                    raise UserError(f"{self._url}: no server there ({error})") from None
            if wait > _LONGEST_PAUSE:
                problem = f"{problem}; the server asks for {wait:,.0f} s"
                break
            if attempt < self._attempts and stop.wait(wait):
                return None
        mend = f"run again later, {self._cache} keeps what is answered"
        raise UserError(f"{self._url}: no answer after {attempt} attempts, the last: {problem}; {mend}")

    def _keep(self, key: str, body: str, reply: Reply, bar: tqdm) -> None:
        row = {"key": key, "request": json.loads(body), "reply": reply._asdict()}
        with self._lock:
            self._lines.write(json.dumps(row).encode() + b"\n")
            self._lines.flush()
            self._replies[key] = reply
            bar.update()


def _read_cache(path: Path) -> dict[str, Reply]:
    replies: dict[str, Reply] = {}
    if not path.exists():
        return replies
    text = path.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):  # the line that a killed run was writing
        os.truncate(path, whole)
    for number, line in enumerate(text[:whole].splitlines(), start=1):
        try:
            row = json.loads(line)
            replies[row["key"]] = Reply(**row["reply"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}:{number}: not an answer that was kept; remove the line") from None
    return replies


def _reply(response: httpx2.Response) -> Reply:
    """Raises ValueError where the response is no whole completion."""
    try:
        values = response.json()
        choice, usage = values["choices"][0], values.get("usage") or {}
        tokens = [int(usage.get(f"{name}_tokens") or 0) for name in ("prompt", "completion")]
        return Reply(str(choice["message"]["content"] or ""), choice.get("finish_reason"), *tokens)
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("no completion") from None


def _message(response: httpx2.Response) -> str:
    """Returns what the server says is wrong, on one line."""
    try:
        message = response.json()["error"]
        message = message["message"] if isinstance(message, dict) else message
    except (ValueError, KeyError, TypeError):
        message = response.text
    return " ".join(str(message).split())[:300]


def _retry_after(response: httpx2.Response) -> float:
    """Returns the seconds that the server asks to wait, as a number or until a date; 0 without."""
    asked = response.headers.get("Retry-After", "0")
    try:
        return float(asked) if asked.isdigit() else parsedate_to_datetime(asked).timestamp() - time.time()
    except ValueError:
        return 0.0
