#!/usr/bin/env python3
"""Runs a real OpenStack Swift on loopback: one replica, tempauth, one container. Its processes end with it.

usage: swift_server.py DIR CONTAINER PROXY_PORT ACCOUNT_PORT CONTAINER_PORT OBJECT_PORT MEMCACHED_PORT
       swift_server.py serve SWIFT_CONF SERVER SERVER_CONF        (runs one of its servers)
"""
import ctypes
import http.client
import importlib
import os
import signal
import subprocess
import sys
import time


MODULES = {"object": "obj"}


def serve(conf, server, server_conf):
    from swift.common import utils

    # The default path of this file is writable by root only.
    utils.SWIFT_CONF_FILE = conf
    sys.argv = [server, server_conf]
    sys.exit(importlib.import_module(f"swift.{MODULES.get(server, server)}.server").main())


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def rings(etc, ports):
    from swift.common.ring import RingBuilder

    for kind, port in ports.items():
        builder = RingBuilder(4, 1, 0)
        device = {"id": 0, "region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "d1", "weight": 1.0}
        builder.add_dev({**device, "replication_ip": "127.0.0.1", "replication_port": port, "meta": ""})
        builder.rebalance()
        builder.get_ring().save(f"{etc}/{kind}.ring.gz")


def main(top, container, proxy_port, account_port, container_port, object_port, memcached_port):
    etc, user = f"{top}/etc", f"user = {__import__('pwd').getpwuid(os.getuid()).pw_name}"
    os.makedirs(etc)
    os.makedirs(f"{top}/srv/d1")
    conf = f"{etc}/swift.conf"
    write(conf, "[swift-hash]\nswift_hash_path_suffix = s\nswift_hash_path_prefix = p\n"
                "[storage-policy:0]\nname = Policy-0\ndefault = yes\n")
    from swift.common import utils

    utils.SWIFT_CONF_FILE = conf
    ports = {"account": int(account_port), "container": int(container_port), "object": int(object_port)}
    rings(etc, ports)
    common = f"bind_ip = 127.0.0.1\n{user}\nswift_dir = {etc}\nworkers = 0\nlog_level = WARNING\nlog_address = /dev/null\n"
    for kind, port in ports.items():
        write(f"{etc}/{kind}.conf", f"[DEFAULT]\nbind_port = {port}\n{common}devices = {top}/srv\nmount_check = false\n"
              f"fallocate_reserve = 0\n[pipeline:main]\npipeline = {kind}-server\n[app:{kind}-server]\nuse = egg:swift#{kind}\n")
    filters = ["catch_errors", "gatekeeper", "healthcheck", "cache", "listing_formats", "bulk", "tempauth", "slo"]
    text = f"[DEFAULT]\nbind_port = {proxy_port}\n{common}[pipeline:main]\npipeline = {' '.join(filters)} proxy-server\n"
    text += "[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\nallow_account_management = true\n"
    for name in filters:
        text += f"[filter:{name}]\nuse = egg:swift#{'memcache' if name == 'cache' else name}\n"
        text += f"memcache_servers = 127.0.0.1:{memcached_port}\n" if name == "cache" else ""
        text += "user_test_tester = planted-swift-key-77aa .admin\n" if name == "tempauth" else ""
    write(f"{etc}/proxy.conf", text)
    memcached = ["memcached", "-l", "127.0.0.1", "-p", memcached_port, "-m", "16", "-U", "0"]
    commands = [memcached + (["-u", "root"] if os.getuid() == 0 else [])]
    for server in ["account", "container", "object", "proxy"]:
        commands.append([sys.executable, __file__, "serve", conf, server, f"{etc}/{server}.conf"])
    children = [subprocess.Popen(command, preexec_fn=die_with_parent) for command in commands]
    make_container(int(proxy_port), container)
    write(f"{top}/ready", "")
    for child in children:
        child.wait()


def make_container(port, container):
    until = time.monotonic() + 60
    while True:
        try:
            server = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            server.request("GET", "/auth/v1.0", headers={"X-Auth-User": "test:tester", "X-Auth-Key": "planted-swift-key-77aa"})
            reply = server.getresponse()
            reply.read()
            token = {"X-Auth-Token": reply.getheader("X-Auth-Token", ""), "Content-Length": "0"}
            server.request("PUT", f"/v1/AUTH_test/{container}", headers=token)
            status = server.getresponse().status
            if status in (201, 202):
                return
        except OSError as error:
            status = error
        if time.monotonic() > until:
            sys.exit(f"creation of the container failed: {status}")
        time.sleep(0.1)


if sys.argv[1] == "serve":
    serve(*sys.argv[2:])
else:
    main(*sys.argv[1:])
