"""Runs a program, and ends it when whoever started this is gone: then the pipe to stdin closes.

    python guard.py PROGRAM ARGUMENTS...

So a server does not outlive its worker, however that dies.
"""

import signal
import subprocess
import sys
import threading

SECONDS = 5


def main() -> int:
    # Ctrl-C is for the driver, which then lets go of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)

    def end() -> None:
        child.terminate()
        try:
            child.wait(SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()

    def watch() -> None:
        sys.stdin.buffer.read()
        end()

    threading.Thread(target=watch, daemon=True).start()
    try:
        return child.wait()
    finally:
        end()


if __name__ == "__main__":
    sys.exit(main())
