"""A teacher for tests and for trying things out: it answers generated word problems as an endpoint would.

    python tests/scripted_teacher.py --port=8000
    python -m cot_jax.rationalize --task=word_problems --endpoint=http://localhost:8000/v1 --model=scripted

It knows the problems of `--seed` and gives their rationale or program, or, for some of its samples, one that
overlooks the last step or no answer at all. Its server is the one that the tests break.
"""

import argparse
import collections
import http.server
import json
import random
import threading
import time

from cot_jax.data.teacher import prompts
from cot_jax.data.word_problems import generate


class Server(http.server.ThreadingHTTPServer):
    """Answers (chat) completions with `answer(request)`. `faults` are taken one a request, by turns.

    A fault is a function of the handler that answers in its way. `seen` counts the bodies.
    """

    daemon_threads = True

    class Handler(http.server.BaseHTTPRequestHandler):
        server: "Server"
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            with self.server.lock:
                self.server.seen[body] += 1
                self.server.heads.append((self.path, dict(self.headers)))
                fault = self.server.faults.pop(0) if self.server.faults else None
                self.server.busy += 1
                self.server.busiest = max(self.server.busiest, self.server.busy)
            if self.server.delay:
                time.sleep(self.server.delay)
            with self.server.lock:  # before the answer, which the next request may follow at once
                self.server.busy -= 1
            if fault is None:
                self.say(200, completion(self.server.answer, json.loads(body)))
            else:
                fault(self)

        def say(self, status, values, headers=(), length=None):
            content = values if isinstance(values, bytes) else json.dumps(values).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(length or len(content)))
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    def __init__(self, answer, port=0):
        super().__init__(("127.0.0.1", port), self.Handler)
        self.lock, self.seen, self.heads = threading.Lock(), collections.Counter(), []
        self.faults, self.delay, self.busy, self.busiest = [], 0.0, 0, 0
        self.answer = answer

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


def completion(answer, request):
    text = answer(request)
    said = {"message": {"role": "assistant", "content": text}} if "messages" in request else {"text": text}
    return {
        "choices": [said | {"finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }


def refuses(status, values=None, **headers):
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return lambda handler: handler.say(status, values or {"error": {"message": "not\nnow"}}, named)


def torn(handler):
    """Half of a completion, and then the connection is gone."""
    handler.say(200, b'{"choices": [{"message"', length=500)
    handler.close_connection = True


def cut(handler):
    """Half of a completion that says it is whole."""
    handler.say(200, b'{"choices": [{"message"')


def stalls(handler):
    """Longer than any test waits."""
    time.sleep(4)
    handler.close_connection = True


class WordProblems:
    """Answers the generated problems of a seed; what it says is a function of the request.

    Args:
      error_rate: share of samples that overlook the last step.
      silence_rate: share of samples that give no answer.
    """

    def __init__(self, count, seed=0, error_rate=0.0, silence_rate=0.0):
        self.right = {example.text: example for example in generate(count, seed)}
        mistaken = generate(count, seed, teacher_error_rate=1.0)  # of the same problems
        self.wrong = {example.text: example for example in mistaken}
        self.error_rate, self.silence_rate = error_rate, silence_rate

    def __call__(self, request):
        told = request.get("prompt") or "\n".join(message["content"] for message in request["messages"])
        asked = told if "prompt" in request else request["messages"][-1]["content"]
        question = asked.rpartition("Q: ")[2].split("\n")[0]
        kind = "pot" if told.startswith(prompts.PROGRAM_INSTRUCTION) else "cot"
        chance = random.Random(f"{question} {kind} {request['seed']}").random()
        hinted = prompts.HINT.partition("{")[0].strip() in asked
        if chance < self.silence_rate and not hinted:
            return "I do not know."
        mistaken = chance < self.silence_rate + self.error_rate and not hinted
        example = (self.wrong if mistaken else self.right)[question]
        if kind == "pot":
            return f"```python\n{example.programs[0]}\n```"
        return f"{example.rationale} The answer is {example.teacher_label}."


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--problems", type=int, default=21_200, help="as many as the demo has")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--error_rate", type=float, default=0.2)
    parser.add_argument("--silence_rate", type=float, default=0.05)
    options = parser.parse_args()
    teacher = WordProblems(options.problems, options.seed, options.error_rate, options.silence_rate)
    server = Server(teacher, options.port)
    print(f"listening on {server.url}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
