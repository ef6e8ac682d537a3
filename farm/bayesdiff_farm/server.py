"""A ComfyUI process of one's own on loopback, and what is asked of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import websocket

from . import Problem, guard

SECONDS_TO_START, SECONDS_TO_STOP = 300, 10
# Of Ray's own Python, which ComfyUI's must not see.
NOT_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "OMP_NUM_THREADS")
# A proxy of the environment has no business on loopback.
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Died(Exception):
    """The server is no longer there."""


class Failed(Exception):
    """A node raised an error, or the host refused the graph (``refused``)."""

    def __init__(self, text: str, refused: bool = False):
        super().__init__(text)
        self.refused = refused


def python_of(comfyui: Path, named: str | None) -> str:
    """ComfyUI's Python: the one that is named, else that of a virtual environment in its folder, else this one."""
    ends = ("bin/python", "Scripts/python.exe")
    near = [comfyui / folder / end for folder in ("venv", ".venv") for end in ends]
    near += [comfyui.parent / "python_embeded" / "python.exe"]
    return named or next((str(path) for path in near if path.exists()), sys.executable)


class Server:
    """A running ComfyUI; what it writes lands in ``folder``.

    Args:
        comfyui: its folder.
        python: of ComfyUI; see :func:`python_of`.
        folder: for output, temporary files, database and log.
        arguments: more of ComfyUI's own command line.
        threads: how many a CPU computes with; None leaves it to the GPU.

    Raises:
        Problem: it does not come up; the sentence ends with the end of its log.
    """

    def __init__(self, comfyui: Path, python: str | None, folder: Path, arguments: list[str], threads: int | None):
        if not (comfyui / "main.py").exists():
            raise Problem(
                f"Expected a ComfyUI folder with main.py in it on {socket.gethostname()}, got {comfyui}; set "
                "COMFYUI_PATH there, or give --comfyui."
            )
        self.folder = folder
        for name in ("output", "temp", "user"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.client = uuid.uuid4().hex
        self.gone = f"ComfyUI stopped; see {folder / 'server.log'}"
        command = [
            *(python_of(comfyui, python), guard.__file__, str(comfyui / "main.py")),
            *("--listen", "127.0.0.1", "--port", str(self.port), "--disable-auto-launch"),
            *("--output-directory", str(folder / "output"), "--temp-directory", str(folder / "temp")),
            *("--user-directory", str(folder / "user")),
            *("--database-url", f"sqlite:///{folder / 'user' / 'comfyui.db'}"),
            *([] if threads is None else ["--cpu"]),
            *arguments,
        ]
        environment = {name: value for name, value in os.environ.items() if name not in NOT_OURS}
        environment |= {"PYTHONUTF8": "1"} | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
        with (folder / "server.log").open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command,
                cwd=comfyui,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait_until_up()
        except BaseException:
            self.stop()
            raise
        self.socket = websocket.create_connection(f"ws://127.0.0.1:{self.port}/ws?clientId={self.client}", timeout=2)

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                said = self.get("/system_stats")["system"].get("argv", [])
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
                continue
            if str(self.folder / "output") in said or not said:
                return
            break  # another program took the port meanwhile
        text = (self.folder / "server.log").read_text(encoding="utf-8", errors="replace")
        end = "\n".join(text.splitlines()[-15:])
        raise Problem(f"Expected ComfyUI to start on {socket.gethostname()}, got this in its log:\n{end}")

    def stop(self) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def get(self, path: str) -> dict:
        with opener.open(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return json.load(answer)

    def run(self, graph: dict) -> dict:
        """Queue a graph in API format and wait; see :meth:`queue` and :meth:`result`."""
        return self.result(self.queue(graph))

    def queue(self, graph: dict) -> str:
        """The number of a prompt.

        Raises:
            Failed: the host's validation refuses it.
            Died: the server is gone.
        """
        content = json.dumps({"prompt": graph, "client_id": self.client}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/prompt", content)
        try:
            with opener.open(request, timeout=60) as answer:
                return json.load(answer)["prompt_id"]
        except urllib.error.HTTPError as error:
            raise Failed(refusal(json.load(error)), refused=True) from None
        except OSError as error:
            raise Died(self.gone) from error

    def result(self, prompt: str) -> dict:
        """What the output nodes say, by node id; ``why`` some were skipped, and how many ``seconds`` it ran.

        Raises:
            Failed: a node raised an error.
            Died: the server is gone.
        """
        try:
            why = self._wait(prompt)
            entry = self.get(f"/history/{prompt}")[prompt]
        except (OSError, websocket.WebSocketException) as error:
            raise Died(self.gone) from error
        times = {kind: message.get("timestamp", 0) for kind, message in entry["status"]["messages"]}
        for kind, message in entry["status"]["messages"]:
            if kind == "execution_error":
                raise Failed(f"{message['node_type']}: {message['exception_message'].strip()}")
            if kind == "execution_interrupted":
                raise Died("the run was interrupted")
        seconds = (times.get("execution_success", 0) - times.get("execution_start", 0)) / 1000
        return entry["outputs"] | {"why": why, "seconds": seconds}

    def _wait(self, prompt: str) -> str:
        """Wait for a prompt's end; why the host skipped an output node, empty if it did not."""
        why = ""
        while True:
            try:
                message = self.socket.recv()
            except websocket.WebSocketTimeoutException:
                if self.process.poll() is not None:
                    raise ConnectionError("the process ended") from None
                continue
            if not isinstance(message, str):
                continue  # a preview
            if not message:
                raise ConnectionError("the server closed the connection")
            event = json.loads(message)
            data = event.get("data") or {}
            if data.get("prompt_id") != prompt:
                continue
            if event["type"] == "execution_error":
                why = data["exception_message"].removeprefix("Execution Blocked: ").strip()
            if event["type"] == "executing" and data["node"] is None:
                return why


def refusal(answer: dict) -> str:
    """The host's answer to a graph that it does not take, in words."""
    errors = [error for node in (answer.get("node_errors") or {}).values() for error in node["errors"]]
    return "; ".join(f"{error['message']}: {error['details']}" for error in errors) or answer["error"]["message"]
