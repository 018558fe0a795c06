#!/usr/bin/env python3
"""Shim between blockd and fake-gcs-server, an emulator of Google Cloud Storage.

The emulator does not support PUT of the XML API: the shim translates it to the JSON API. The emulator replies 500 for a missing
bucket: the shim replies as Google does. The emulator needs no authentication: the shim checks that the token names the key of
the command line, but not its signature.

usage: google_shim.py PORT EMULATOR_PORT KEY_ID
"""
import base64
import http.client
import http.server
import json
import sys
import urllib.parse

PORT, EMULATOR_PORT, KEY_ID = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]


def key_of(authorization):
    try:
        head = authorization.removeprefix("Bearer ").split(".")[0]
        return json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4))).get("kid")
    except ValueError:
        return None


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, headers, body):
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def forward(self, method, path, headers, body):
        emulator = http.client.HTTPConnection("127.0.0.1", EMULATOR_PORT, timeout=60)
        emulator.request(method, path, body, headers)
        reply = emulator.getresponse()
        return reply.status, reply.getheaders(), reply.read()

    def handle_one(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if key_of(self.headers.get("Authorization", "")) != KEY_ID:
            error = b"<Error><Code>AuthenticationRequired</Code><Message>Authentication required.</Message></Error>"
            return self.reply(401, [("Content-Type", "application/xml")], error)
        if self.command == "PUT":
            return self.put(body)
        headers = {name: value for name, value in self.headers.items() if name.lower() in ("range", "accept")}
        status, headers, reply = self.forward(self.command, self.path, headers, body)
        if status == 500 and b"no bucket named" in reply:
            # Google's reply.
            error = b"<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist.</Message></Error>"
            status, headers, reply = 404, [("Content-Type", "application/xml")], error
        return self.reply(status, headers, reply)

    def put(self, body):
        bucket, _, key = urllib.parse.unquote(self.path.split("?")[0]).lstrip("/").partition("/")
        query = {"uploadType": "multipart"}
        condition = self.headers.get("x-goog-if-generation-match")
        if condition is not None:
            query["ifGenerationMatch"] = condition
        border = "a-border-that-is-in-no-body-7d1c"
        head = json.dumps({"name": key, "contentType": "application/octet-stream"})
        parts = f"--{border}\r\nContent-Type: application/json\r\n\r\n{head}\r\n--{border}\r\n"
        parts += "Content-Type: application/octet-stream\r\n\r\n"
        whole = parts.encode() + body + f"\r\n--{border}--\r\n".encode()
        path = f"/upload/storage/v1/b/{bucket}/o?{urllib.parse.urlencode(query)}"
        headers = {"Content-Type": f"multipart/related; boundary={border}"}
        status, headers, reply = self.forward("POST", path, headers, whole)
        if status != 200:
            return self.reply(status, headers, reply)
        stored = json.loads(reply)
        headers = [("ETag", f'"{stored["etag"]}"'), ("x-goog-hash", f"md5={stored['md5Hash']}")]
        return self.reply(200, headers, b"")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one


http.server.ThreadingHTTPServer.daemon_threads = True
http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
