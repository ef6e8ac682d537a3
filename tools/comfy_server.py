"""A real ComfyUI server with this pack in it, driven through its own API; for the demo, the tests and the tools."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path

import aiohttp

ROOT = Path(__file__).resolve().parent.parent
PACK = "BayesDiff"
# Called with node id, steps done and steps in all.
OnProgress = Callable[[str, int, int], None]


class ServerProblem(RuntimeError):
    """The server could not be started or died."""


class PromptRejected(RuntimeError):
    """The host refused a graph before running it. ``node_errors`` is its answer, by node id."""

    def __init__(self, answer: dict):
        self.node_errors: dict[str, dict] = answer.get("node_errors") or {}
        details = [
            error["details"] or error["message"] for node in self.node_errors.values() for error in node["errors"]
        ]
        super().__init__("; ".join(details) or answer["error"]["message"])


class PromptFailed(RuntimeError):
    """A node raised an error while the graph ran."""

    def __init__(self, message: dict):
        self.node_id, self.node_type = message["node_id"], message["node_type"]
        self.exception_type, self.exception_message = message["exception_type"], message["exception_message"].strip()
        super().__init__(f"{self.node_type}: {self.exception_message}")


class PromptInterrupted(RuntimeError):
    """The run was cancelled."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def link_pack(custom_nodes: Path, pack: Path = ROOT, name: str = PACK) -> None:
    """Make the repository, or another pack, a custom node of a base directory, without copying it."""
    custom_nodes.mkdir(parents=True, exist_ok=True)
    link = custom_nodes / name
    if link.exists():
        return
    if os.name == "nt":
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(pack)], check=True, capture_output=True)
    else:
        link.symlink_to(pack, target_is_directory=True)


class ComfyServer:
    """A ComfyUI process with this pack, alone unless told, stopped at the end of the ``with`` block whatever happens.

    Models, inputs, outputs, database and log live in ``folder``; the ComfyUI checkout is not written to.

    Args:
        folder: the base directory of the run.
        port: where to listen; a free one if not given.
        arguments: more arguments of the host's own command line.
        python: what runs it, if not this Python.
        packs: folders of other packs to load with this one.
        pack: the folder of this pack, if not the repository.

    Raises:
        ServerProblem: the port is taken, or the host does not come up; the end of its log is in the message.
    """

    def __init__(
        self,
        folder: Path,
        port: int | None = None,
        arguments: tuple[str, ...] = (),
        python: Path | None = None,
        packs: tuple[Path, ...] = (),
        pack: Path = ROOT,
    ):
        self.folder, self.arguments, self.packs, self.pack = Path(folder).resolve(), arguments, packs, pack
        self.python = python or sys.executable
        self.comfyui = Path(os.environ["BAYESDIFF_COMFYUI"])
        self.port = port or free_port()
        self.client_id = uuid.uuid4().hex
        self.on_progress: OnProgress | None = None

    def __enter__(self) -> ComfyServer:
        import torch

        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                raise ServerProblem(f"Port {self.port} is taken by another program; choose another with --port.")
        link_pack(self.folder / "custom_nodes", self.pack)
        for pack in self.packs:
            link_pack(self.folder / "custom_nodes", pack, pack.name)
        (self.folder / "user").mkdir(exist_ok=True)
        command = [
            str(self.python), str(self.comfyui / "main.py"),
            "--port", str(self.port),
            "--base-directory", str(self.folder),
            "--database-url", f"sqlite:///{self.folder / 'user' / 'comfyui.db'}",
            "--disable-auto-launch", "--disable-all-custom-nodes", "--whitelist-custom-nodes", PACK,
            *(pack.name for pack in self.packs),
            *([] if torch.cuda.is_available() else ["--cpu"]),
            *self.arguments,
        ]  # fmt: skip
        self.log_path = self.folder / "server.log"
        self.log_file = self.log_path.open("w", encoding="utf-8")
        environment = os.environ | {"PYTHONUTF8": "1"}
        self.process = subprocess.Popen(
            command, cwd=self.comfyui, stdout=self.log_file, stderr=subprocess.STDOUT, env=environment,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            self._wait_until_up()
            self._listener = threading.Thread(target=lambda: asyncio.run(self._listen()), daemon=True)
            self._listener.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log_file.close()

    def _wait_until_up(self, seconds: float = 180) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.3)
        end = "\n".join(self.log().splitlines()[-30:])
        raise ServerProblem(f"ComfyUI did not come up; its log ({self.log_path}) ends with:\n{end}")

    async def _listen(self) -> None:
        """Pass the progress that the server sends on to ``on_progress``."""
        address = f"ws://127.0.0.1:{self.port}/ws?clientId={self.client_id}"
        try:
            async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
                async for message in socket:
                    on_progress = self.on_progress  # another thread may take it away
                    if message.type is not aiohttp.WSMsgType.TEXT or on_progress is None:
                        continue
                    event = json.loads(message.data)
                    if event["type"] == "progress":
                        data = event["data"]
                        on_progress(data["node"], data["value"], data["max"])
                    elif event["type"] == "executing" and event["data"]["node"]:
                        on_progress(event["data"]["node"], 0, 0)
        except aiohttp.ClientError:
            pass  # the server stopped

    def get(self, path: str) -> dict:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return json.load(answer)

    def post(self, path: str, content: dict) -> dict:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(content).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else {}

    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def object_info(self) -> dict:
        """The host's description of every node it has."""
        return self.get("/object_info")

    def queue(self, graph: dict) -> str:
        """Queue a graph in API format; its prompt id.

        Raises:
            PromptRejected: the host's validation refused it.
        """
        try:
            return self.post("/prompt", {"prompt": graph, "client_id": self.client_id})["prompt_id"]
        except urllib.error.HTTPError as error:
            raise PromptRejected(json.load(error)) from None

    def wait(self, prompt_id: str, seconds: float = 600) -> dict:
        """The history entry of a prompt, once it has ended.

        Raises:
            PromptFailed, PromptInterrupted, ServerProblem, TimeoutError.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerProblem(f"ComfyUI stopped while it ran a graph; see its log: {self.log_path}")
            try:
                entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.3)  # stopping, which the next round will see
                continue
            if entry is not None:
                for kind, message in entry["status"]["messages"]:
                    if kind == "execution_error":
                        raise PromptFailed(message)
                    if kind == "execution_interrupted":
                        raise PromptInterrupted()
                return entry
            time.sleep(0.1)
        raise TimeoutError(f"The graph has not ended after {seconds:.0f} s; see the server's log: {self.log_path}")

    def run(self, graph: dict, seconds: float = 600) -> dict:
        """Queue a graph and wait for its history entry."""
        return self.wait(self.queue(graph), seconds)

    def interrupt(self) -> None:
        """Cancel what runs now."""
        self.post("/interrupt", {})

    def files(self, entry: dict, kind: str = "images") -> dict[str, list[Path]]:
        """Files that the output nodes of a run wrote, by node id."""
        return {
            node_id: [self.folder / item["type"] / item["subfolder"] / item["filename"] for item in outputs[kind]]
            for node_id, outputs in entry["outputs"].items()
            if kind in outputs
        }
