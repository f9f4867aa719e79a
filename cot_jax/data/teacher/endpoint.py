"""Client of OpenAI-compatible endpoints: parallel requests, none lost, none sent twice.

Servers refuse, stall and truncate answers; runs are killed. Every answer is appended to a cache before it is
returned, under a hash of its request, so that the same program, run again, sends only what is missing.
`Endpoint` uses HTTP; `Batch` writes the requests to a file and reads the results of a batch service.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import random
import re
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
from cot_jax.files import Shape, misfit, parse_json, rows_of, write_text

Request = dict[str, Any]  # the body of a (chat) completion

_AGAIN_LATER = (408, 429)  # besides 5xx
_NOT_THIS_ONE = (400, 413, 422)  # too long, or against a rule
_LONGEST_PAUSE = 600.0  # seconds
_MOST_BYTES = 2**24  # of an answer: a hundred times the longest expected
_SHORTEST_KEY = 8  # shorter keys, such as EMPTY, are not secret and may be words of an answer
# A pair of surrogates, or a backslash, in JSON; otherwise a lone surrogate.
_ESCAPES = re.compile(rb"(\\u[dD][89abAB]\w\w\\u[dD][c-fC-F]\w\w|\\\\)|\\u[dD][89a-fA-F]\w\w")
_HINTS = {401: "; is OPENAI_API_KEY right?", 404: "; the URL ends as in http://localhost:8000/v1"}


class Reply(NamedTuple):
    """`text` is empty if the model refused; token counts are 0 if the server gives none.

    A request that the server rejects while it answers others with the same settings has the `finish_reason`
    "refused: ...".
    """

    text: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int

    @property
    def refused(self) -> bool:
        return (self.finish_reason or "").startswith("refused")


def chat(
    model: str,
    messages: Sequence[dict[str, str]],
    *,
    temperature: float,
    seed: int,
    max_tokens: int = 0,
    stop: Sequence[str] = (),
) -> Request:
    """Returns the request for one answer; k samples are k requests with different seeds (servers ignore `n`).

    With `max_tokens` 0 the server's limit applies, as reasoning models need.
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
# The parts of a server's answer that are read; some servers give null for missing values.
_SAID: Shape = {"content?": str, "text?": str, "finish_reason?": str}
_COMPLETION: Shape = {
    "choices": [_SAID | {"message?": _SAID}],
    "usage?": {"prompt_tokens?": _TOKENS, "completion_tokens?": _TOKENS},
}


class _Cache:
    """The answers so far, as JSON lines that one process at a time appends to; a context manager.

    A truncated last line is dropped. The address is not part of a request: if the server moves, its answers
    are reused.

    Raises:
      UserError: the file cannot be read or written.
    """

    def __init__(self, path: Path):
        self._path, self._lock = path, threading.Lock()
        self._replies = _read_cache(path)
        with writing(path):
            self._lines = path.open("ab")

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
    """A server and its answers so far; a context manager.

    The API key is the environment variable OPENAI_API_KEY, if set. It is never written, not even where the
    server repeats it.

    Args:
      url: the base URL, before `/chat/completions` or `/completions`: `http://localhost:8000/v1`.
      cache: JSON lines with every request and its answer, appended to by one process at a time.
      per_minute: maximum requests per minute, evenly spaced; 0: any number.
      timeout: seconds to wait for a whole answer before a retry.
      pause: maximum seconds before the second attempt; doubles with each further one, up to a minute; half of
        it is random. A server's Retry-After is always respected.

    Attributes:
      sent: requests sent by this object; each attempt counts.

    Raises:
      UserError: the URL is invalid, or the cache cannot be read or written.
    """

    def __init__(
        self, url: str, cache: Path, *, concurrency=8, per_minute=0.0, timeout=120.0, attempts=8, pause=1.0
    ):
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UserError("OPENAI_API_KEY contains invalid characters: set it again")
        if not url.startswith(("http://", "https://")):
            raise UserError(f"{url!r} is not a URL: write it like http://localhost:8000/v1")
        super().__init__(cache)
        self.sent, self._reached, self._next = 0, False, time.monotonic()
        self._answered: set[str] = set()  # settings of requests
        self._url, self._interval = url.rstrip("/"), 60 / per_minute if per_minute else 0.0
        self._concurrency, self._attempts, self._pause = concurrency, attempts, pause
        self._key, self._timeout = key if len(key) >= _SHORTEST_KEY else "", timeout
        # Uncompressed: a short compressed answer could unpack to any length.
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
          UserError: the server rejects a request before it has answered one with the same settings, or a
            request has no answer after all attempts. Requests under way are completed and kept: they are
            paid for.
        """
        keyed = [_key_and_body(request) for request in requests]
        missing = {key: body for key, body in keyed if key not in self._replies}
        for (key, _), request in zip(keyed, requests, strict=True):
            if key not in missing and not self._replies[key].refused:
                self._answered.add(_settings(request))
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
        """Sends a request until it is answered, and keeps the answer; returns early once `stop` is set."""
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
                    reply = _reply(parse_json(_whole_characters(content)))
                    said = self._without_key(reply.text), self._without_key(reply.finish_reason)
                    self._keep(key, reply._replace(text=said[0], finish_reason=said[1]), request=request)
                    self._answered.add(_settings(request))
                    bar.update()
                    return
                if status in _NOT_THIS_ONE and _settings(request) in self._answered:
                    self._keep(key, Reply("", f"refused: {problem}", 0, 0), request=request)
                    bar.update()
                    return
                if status < 500 and status not in _AGAIN_LATER:
                    raise UserError(f"{self._url}: {problem}{_HINTS.get(status, '')}")
                wait = max(wait, _retry_after(response))
            except ValueError as error:  # truncated, or not a completion: `problem` quotes it
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
        fix = f"run again later, {self._path} keeps the answers"
        raise UserError(f"{self._url}: no answer after {attempt} attempts, the last: {problem}; {fix}")

    def _post(self, url: str, body: str) -> tuple[httpx2.Response, bytes]:
        """Returns the response and its content.

        Raises:
          httpx2.RequestError: there is no whole answer after `timeout` seconds, or it is too long.
        """
        streams: list[Any] = []

        def note(event: str, info: dict[str, Any]) -> None:
            if event.endswith(("connect_tcp.complete", "start_tls.complete")):
                streams.append(info["return_value"])

        def end() -> None:
            for stream in streams:
                with contextlib.suppress(OSError):  # already closed
                    stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

        # The client's own timeout restarts with every byte, headers included.
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
        """Counts one more request, and returns how many seconds it must wait."""
        with self._lock:
            self.sent += 1
            now = time.monotonic()
            turn = max(self._next, now)
            self._next = turn + self._interval
            return turn - now


class Batch(_Cache):
    """Answers in files, from OpenAI's Batch API or vLLM's run-batch; a context manager.

    Attributes:
      missing: the unanswered requests of `ask`, by hash.
    """

    def __init__(self, cache: Path):
        super().__init__(cache)
        self.missing: dict[str, str] = {}

    def ask(self, requests: Sequence[Request]) -> Iterator[Reply | None]:
        """Yields the answer to each request, in order; None if there is none yet."""
        for key, body in map(_key_and_body, requests):
            if key not in self._replies:
                self.missing[key] = body
            yield self._replies.get(key)

    def write(self, path: Path) -> None:
        """Writes the missing requests, one per line.

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
        """Keeps the answers of a results file; failed requests stay missing.

        Raises:
          UserError: a line is not a result; names the line.
        """
        shape = {"custom_id": str, "response?": {"status_code?": int}}
        with reading(path):
            lines = _whole_characters(path.read_bytes()).splitlines()
        for row in rows_of(lines, str(path)):
            if wrong := misfit(row.values, shape):
                raise row.error(f"not a batch result ({wrong}): give the file that the batch service wrote")
            key, response = row.values["custom_id"], row.values.get("response") or {}
            if key not in self._replies and response.get("status_code") == 200:
                try:
                    self._keep(key, _reply(response.get("body")))
                except ValueError as error:
                    raise row.error(f"its response is not a completion ({error})") from None


def _path(request: Request) -> str:
    return "chat/completions" if "messages" in request else "completions"


def _key_and_body(request: Request) -> tuple[str, str]:
    body = json.dumps(request, sort_keys=True)
    return hashlib.sha256(body.encode()).hexdigest(), body


def _settings(request: Request) -> str:
    """Returns what a request has in common with the others of a run: all but its question and its seed."""
    own = ("messages", "prompt", "seed")
    return json.dumps({name: value for name, value in request.items() if name not in own}, sort_keys=True)


def _read_cache(path: Path) -> dict[str, Reply]:
    replies: dict[str, Reply] = {}
    if not path.exists():
        return replies
    with reading(path):
        text = path.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):  # a killed run's last line
        os.truncate(path, whole)
    for number, line in enumerate(text[:whole].splitlines(), start=1):
        try:
            row = parse_json(line, {"key": str, "reply": _KEPT})
        except ValueError as error:
            raise UserError(f"{path}:{number}: not a cached answer ({error}); remove the line") from None
        replies[row["key"]] = Reply(*(row["reply"][name] for name in Reply._fields))
    return replies


def _whole_characters(content: bytes) -> bytes:
    """Returns JSON with U+FFFD for each lone surrogate, half of a character that `max_tokens` cut."""
    return _ESCAPES.sub(lambda found: found[1] or rb"\ufffd", content)


def _reply(values: Any) -> Reply:
    """Returns the reply in a completion; raises ValueError if it is incomplete or malformed."""
    if (wrong := misfit(values, _COMPLETION)) or not values["choices"]:
        raise ValueError(wrong or "no choices")
    choice, usage = values["choices"][0], values.get("usage") or {}
    said = choice.get("message") or choice
    if "content" not in said and "text" not in said:
        raise ValueError("no text")
    tokens = (usage.get(f"{name}_tokens") or 0 for name in ("prompt", "completion"))
    return Reply(said.get("content") or said.get("text") or "", choice.get("finish_reason"), *tokens)


def _message(content: bytes) -> str:
    """Returns the server's error message, on one line."""
    try:
        message = parse_json(content, dict)["error"]
        message = message["message"] if isinstance(message, dict) else message
    except (ValueError, KeyError):
        message = content.decode(errors="replace")
    return " ".join(printable(str(message)).split())


def _retry_after(response: httpx2.Response) -> float:
    """Returns the seconds of a Retry-After header, a number or a date; 0 if there is none."""
    asked = response.headers.get("Retry-After", "0")
    try:
        return float(asked) if asked.isdigit() else parsedate_to_datetime(asked).timestamp() - time.time()
    except (ValueError, OverflowError):  # not a date, or out of range
        return 0.0
