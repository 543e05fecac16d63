"""A demo of its own process, and requests to it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.campaign.counting import REFUSED, RIGHT

SECONDS = 300.0


@dataclass(frozen=True)
class Demo:
    """A page that is served."""

    url: str
    pid: int
    log: Path

    def memory(self) -> int:
        """Bytes that its process holds."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) * 1024

    def explain(self, client: httpx.Client, content: bytes, name: str = "image.png") -> str:
        """Upload an image and have it explained: the stream of events that answers."""
        files = {"files": (name, content)}
        answer = client.post(f"{self.url}/gradio_api/upload", files=files)
        if answer.status_code != 200:
            return f"upload {answer.status_code}"
        return self.call(client, [file_data(answer.json()[0]), "", "auto", 0.7])

    def call(self, client: httpx.Client, data: Any, name: str = "explain") -> str:
        """Call the API with any values: the stream of events that answers."""
        place = f"{self.url}/gradio_api/call/{name}"
        answer = client.post(
            place, content=json.dumps({"data": data}), headers={"content-type": "application/json"}
        )
        if answer.status_code != 200:
            return f"call {answer.status_code}"
        return client.get(f"{place}/{answer.json()['event_id']}").text


def file_data(path: str) -> dict[str, Any]:
    """A file in Gradio's words."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def outcome_of(text: str) -> str:
    """What a stream of events comes to: ``RIGHT``, ``REFUSED``, or its beginning."""
    if "root:" in text:
        return "a file of the machine"
    if "event: complete" in text:
        return RIGHT
    if text.startswith(("upload 4", "call 4")):
        return REFUSED
    if "event: error" in text and "Traceback" not in text:
        return REFUSED
    return text[:200]


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Demo]:
    """The bundled network's page, in a process that ends with the block."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "convattn", "demo", "--port", str(port)],
            stdout=file,
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    demo = Demo(f"http://127.0.0.1:{port}", process.pid, log)
    try:
        _wait_for(demo, process)
        yield demo
    finally:
        process.kill()
        process.wait()


def _wait_for(demo: Demo, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, demo.log.read_text()
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{demo.url}/config", timeout=5).status_code == 200:
                return
        time.sleep(0.2)
    raise AssertionError("the demo does not answer")
