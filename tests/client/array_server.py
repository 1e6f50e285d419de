"""A stand-in for the service, in a process of its own: any graph is ready and has 24 MB of arrays; prints its URL."""

import hashlib
import io
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

ROWS = np.arange(1 << 21).reshape(-1, 8)
SPEC = {"kind": "knn", "k": 8, "metric": {"type": "euclidean"}}
RECORD = {"id": "g" * 64, "state": "ready", "dataset": "d" * 64, "spec": SPEC, "certificate": {"exact": True}}


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


BODIES = {"neighbors": npy(ROWS.astype(np.int32)), "distances": npy(ROWS.astype(np.float64))}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(404, b"")

    def do_GET(self):
        self.answer(200, BODIES[self.path.rpartition("/")[2]])

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        document = {"id": hashlib.sha256(body).hexdigest()} if self.path.endswith("datasets") else RECORD
        self.answer(200, json.dumps(document).encode())

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
