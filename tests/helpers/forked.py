"""Commands of this project, forked from a process that has imported what they need.

A start spends 15 to 20 seconds of CPU time on imports, and the tests of whole sweeps start forty. All that follows is
the command's own: its process, session, signals, output and exit status. `python -m tests.helpers.forked SOCKET` is the
process that imports; it ends with its standard input.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.helpers.paths import ROOT

_IMPORTED = (
    "trainables.data.__main__",
    *("sweeps.command_line", "sweeps.sweep", "sweeps.running.expectation", "sweeps.answering.report"),
    *("trainables.methods.sinsr", "trainables.methods.latent_diffusion", "trainables.methods.pixel_diffusion"),
)


class Forked:
    """A command's process, with those attributes of `subprocess.Popen` that the tests use. It leads a new session.

    Args:
        arguments: of Python: the path of a script, or -m and a module; then flags.
        stdout, stderr: file descriptors; the process has them too, so the caller may close its own.
    """

    def __init__(self, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], stdout: int, stderr: int) -> None:
        self._status = socket.socket(socket.AF_UNIX)
        self._arguments = arguments
        self._status.connect(_nursery()[0])
        job = json.dumps({"arguments": list(arguments), "cwd": str(cwd), "env": dict(env)}).encode()
        socket.send_fds(self._status, [len(job).to_bytes(8, "big")], [stdout, stderr])
        self._status.sendall(job)
        self.pid = self._number()
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.returncode = self._number()
            self._status.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status; minus the signal's number if one ended the process.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        if self.returncode is None:
            select.select([self._status], [], [], timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(list(self._arguments), timeout or 0)
        return status

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def _number(self) -> int:
        return int.from_bytes(self._status.recv(8, socket.MSG_WAITALL), "big", signed=True)


def start(
    arguments: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
    output: int,
    prepare: Callable[[], None] | None = None,
) -> Forked | subprocess.Popen[bytes]:
    """Starts a command, forked if possible, as the leader of a new session.

    It starts as a new process if `prepare` must be called before Python starts, or with a token for Ray: a test has set
    one, or a Ray in this process, and Ray reads it when it is imported.

    Args:
        arguments, cwd, env: see `Forked`. output: file descriptor of standard output and error.
    """
    if prepare is None and "RAY_AUTH_TOKEN" not in env:
        return Forked(arguments, cwd, env, output, output)
    command = [sys.executable, *arguments]
    return subprocess.Popen(
        command, cwd=cwd, env=env, stdout=output, stderr=output, start_new_session=True, preexec_fn=prepare
    )


def run_forked(*arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """The command to its end, forked if possible as in `start`; standard output and error apart."""
    if "RAY_AUTH_TOKEN" in os.environ:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        process = Forked(arguments, ROOT, os.environ, out.fileno(), error.fileno())
        try:
            status = process.wait(timeout)
        finally:
            process.kill()
        out.seek(0)
        error.seek(0)
        return subprocess.CompletedProcess(arguments, status, out.read(), error.read())


@functools.cache
def _nursery() -> tuple[str, subprocess.Popen[bytes]]:
    """The process that imports: its socket, and the process, whose standard input closes with this one."""
    path = str(Path(tempfile.mkdtemp(prefix="nursery-")) / "socket")
    command = [sys.executable, "-m", "tests.helpers.forked", path]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE)
    while not os.path.exists(path):
        assert process.poll() is None
        time.sleep(0.05)
    return path, process


def _serve(path: str) -> bool:
    """Forks for each connection. Returns True in the new processes, and False in this one at its end."""
    for name in _IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # a collection in a new process would copy all pages of this one
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{path}.new")
        server.listen(64)
        os.rename(f"{path}.new", path)
        while True:
            ready = select.select([server, sys.stdin], [], [])[0]
            if sys.stdin in ready:
                shutil.rmtree(Path(path).parent)
                return False
            if _forked(server):
                return True


def _forked(server: socket.socket) -> bool:
    """Takes a connection. True in the process that is to be the sweep."""
    connection, _ = server.accept()
    if os.fork():
        connection.close()
        return False
    # The keeper: it waits for the sweep and tells its status.
    server.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    header, (stdout, stderr), _, _ = socket.recv_fds(connection, 8, 2)
    job = json.loads(connection.recv(int.from_bytes(header, "big"), socket.MSG_WAITALL))
    if pid := os.fork():
        os.close(stdout)
        os.close(stderr)
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(pid.to_bytes(8, "big", signed=True))
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            connection.sendall(status.to_bytes(8, "big", signed=True))
        os._exit(0)
    connection.close()
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    for given, own in ((null, 0), (stdout, 1), (stderr, 2)):
        os.dup2(given, own)
        os.close(given)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    sys.argv = job["arguments"]
    return True


if __name__ == "__main__" and _serve(sys.argv[1]):
    sys.path[0] = str(ROOT)
    if sys.argv[0] == "-m":
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
