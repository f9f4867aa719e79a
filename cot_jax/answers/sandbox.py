"""Runs programs that the interpreter refuses in Python, inside a kernel sandbox.

Bubblewrap gives a program its own root directory: it can read Python and its packages, write nothing, reach
no network, see no other process, and has no user's rights. A seccomp filter allows the system calls of
computation and none that starts a process or a thread. Limits bound time, memory and output. A canary program
tests all of this first; if a test fails, there is no sandbox and the error names the reason.

The sandbox protects neither against kernel bugs nor hides the packages that a program can read.
"""

import functools
import json
import os
import platform
import shutil
import signal
import struct
import subprocess
import sys
import tempfile

from cot_jax.answers import programs
from cot_jax.answers.programs import Interpreter, Result, answered
from cot_jax.errors import UserError, printable

_MAX_SECONDS = 5  # of CPU time and of wall-clock time, as a waiting program uses no CPU
_MAX_MEMORY = 2**30  # bytes of address space
_MAX_OUTPUT = 2**16  # bytes

# System calls of x86-64.
# fmt: off
_ALLOWED = {
    # read write open close stat fstat lstat poll lseek ioctl pread64 readv writev access select dup dup2
    # fcntl getdents64 getcwd readlink openat newfstatat readlinkat faccessat dup3 statx faccessat2
    0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 17, 19, 20, 21, 23, 32, 33, 72,
    217, 79, 89, 257, 262, 267, 269, 292, 332, 439,
    # mmap mprotect munmap brk mremap madvise
    9, 10, 11, 12, 25, 28,
    # rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack futex sched_yield nanosleep clock_nanosleep
    13, 14, 15, 131, 202, 24, 35, 230,
    # execve exit exit_group wait4 getpid gettid getppid getuid getgid geteuid getegid arch_prctl
    # set_tid_address set_robust_list rseq getrlimit setrlimit prlimit64
    59, 60, 231, 61, 39, 186, 110, 102, 104, 107, 108, 158, 218, 273, 334, 97, 160, 302,
    # uname getrusage sysinfo times gettimeofday time clock_gettime clock_getres getrandom sched_getaffinity
    63, 98, 99, 100, 96, 201, 228, 229, 318, 204,
}
# fmt: on
_X86_64 = 0xC000003E
_KILL, _REFUSE, _ALLOW = 0x80000000, 0x00050001, 0x7FFF0000  # a refused call fails with EPERM

# Limits itself, then reads the program; looks for the answer where `programs.run` does.
_DRIVER = """
import io, json, resource, sys
seconds, memory, output = map(int, sys.argv[1:])
for limit, most in (("CPU", seconds), ("AS", memory), ("FSIZE", output), ("NPROC", 0), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + limit), (most, most))
program, said, names = sys.stdin.read(), sys.stdout, {"__name__": "__main__"}
sys.stdout = printed = io.StringIO()

def answer():
    exec(compile(program, "program", "exec"), names)
    for name in ("ans", "answer"):
        if name in names:
            return names[name]
    for name in ("solution", "solver"):
        if callable(names.get(name)):
            return names[name]()
    line = printed.getvalue().strip().rpartition("\\n")[2]
    for number in (int, float):
        try:
            return number(line)
        except ValueError:
            pass
    return line or None

try:
    value = answer()
    plain = value if isinstance(value, (int, float, str, type(None))) else float(value)  # NumPy's, fractions
    text = json.dumps({"answer": plain})
except BaseException as error:
    text = json.dumps({"failure": type(error).__name__, "detail": str(error)[:100]})
said.write(text)
said.flush()
"""

_CANARY = """
import os, socket
let = []
def attempt(what, act):
    try:
        act()
    except OSError:
        return
    let.append(what)
attempt("read a file", lambda: open({file!r}).read())
attempt("write a file", lambda: open({file!r}, "w"))
attempt("open a socket", socket.socket)
attempt("start a process", lambda: os.fork() or os._exit(0))
attempt("start a program", lambda: os.posix_spawn("/bin/true", ["true"], {{}}))
ans = " and ".join(let) or "nothing"
"""


class Sandbox:
    """Runs programs; it exists only if its canary failed to escape."""

    def __init__(self) -> None:
        """
        Raises:
          UserError: this machine has no sandbox, or one that leaks.
        """
        if sys.platform != "linux" or platform.machine() != "x86_64":
            raise _none(f"it needs Linux on x86-64, this is {sys.platform} on {platform.machine()}")
        if not (found := shutil.which("bwrap")):
            raise _none("bwrap is missing: install bubblewrap")
        self._bwrap = found
        with tempfile.NamedTemporaryFile() as outside:
            tried = self(_CANARY.format(file=outside.name))
        if tried.answer is None:
            raise _none(f"{found} does not work here ({tried.detail or tried.failure})")
        if tried.answer != "nothing":
            raise _none(f"a program could {tried.answer}")

    def __call__(self, program: str) -> Result:
        """Returns the answer of a program as `programs.run` does, or its failure, which may be "Killed".

        Answers are numbers, texts and whatever `float()` converts.
        """
        rules, rules_in = os.pipe()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, os.fdopen(rules):
            with os.fdopen(rules_in, "wb") as filter_:
                filter_.write(_rules())
            try:
                done = subprocess.run(
                    self.command(rules),
                    input=program.encode("utf-8", "replace"),
                    stdout=out,
                    stderr=err,
                    pass_fds=(rules,),
                    timeout=_MAX_SECONDS,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return Result(None, "Budget", "time")
            out.seek(0)
            err.seek(0)
            said, complaint = out.read().decode(errors="replace"), err.read().decode(errors="replace")
        if done.returncode == 128 + signal.SIGKILL:
            return Result(None, "Budget", "time")
        # The program controls its output, so only its form is trusted.
        try:
            match json.loads(said):
                case {"answer": bool() | int() | float() | str() | None as value}:
                    return answered(value)
                case {"failure": str(failure), "detail": str(detail)}:
                    return Result(None, printable(failure[:100]), printable(detail[:100]))
        except (ValueError, RecursionError):
            pass
        return Result(None, "Killed", printable(complaint.strip().rpartition("\n")[2][:100]))

    def command(self, rules: int) -> list[str]:
        """Returns the command line; `rules` is a descriptor to read the seccomp filter from."""
        shown = ["/usr", "/lib", "/lib64", "/etc/ld.so.cache", sys.base_prefix, sys.prefix]
        binds = [word for path in dict.fromkeys(shown) for word in ("--ro-bind-try", path, path)]
        # fmt: off
        return [
            self._bwrap, "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts",
            "--unshare-cgroup-try", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL", "--new-session",
            "--die-with-parent", "--clearenv", "--setenv", "OPENBLAS_NUM_THREADS", "1", *binds,
            "--remount-ro", "/", "--chdir", "/", "--seccomp", str(rules), "--", sys.executable, "-I", "-c",
            _DRIVER, str(_MAX_SECONDS), str(_MAX_MEMORY), str(_MAX_OUTPUT),
        ]
        # fmt: on


def make_interpreter(sandboxed: bool) -> Interpreter:
    """Returns the interpreter; if `sandboxed`, with this sandbox for what it refuses.

    It remembers its latest results: samples repeat many a program.

    Raises:
      UserError: this machine has no tight sandbox.
    """
    run = functools.partial(programs.run, sandbox=Sandbox() if sandboxed else None)
    return functools.lru_cache(maxsize=2**16)(run)


def _none(why: str) -> UserError:
    return UserError(f"no sandbox for programs that the interpreter refuses: {why}")


@functools.cache
def _rules() -> bytes:
    """The filter in classic BPF: kills on another architecture, refuses calls that are not allowed."""
    load, equals, give = 0x20, 0x15, 0x06
    program = [(load, 0, 0, 4), (equals, 1, 0, _X86_64), (give, 0, 0, _KILL), (load, 0, 0, 0)]
    program += [(equals, len(_ALLOWED) - n, 0, call) for n, call in enumerate(sorted(_ALLOWED))]
    program += [(give, 0, 0, _REFUSE), (give, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)
