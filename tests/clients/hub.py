"""A stand-in for the hub that serves one model, as the real one does: small files by their Git object
ids, large ones by their SHA-256 and through a redirect."""

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse

#: Id of the model.
MODEL = "org/tales"
#: Commit of its main branch.
COMMIT = "3" * 40


class Hub:
    def __init__(self, files):
        self.files = files
        self.requests = []
        self.url = None
        #: Address of the content network: the same server under another name, so that it is another host.
        self.content_url = None

    def etag(self, name):
        content = self.files[name]
        if name.endswith(".safetensors"):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def downloads(self):
        """Returns the paths of the downloaded files."""
        return [path for method, path in self.requests if method == "GET" and "/resolve/" in path]


def handler(hub):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.answer()

        def answer(self):
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            hub.requests.append((self.command, path))
            content = f"/content/{hub.etag('model.safetensors')}"
            resolve = f"/{MODEL}/resolve/"
            if path == f"/api/models/{MODEL}/revision/main":
                siblings = [{"rfilename": name} for name in hub.files]
                self.reply(200, json.dumps({"id": MODEL, "sha": COMMIT, "siblings": siblings}).encode())
            elif path == content:
                self.reply(200, hub.files["model.safetensors"])
            elif path.startswith(resolve):
                self.resolve(path.removeprefix(resolve).split("/", 1)[1], content)
            else:
                self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})

        def resolve(self, name, content):
            if name not in hub.files:
                self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                return
            headers = {"X-Repo-Commit": COMMIT}
            if name.endswith(".safetensors"):
                headers |= {"X-Linked-Etag": f'"{hub.etag(name)}"', "X-Linked-Size": len(hub.files[name])}
                self.reply(302, b"", headers | {"Location": hub.content_url + content})
            else:
                self.reply(200, hub.files[name], headers | {"ETag": f'"{hub.etag(name)}"'})

        def reply(self, status, body, headers=()):
            self.send_response(status)
            for name, value in {**dict(headers), "Content-Length": len(body)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    return Handler


@contextlib.contextmanager
def serving(files):
    """Starts a hub on a free port."""
    hub = Hub(files)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    port = server.server_address[1]
    hub.url, hub.content_url = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
