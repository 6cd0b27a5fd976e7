"""A scripted OpenAI-compatible endpoint, run as a process of its own: python endpoint.py SCRIPT LOG

SCRIPT is a JSON list of replies, given in turn and the last one for ever: {"content": text} for an ordinary answer, or any of
`status`, `headers`, `body` (sent as it is), `finish`, `refusal`, `sleep` (seconds before the answer). Every request that comes is
one line of LOG. The port is the first line on standard output.
"""

from __future__ import annotations

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SCRIPT: list[dict[str, Any]] = []
LOG: list[Path] = []


def completion(reply: dict[str, Any]) -> str:
    message = {"role": "assistant", "content": reply.get("content"), "refusal": reply.get("refusal")}
    choice = {"index": 0, "message": message, "finish_reason": reply.get("finish", "stop")}
    return json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "scripted", "choices": [choice]})


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        with LOG[0].open("a", encoding="utf-8") as file:
            file.write(json.dumps({"path": self.path, "key": self.headers["Authorization"], "asked": json.loads(asked)}) + "\n")
        reply = SCRIPT.pop(0) if len(SCRIPT) > 1 else SCRIPT[0]
        time.sleep(reply.get("sleep", 0))
        body = (reply["body"] if "body" in reply else completion(reply)).encode()
        self.send_response(reply.get("status", 200))
        for name, value in ({"Content-Type": "application/json"} | reply.get("headers", {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


if __name__ == "__main__":
    SCRIPT.extend(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    LOG.append(Path(sys.argv[2]))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
