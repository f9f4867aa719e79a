"""Answers of any OpenAI-compatible endpoint: many at once, none lost, none asked twice.

Servers refuse, stall and tear answers; runs are killed. Every answer is appended to a cache before it is
returned, under a hash of all that was asked, so that the same program run again sends only what is missing.
`Endpoint` asks over HTTP; `Batch` writes the requests to a file that a batch service answers with another.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import random
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

import httpx2
from tqdm import tqdm

from cot_jax.errors import UserError, printable, reading, writing
from cot_jax.files import Shape, misfit, parse_json, read_json_lines, write_text

Request = dict[str, Any]  # the body of a (chat) completion

_AGAIN_LATER = (408, 429)  # besides 5xx
_NOT_THIS_ONE = (400, 413, 422)  # too long, or against a rule
_LONGEST_PAUSE = 600.0  # seconds
_MOST_BYTES = 2**24  # of an answer: a hundred times the longest
_SHORTEST_KEY = 8  # shorter ones, as EMPTY, are no secrets, and may be words of an answer
_HINTS = {401: "; is OPENAI_API_KEY right?", 404: "; the URL ends as in http://localhost:8000/v1"}


class Reply(NamedTuple):
    """`text` is empty where the model said nothing (a refusal); tokens are 0 where the server counts none.

    A request that the server refuses though it answers others has the `finish_reason` "refused: ...".
    """

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


def completion(model: str, prompt: str, **sampling: Any) -> Request:
    """Returns the request to continue `prompt`; `sampling` as in `chat`."""
    body = chat(model, [], **sampling)
    del body["messages"]
    return body | {"prompt": prompt}


_TOKENS = range(2**31)
_KEPT: Shape = {
    "text": str,
    "finish_reason": (str, None),
    "prompt_tokens": _TOKENS,
    "completion_tokens": _TOKENS,
}
# What is read of a server's answer; some give null for what they have not.
_SAID: Shape = {"content?": str, "text?": str, "finish_reason?": str}
_COMPLETION: Shape = {
    "choices": [_SAID | {"message?": _SAID}],
    "usage?": {"prompt_tokens?": _TOKENS, "completion_tokens?": _TOKENS},
}


class _Cache:
    """What was answered so far, JSON lines that one process at a time appends to; a context manager.

    A last line that was cut in two is dropped. The address is no part of a request: answers are reused when
    the server moves to another address.

    Raises:
      UserError: the file cannot be read or written.
    """

    def __init__(self, path: Path):
        self._path, self._lock = path, threading.Lock()
        self._replies = _read_cache(path)
        try:
            self._lines = path.open("ab")
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._lines.close()

    def _keep(self, key: str, reply: Reply, **row: Any) -> None:
        row = {"key": key, **row, "reply": reply._asdict()}
        with self._lock:
            self._lines.write(json.dumps(row).encode() + b"\n")
            self._lines.flush()
            self._replies[key] = reply


class Endpoint(_Cache):
    """A server, and what it has answered so far; a context manager.

    The API key is the environment variable OPENAI_API_KEY, if that is set; it is written nowhere, not even
    where the server repeats it.

    Args:
      url: what `/chat/completions` or `/completions` follows, `http://localhost:8000/v1`.
      cache: JSON lines with every request and its answer, appended to by one process at a time.
      concurrency: most requests under way at once.
      per_minute: most requests sent in a minute, evenly; 0 = any number.
      timeout: seconds without a whole answer after which a request is tried again.
      attempts: most attempts of one request.
      pause: most seconds before the second attempt; they double with each further one, up to a minute, and
        half of them is left to chance. A server's Retry-After is waited for in any case.

    Attributes:
      sent: requests sent by this object; each attempt counts.

    Raises:
      UserError: the URL is none, or the cache cannot be read or written.
    """

    def __init__(
        self, url: str, cache: Path, *, concurrency=8, per_minute=0.0, timeout=120.0, attempts=8, pause=1.0
    ):
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UserError("OPENAI_API_KEY holds signs that no key has: set it again")
        if not url.startswith(("http://", "https://")):
            raise UserError(f"{url!r} is not a URL: write it as in http://localhost:8000/v1")
        super().__init__(cache)
        self.sent, self._reached, self._next = 0, False, time.monotonic()
        self._url, self._interval = url.rstrip("/"), 60 / per_minute if per_minute else 0.0
        self._concurrency, self._attempts, self._pause = concurrency, attempts, pause
        self._key, self._timeout = key if len(key) >= _SHORTEST_KEY else "", timeout
        # Not compressed: a short answer could unpack to any length.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        # Each request has a connection of its own, which its deadline can end.
        limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=0)
        self._client = httpx2.Client(headers=headers, timeout=timeout, limits=limits)

    def __exit__(self, *_) -> None:
        self._client.close()
        super().__exit__()

    def ask(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """Yields the answer to each request, in order; equal requests are sent once.

        Raises:
          UserError: the server refuses the first request, or has not answered one after all attempts. What
            is under way then is waited for and kept: it is paid for.
        """
        keyed = [_key_and_body(request) for request in requests]
        missing = {key: body for key, body in keyed if key not in self._replies}
        total, stop = len(dict(keyed)), threading.Event()
        with (
            tqdm(total=total, initial=total - len(missing), unit="answer", disable=None) as bar,
            concurrent.futures.ThreadPoolExecutor(self._concurrency) as pool,
        ):
            asked = {key: pool.submit(self._fetch, key, body, stop, bar) for key, body in missing.items()}
            try:
                for key, _ in keyed:
                    if key in asked:
                        asked[key].result()
                    yield self._replies[key]
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)

    def _fetch(self, key: str, body: str, stop: threading.Event, bar: tqdm) -> None:
        """Sends a request until it is answered, and keeps the answer; ends early once `stop` is set."""
        request = json.loads(body)
        url = f"{self._url}/{_path(request)}"
        for attempt in range(1, self._attempts + 1):
            wait = random.uniform(0.5, 1) * min(self._pause * 2 ** (attempt - 1), 60.0)
            if stop.wait(self._turn()):
                return
            try:
                response, content = self._post(url, body)
                self._reached, status = True, response.status_code
                problem = f"{status}: {self._without_key(_message(content))[:300]}"
                if status == 200:
                    reply = _reply(parse_json(content))
                    said = self._without_key(reply.text), self._without_key(reply.finish_reason)
                    self._keep(key, reply._replace(text=said[0], finish_reason=said[1]), request=request)
                    bar.update()
                    return
                if status in _NOT_THIS_ONE and self._replies:
                    self._keep(key, Reply("", f"refused: {problem}", 0, 0), request=request)
                    bar.update()
                    return
                if status < 500 and status not in _AGAIN_LATER:
                    raise UserError(f"{self._url}: {problem}{_HINTS.get(status, '')}")
                wait = max(wait, _retry_after(response))
            except ValueError as error:  # cut in two, or no completion: `problem` quotes it
                problem = f"no completion ({error}), {problem}"
            except httpx2.InvalidURL as error:
                raise UserError(f"{self._url}: {error}") from None
            except httpx2.RequestError as error:
                problem = f"{type(error).__name__}: {self._without_key(str(error))}"
                if isinstance(error, httpx2.ConnectError) and not self._reached:
                    raise UserError(f"{self._url}: no server there ({error})") from None
            if wait > _LONGEST_PAUSE:
                problem = f"{problem}; the server asks for {wait:,.0f} s"
                break
            if attempt < self._attempts and stop.wait(wait):
                return
        fix = f"run again later, {self._path} keeps what is answered"
        raise UserError(f"{self._url}: no answer after {attempt} attempts, the last: {problem}; {fix}")

    def _post(self, url: str, body: str) -> tuple[httpx2.Response, bytes]:
        """Returns the answer's head and its content.

        Raises:
          httpx2.RequestError: there is no whole answer after `timeout` seconds, or it is too long.
        """
        streams: list[Any] = []

        def note(event: str, info: dict[str, Any]) -> None:
            if event.endswith(("connect_tcp.complete", "start_tls.complete")):
                streams.append(info["return_value"])

        def end() -> None:
            for stream in streams:
                with contextlib.suppress(OSError):  # it has ended by itself
                    stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

        # The client's own timeout begins anew with every byte, also of the head.
        deadline, began = threading.Timer(self._timeout, end), time.monotonic()
        deadline.daemon = True
        deadline.start()
        content = bytearray()
        try:
            with self._client.stream("POST", url, content=body, extensions={"trace": note}) as response:
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise httpx2.DecodingError("the answer is compressed, which was not asked for")
                for block in response.iter_raw():
                    content += block
                    if len(content) > _MOST_BYTES:
                        raise httpx2.ReadError(f"the answer has more than {_MOST_BYTES:,} bytes")
                return response, bytes(content)
        except httpx2.RequestError as error:
            if time.monotonic() - began < self._timeout:
                raise
            raise httpx2.ReadTimeout(f"no whole answer after {self._timeout:g} s") from error
        finally:
            deadline.cancel()

    def _without_key(self, text: str | None) -> Any:
        return text.replace(self._key, "[OPENAI_API_KEY]") if text and self._key else text

    def _turn(self) -> float:
        """Counts one more request, and returns how many seconds it has to wait."""
        with self._lock:
            self.sent += 1
            now = time.monotonic()
            turn = max(self._next, now)
            self._next = turn + self._interval
            return turn - now


class Batch(_Cache):
    """Answers that come in files, from OpenAI's Batch API or vLLM's run-batch; a context manager.

    Attributes:
      missing: the requests that `ask` was asked for and has no answer to, by their hash.
    """

    def __init__(self, cache: Path):
        super().__init__(cache)
        self.missing: dict[str, str] = {}

    def ask(self, requests: Sequence[Request]) -> Iterator[Reply | None]:
        """Yields the answer to each request, in order; None where there is none yet."""
        for key, body in map(_key_and_body, requests):
            if key not in self._replies:
                self.missing[key] = body
            yield self._replies.get(key)

    def write(self, path: Path) -> None:
        """Writes the missing requests, one a line.

        Raises:
          UserError: the file cannot be written.
        """
        lines = []
        for key, body in self.missing.items():
            request = json.loads(body)
            url = f"/v1/{_path(request)}"
            lines.append(json.dumps({"custom_id": key, "method": "POST", "url": url, "body": request}) + "\n")
        with writing(path):
            write_text(path, "".join(lines))

    def read(self, path: Path) -> None:
        """Keeps the answers in a file of results; requests that failed stay missing.

        Raises:
          UserError: the file holds something else; names the line.
        """
        for row in read_json_lines(path):
            shape = {"custom_id": str, "response?": {"status_code?": int}}
            if wrong := misfit(row.values, shape):
                raise row.error(f"no result of a batch ({wrong}): give the file that the batch service wrote")
            key, response = row.values["custom_id"], row.values.get("response") or {}
            if key not in self._replies and response.get("status_code") == 200:
                try:
                    self._keep(key, _reply(response.get("body")))
                except ValueError as error:
                    raise row.error(f"its response has no completion in it ({error})") from None


def _path(request: Request) -> str:
    return "chat/completions" if "messages" in request else "completions"


def _key_and_body(request: Request) -> tuple[str, str]:
    body = json.dumps(request, sort_keys=True)
    return hashlib.sha256(body.encode()).hexdigest(), body


def _read_cache(path: Path) -> dict[str, Reply]:
    replies: dict[str, Reply] = {}
    if not path.exists():
        return replies
    with reading(path):
        text = path.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):  # the line that a killed run was writing
        os.truncate(path, whole)
    for number, line in enumerate(text[:whole].splitlines(), start=1):
        try:
            row = parse_json(line, {"key": str, "reply": _KEPT})
        except ValueError as error:
            raise UserError(f"{path}:{number}: no answer that was kept ({error}); remove the line") from None
        replies[row["key"]] = Reply(*(row["reply"][name] for name in Reply._fields))
    return replies


def _reply(values: Any) -> Reply:
    """Raises ValueError where the values are no whole completion, or of other types."""
    if (wrong := misfit(values, _COMPLETION)) or not values["choices"]:
        raise ValueError(wrong or "no choices")
    choice, usage = values["choices"][0], values.get("usage") or {}
    said = choice.get("message") or choice
    if "content" not in said and "text" not in said:
        raise ValueError("no text")
    tokens = (usage.get(f"{name}_tokens") or 0 for name in ("prompt", "completion"))
    return Reply(said.get("content") or said.get("text") or "", choice.get("finish_reason"), *tokens)


def _message(content: bytes) -> str:
    """Returns what the server says is wrong, on one line."""
    try:
        message = parse_json(content, dict)["error"]
        message = message["message"] if isinstance(message, dict) else message
    except (ValueError, KeyError):
        message = content.decode(errors="replace")
    return " ".join(printable(str(message)).split())


def _retry_after(response: httpx2.Response) -> float:
    """Returns the seconds that the server asks to wait, as a number or until a date; 0 without."""
    asked = response.headers.get("Retry-After", "0")
    try:
        return float(asked) if asked.isdigit() else parsedate_to_datetime(asked).timestamp() - time.time()
    except (ValueError, OverflowError):  # no date, or one in no year that a clock has
        return 0.0
