#!/usr/bin/env python3
"""Creates a container in Azurite, or a shared access signature for a container.

usage: azure_admin.py create PORT ACCOUNT KEY CONTAINER
       azure_admin.py sas ACCOUNT KEY CONTAINER
"""
import base64
import datetime
import hashlib
import hmac
import http.client
import sys
import urllib.parse

VERSION = "2021-12-02"


def sign(key, text):
    return base64.b64encode(hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()).decode()


def create(port, account, key, container):
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%a, %d %b %Y %H:%M:%S GMT")
    headers = {"x-ms-date": date, "x-ms-version": VERSION, "Content-Length": "0"}
    canonical = f"x-ms-date:{date}\nx-ms-version:{VERSION}\n/{account}/{account}/{container}\nrestype:container"
    text = "PUT\n" + "\n" * 11 + canonical
    headers["Authorization"] = f"SharedKey {account}:{sign(key, text)}"
    server = http.client.HTTPConnection("127.0.0.1", int(port), timeout=10)
    server.request("PUT", f"/{account}/{container}?restype=container", headers=headers)
    reply = server.getresponse()
    if reply.status != 201:
        sys.exit(f"{reply.status}: {reply.read().decode()}")


def sas(account, key, container):
    until = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=2)
    expiry = until.strftime("%Y-%m-%dT%H:%M:%SZ")
    fields = ["racwdl", "", expiry, f"/blob/{account}/{container}", "", "", "", VERSION, "c"] + [""] * 7
    signature = sign(key, "\n".join(fields))
    query = {"sv": VERSION, "sr": "c", "sp": "racwdl", "se": expiry, "sig": signature}
    print(urllib.parse.urlencode(query))


{"create": create, "sas": sas}[sys.argv[1]](*sys.argv[2:])
