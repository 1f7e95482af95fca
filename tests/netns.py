"""Runs in the client's network namespace: trains on the scheduler of another one, while a worker's link is cut."""

import json
import subprocess
import sys

from distributed import Client
from faults import At, train


def main():
    address, cut = sys.argv[1], sys.argv[2:]
    with Client(address, set_as_default=False, timeout=30) as client:
        client.wait_for_workers(2, timeout=60)
        cutting = At(20, lambda: subprocess.run(cut, check=True))
        fingerprint, steps, history = train(client, 10, callbacks=[cutting] if cut else [])
        print(json.dumps({"fingerprint": fingerprint, "steps": len(steps), "recoveries": history.recoveries}))


if __name__ == "__main__":
    main()
