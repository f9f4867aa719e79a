"""The sandbox: hostile programs get nowhere in it, and where it does not hold there is none."""

import errno
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile

import pytest

from cot_jax.answers import programs, sandbox
from cot_jax.answers.programs import Result
from cot_jax.data.examples import Example
from cot_jax.data.selection import keep_right_programs
from cot_jax.errors import UserError


@pytest.fixture(scope="module")
def box():
    """Skips only where bubblewrap itself cannot work: a sandbox that does not hold is a failure."""
    bare = ["bwrap", "--unshare-user", "--unshare-net", "--ro-bind", "/", "/", "true"]
    if not shutil.which("bwrap") or subprocess.run(bare, capture_output=True, check=False).returncode:
        pytest.skip("bubblewrap is not installed, or not allowed to make namespaces here")
    return sandbox.Sandbox()


@pytest.mark.parametrize(
    ("program", "answer"),
    [
        ("ans = 6 * 7", 42),
        ("def solution():\n    return 0.5", 0.5),
        ("print('So')\nprint(7)", 7),
        ("answer = 'yes'", "yes"),
        ("import datetime as d\nans = (d.date(2020, 3, 1) - d.date(2020, 2, 1)).days", 29),
        ("from fractions import Fraction\nans = Fraction(1, 4) * 2", 0.5),
        ("import numpy as np\nans = np.linalg.solve(np.array([[1, 1], [1, -1]]), np.array([3, 1]))[0]", 2),
        ("ans = 'x: %d' % 3", "x: 3"),
    ],
)
def test_what_python_answers(box, program, answer):
    assert box(program) == Result(pytest.approx(answer) if isinstance(answer, float) else answer)


@pytest.mark.parametrize(
    ("program", "failure"),
    [
        ("ans = nothing", "NameError"),
        ("ans =", "SyntaxError"),
        ("ans = [1]", "TypeError"),
        ("ans = float('nan')", "NoAnswer"),
        ("ans = 10 ** 400", "OverflowError"),
        ("ans = 10 ** 9000", "ValueError"),
        ("", "NoAnswer"),
        ("raise SystemExit", "SystemExit"),
        ("def f(): f()\nf()", "RecursionError"),
        ("\x00", None),
        ("import os; os.write(1, b'[' * 60_000); os._exit(0)", "Killed"),
        ("import os; os.write(1, b'{\"answer\": [1]}'); os._exit(0)", "Killed"),
        # Memory and output.
        ("ans = 'x' * 10 ** 10", "MemoryError"),
        ("ans = [0] * 10 ** 9", "MemoryError"),
        ("import os\nwhile True: os.write(1, b'x' * 10 ** 6)", "Killed"),
        ("import os\nwhile True: os.write(2, b'x' * 10 ** 6)", "OSError"),
        # Processes and threads.
        ("import os\nwhile True: os.fork()", "PermissionError"),
        ("import subprocess; ans = subprocess.run(['/usr/bin/true']).returncode", "PermissionError"),
        ("import threading; threading.Thread(target=print).start()", "RuntimeError"),
        ("import os; os.kill(-1, 9); ans = 1", "PermissionError"),
        # Network.
        ("import socket; socket.create_connection(('127.0.0.1', 80))", "PermissionError"),
        ("import urllib.request; urllib.request.urlopen('http://127.0.0.1')", "URLError"),
        # Files.
        ("ans = open('/etc/passwd').read()", "FileNotFoundError"),
        ("import os; ans = str(os.listdir('/proc'))", "FileNotFoundError"),
        ("import os; ans = str(os.listdir('/dev'))", "FileNotFoundError"),
        ("open('/x', 'w')", "OSError"),
        ("open('/tmp/x', 'w')", "OSError"),
        ("import tempfile; tempfile.mkdtemp()", "FileNotFoundError"),
        ("import sys; open(sys.prefix + '/x', 'w')", "OSError"),
        ("import os; os.mkdir('/usr/x')", "PermissionError"),
        ("import resource as r; r.setrlimit(r.RLIMIT_AS, (-1, -1))", "ValueError"),
    ],
)
def test_what_fails_or_is_refused(box, program, failure):
    found = box(program)
    assert found.answer is None
    assert found.failure == failure or failure is None


@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(60)"])
def test_time_is_bounded(box, monkeypatch, program):
    monkeypatch.setattr(sandbox, "_MAX_SECONDS", 1)
    assert box(program) == Result(None, "Budget", "time")


def test_a_program_sees_nothing_of_its_user(box, monkeypatch):
    monkeypatch.setenv("SECRET", "told")
    with tempfile.NamedTemporaryFile() as secret:
        assert box(f"open({secret.name!r})").failure == "FileNotFoundError"
        assert "SECRET" not in box("import os; ans = ' '.join(os.environ)").answer
    assert box("import os; ans = os.getuid()").answer == 65534
    descriptors = (
        "import os\nans = 0\nfor n in range(99):\n    try: os.fstat(n); ans += 1\n    except OSError: pass"
    )
    # Input and output, and the filter, which has been read.
    assert box(descriptors).answer <= 4


def test_the_filter_refuses_what_needs_no_rights(box):
    """So that it is not the lack of rights alone that refuses."""
    for call in ("os.pipe()", "os.memfd_create('x')", "os.sched_setaffinity(0, {0})"):
        assert box(f"import os; {call}").detail.startswith(f"[Errno {errno.EPERM}]")


def test_the_namespaces_hold_without_the_filter(box, monkeypatch):
    monkeypatch.setattr(sandbox, "_rules", lambda: struct.pack("HBBI", 0x06, 0, 0, sandbox._ALLOW))
    assert box("import os; ans = len(os.pipe())").answer == 2
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        found = box(f"import socket; socket.create_connection({server.getsockname()!r})")
        assert found.failure in ("ConnectionRefusedError", "OSError")
        with pytest.raises(TimeoutError):
            server.accept()
    # Process 1 is the sandbox's own, and nobody's parent is outside.
    assert box("import os; ans = max(os.getpid(), os.getppid())").answer < 5
    for attempt in ("os.mkdir('/x')", "os.unshare(os.CLONE_NEWNS)", "os.chroot('/usr')", "os.setuid(0)"):
        assert box(f"import os; {attempt}").failure in ("PermissionError", "OSError", "AttributeError")


def _judge(architecture, call):
    """Runs the filter as the kernel does."""
    rules = list(struct.iter_unpack("HBBI", sandbox._rules()))
    position, loaded = 0, 0
    while True:
        code, then, otherwise, value = rules[position]
        if code == 0x06:
            return value
        if code == 0x20:
            loaded = {4: architecture, 0: call}[value]
        position += 1 + (0 if code == 0x20 else then if loaded == value else otherwise)


def test_the_filter_allows_its_list_on_its_architecture_and_nothing_else():
    allowed = {call for call in range(2000) if _judge(0xC000003E, call) == sandbox._ALLOW}
    assert allowed == sandbox._ALLOWED
    # socket, connect, clone, fork, vfork, kill, ptrace, mount, unshare, bpf, io_uring_setup, clone3
    assert not allowed & {41, 42, 56, 57, 58, 62, 101, 165, 272, 321, 425, 435}
    assert _judge(0xC000003E, 41) == 0x00050000 | errno.EPERM
    assert _judge(0xC000003E, 0x40000000) == 0x00050000 | errno.EPERM  # read, of the x32 interface
    assert _judge(0x40000003, 3) == sandbox._KILL  # of a 32-bit program


def _stand_in(folder, monkeypatch, script):
    (folder / "bwrap").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no sandbox")
def test_what_does_not_hold_is_not_used(tmp_path, monkeypatch):
    _stand_in(tmp_path, monkeypatch, 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"')
    with pytest.raises(UserError, match="a program could read a file and write a file and open a socket"):
        sandbox.Sandbox()
    _stand_in(tmp_path, monkeypatch, "echo 'bwrap: No permissions to create new namespace' >&2; exit 1")
    with pytest.raises(UserError, match=r"bwrap does not work here \(bwrap: No permissions to create new"):
        sandbox.Sandbox()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"no sandbox for programs .*: bwrap is missing: install bubblewrap"):
        sandbox.Sandbox()
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(UserError, match="it needs Linux on x86-64, this is linux on aarch64"):
        sandbox.Sandbox()


def test_only_what_the_interpreter_refuses_comes_here():
    asked = []

    def there(program):
        asked.append(program)
        return Result(1)

    refused = ["import numpy\nans = numpy.array([1])", "while True: pass"]
    assert [programs.run(program, there).answer for program in refused] == [1, 1]
    for program in ("ans = 2", "ans = nothing", "ans =", ""):
        assert programs.run(program, there) == programs.run(program)
    assert asked == refused


def test_each_program_runs_once(monkeypatch):
    ran = []
    monkeypatch.setattr(programs, "run", lambda program, sandbox: ran.append(program) or Result(len(ran)))
    interpreter = sandbox.make_interpreter(False)
    assert [interpreter(program).answer for program in ("a", "b", "a")] == [1, 2, 1]
    assert ran == ["a", "b"]


def test_who_runs_programs():
    refused = "import fractions\nans = fractions.Fraction(1, 2)"
    assert programs.run(refused).failure == "Unsupported"
    example = Example("1", ("?",), "0.5", programs=(refused,))
    kept, line = keep_right_programs([example], ["0.5"], by_value=True, interpreter=programs.run)
    assert (kept[0].programs, "left out: Unsupported 1" in line) == ((), True)
    kept, _ = keep_right_programs([example], ["0.5"], by_value=True, interpreter=lambda _: Result(0.5))
    assert kept == [example]


@pytest.mark.usefixtures("box")
def test_the_option_makes_a_sandbox():
    run = sandbox.make_interpreter(True)
    assert run("import fractions\nans = fractions.Fraction(1, 2)").answer == 0.5
    assert run("ans = nothing").failure == "NameError"
