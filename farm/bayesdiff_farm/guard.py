"""Runs a Python program that ends when whoever started it is gone: then the pipe to its stdin closes.

    python guard.py PROGRAM ARGUMENTS...

So a server does not outlive its worker, however that dies. It runs in ComfyUI's Python, and imports nothing else.
"""

import os
import runpy
import sys
import threading


def watch() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=watch, daemon=True).start()
    del sys.argv[0]
    # As Python does for a program that it is given.
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
