"""The main job, run once: start a ComfyUI, queue the quick start, show its progress, keep the pictures."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from comfy_server import ComfyServer, PromptFailed, PromptRejected, ServerProblem

ROOT = Path(__file__).resolve().parent.parent
GRAPH, OUTPUT = ROOT / "tests" / "graphs" / "quickstart.json", ROOT / "demo_output"


class Progress:
    """One line a node: its title, and on a terminal how far it is."""

    def __init__(self, graph: dict):
        self.titles = {node_id: node["_meta"]["title"] for node_id, node in graph.items()}
        self.node: str | None = None

    def __call__(self, node_id: str, value: int, maximum: int) -> None:
        title = self.titles.get(node_id, node_id)
        if node_id != self.node:
            self.node = node_id
            print(f"\n  {title}", end="", flush=True)
        if maximum > 1 and sys.stdout.isatty():
            print(f"\r  {title}: {value} of {maximum}\033[K", end="", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python dev.py demo", description=__doc__)
    parser.add_argument("--port", type=int, help="port of the server (default: a free one)")
    arguments = parser.parse_args()
    graph = json.loads(GRAPH.read_text(encoding="utf-8"))
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bayesdiff-", ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "server.log"
        try:
            print("Starting ComfyUI ...", flush=True)
            with ComfyServer(Path(folder), port=arguments.port) as server:
                print(f"It runs on http://127.0.0.1:{server.port}; queued the quick start:", end="", flush=True)
                server.on_progress = Progress(graph)
                pictures = server.files(server.run(graph))
                server.on_progress = None
            shutil.rmtree(OUTPUT, ignore_errors=True)
            OUTPUT.mkdir()
            print(f"\n\nPictures in {OUTPUT}:")
            for node_id, paths in sorted(pictures.items(), key=lambda item: item[1][0].name):
                for path in paths:
                    shutil.copy(path, OUTPUT)
                print(f"  {graph[node_id]['_meta']['title']}: {', '.join(path.name for path in paths)}")
        except (ServerProblem, PromptFailed, PromptRejected, TimeoutError) as problem:
            print(f"\n{problem}", file=sys.stderr)
            if log.exists():
                print(f"The server's log is in {shutil.copy(log, ROOT / 'demo_server.log')}", file=sys.stderr)
            return 1
    print(f"Done in {time.monotonic() - start:.0f} s. The server is stopped.")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\nStopped; the server is stopped too.")
