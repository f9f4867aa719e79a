"""Several training processes on this machine, as one run: one a GPU, or with --cpu on the CPU.

    python launch/local_processes.py --processes=4 [--dry_run] -- --config=configs/svamp_mi.py --workdir=DIR

Flags after `--` are those of cot_jax.train. SIGTERM and Ctrl-C save one checkpoint and end with status 75.
"""

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

TRAIN = (sys.executable, "-m", "cot_jax.train")
SECONDS_TO_FOLLOW = 15.0


def commands(count: int, cpu: bool, arguments: list[str]) -> list[tuple[dict[str, str], list[str]]]:
    """Returns what each process adds to the environment, and its command; ValueError: no such count."""
    gpus = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))).split(",")
    if count < 1 or (not cpu and len(gpus) < count):
        raise ValueError(f"--processes={count}: at least 1, at most the {len(gpus)} of CUDA_VISIBLE_DEVICES")
    on_cpu = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": os.environ.get("JAX_NUM_CPU_DEVICES", "1")}
    with socket.create_server(("localhost", 0)) as free:
        join = (f"--coordinator=localhost:{free.getsockname()[1]}", f"--processes={count}")
    return [
        (on_cpu if cpu else {"CUDA_VISIBLE_DEVICES": gpus[i]}, [*TRAIN, *arguments, *join, f"--process={i}"])
        for i in range(count)
    ]


def _show(process: subprocess.Popen, index: int) -> None:
    for line in process.stderr or ():
        print(f"[{index}] {line.decode(errors='replace')}", end="", file=sys.stderr, flush=True)


def _first_bad(processes: list[subprocess.Popen]) -> int:
    return next((process.returncode for process in processes if process.returncode), 0)


def run(started: list[tuple[dict[str, str], list[str]]]) -> int:
    """Runs the processes together; returns the first status that is not 0, or 0."""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    # In sessions of their own: Ctrl-C reaches them only through this process, as SIGTERM; then they save.
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stderr=subprocess.PIPE if index else None,
            start_new_session=True,
        )
        for index, (environment, command) in enumerate(started)
    ]
    for index, process in enumerate(processes[1:], start=1):
        threading.Thread(target=_show, args=(process, index)).start()
    status, last_second = 0, float("inf")
    while None in [process.poll() for process in processes]:
        if asked:
            asked.clear()
            for process in processes:
                process.terminate()
        if not status and (status := _first_bad(processes)) not in (0, 75):
            last_second = time.monotonic() + SECONDS_TO_FOLLOW  # after 75 the others may still be saving
        if time.monotonic() > last_second:
            for process in processes:
                process.kill()
        time.sleep(0.1)
    status = status or _first_bad(processes)
    return 128 - status if status < 0 else status


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--processes", type=int, required=True, help="how many; on GPUs one each")
    parser.add_argument(
        "--cpu", action="store_true", help="on the CPU, JAX_NUM_CPU_DEVICES devices a process"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands, start nothing")
    parser.add_argument("arguments", nargs="*", help="after --: flags of cot_jax.train")
    options = parser.parse_args(argv[1:])
    try:
        started = commands(options.processes, options.cpu, options.arguments)
    except ValueError as error:
        parser.error(str(error))
    if options.dry_run:
        for environment, command in started:
            print(*(f"{key}={value}" for key, value in environment.items()), shlex.join(command))
        return 0
    return run(started)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
