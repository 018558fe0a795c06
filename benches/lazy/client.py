"""Just enough of an NBD client to read; it copies nothing that it need not, as it shares the processors with what is measured."""

import socket
import struct
import sys

MIB = 1 << 20


class Nbd:
    def __init__(self, path, export):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.room = memoryview(bytearray(MIB))
        assert bytes(self.take(18))[:16] == b"NBDMAGICIHAVEOPT"
        name = export.encode()
        data = struct.pack(">I", len(name)) + name + b"\0\0"
        self.socket.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 7, len(data)) + data)
        while True:
            _, _, kind, length = struct.unpack(">QIII", self.take(20))
            self.take(length)
            if kind == 1:
                return
            if kind >= 1 << 31:
                sys.exit(f"bench: export {export} is refused")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # A volume with a client cannot be deleted.
        self.socket.close()

    def take(self, length):
        """The next bytes, at most 1 MiB; good until the next call."""
        whole = self.room[:length]
        view = whole
        while view:
            count = self.socket.recv_into(view)
            if count == 0:
                sys.exit("bench: the connection broke")
            view = view[count:]
        return whole

    def ask(self, offset, length):
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, offset, offset, length))

    def answer(self, length):
        _, errno, cookie = struct.unpack(">IIQ", self.take(16))
        if errno:
            sys.exit(f"bench: a read at {cookie} failed with {errno}")
        return self.take(length)

    def read(self, offset, length):
        self.ask(offset, length)
        return self.answer(length)

    def read_in_order(self, length, depth=8):
        asked = done = 0
        while done < length:
            while asked < length and asked - done < depth * MIB:
                self.ask(asked, MIB)
                asked += MIB
            self.answer(MIB)
            done += MIB
