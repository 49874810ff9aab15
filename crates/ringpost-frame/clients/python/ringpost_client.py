"""Talks to programs that use ringpost, with nothing but Python's standard library.

One file to take along; Python 3.8 or later. It follows SPEC.md, version 1, and knows no optional feature.

    from ringpost_client import Connection

    with Connection.connect("echo.sock") as connection:
        connection.send(b"hello")
        print(connection.recv())
        connection.finish()            # "that was all"; without it the peer sees an abort

From a shell, against `cargo run --example echo -- --path echo.sock`:

    python3 ringpost_client.py echo.sock hello world

`Connection` speaks the native profile, `LengthPrefixed` the length-prefixed one. Both also work as the
server's side, over a socket that `accept` has returned. The bytes profile needs no help: it is the socket.

Messages are bytes, or anything else that lends its bytes (memoryview). Calls block, and raise `socket.timeout`
after `timeout` seconds in which nothing moved; after a send that did not end the connection is closed. After a send that finds the peer gone (`BrokenPipeError`,
`ConnectionResetError`), every later one raises the same, and `recv` gives what the peer had sent, and then
its end. One thread uses a connection at a time. To wait for several, give each a thread: select on
`connection.socket` does not see messages that have come along with an earlier one. Two sides that send without receiving block each other once
the buffers between them are full: receive now and then.
"""

import collections
import os
import socket
import struct
import sys
import time

MAGIC = b"\xf5RNGPOST"
MSG, FIN, REJECT, PING, PONG, GOAWAY = range(1, 7)
MORE, EXT, CRITICAL = 1, 2, 4
FRAGMENTS, EXTENSIONS, DESCRIPTORS = 1, 2, 4

FRAME_BYTES_MAX = 16 << 20
"""Longest message that is taken, unless the caller says otherwise; the peer may take less."""
EARLY_BYTES_MAX = 1024
"""Longest message that may leave before the peer's HELLO is here."""
REJECT_BYTES_MAX = 1024
PING_BYTES_MAX = 64
TIMEOUT_SECONDS = 10.0
REJECT_SECONDS_MAX = 1.0
"""Longest attempt to tell a peer why it is refused."""
CONNECT_PAUSE_SECONDS_MIN = 0.001
"""Pause before a full backlog is tried again; it doubles."""
CONNECT_PAUSE_SECONDS_MAX = 0.02
WAITING_BYTES_MAX = 1 << 20
"""Frames that may come before the answer to a PING, with what waits already; one may go beyond."""
RECEIVE_BYTES = 1 << 16


class Error(Exception):
    """Anything that ends a connection other than its clean end."""


class Aborted(Error):
    """The peer is gone without a clean end; messages may be missing."""


class Truncated(Error):
    """The stream ended within HELLO, a header or a body."""


class Rejected(Error):
    """The peer refuses this connection; the text is its reason."""


class Refused(Error):
    """The peer sent what the format forbids. `name` is the name that SPEC.md gives it."""

    def __init__(self, name, detail=""):
        super().__init__(f"{name}: {detail}" if detail else name)
        self.name = name


# HELLO

_HELLO = struct.Struct("<8sHHIQQIHHQ16s")
HELLO_BYTES = _HELLO.size
_FIELDS = ("version_min", "version_max", "flags", "required", "supported", "frame_bytes_max",
           "fds_max", "abi", "instance")


def hello(**changes):
    """The fields of a HELLO; what is not named is what a side without optional features sends."""
    fields = dict(version_min=1, version_max=1, flags=0, required=0, supported=0,
                  frame_bytes_max=FRAME_BYTES_MAX, fds_max=0, abi=1, instance=1)
    unknown = set(changes) - set(fields)
    if unknown:
        raise TypeError(f"HELLO has no field {', '.join(sorted(unknown))}")
    fields.update(changes)
    return fields


def encode_hello(fields):
    return _HELLO.pack(MAGIC, *(fields[name] for name in _FIELDS), bytes(16))


def check_magic(start):
    """Refuses at the first byte that can't become HELLO."""
    if not (MAGIC.startswith(start[:8]) or MAGIC[::-1].startswith(start[:8])):
        raise Refused("BadMagic", f"the stream begins with {bytes(start[:8]).hex(' ')}")


def decode_hello(data):
    check_magic(data)
    magic, *values, reserved = _HELLO.unpack(data)
    if magic != MAGIC:
        raise Refused("ByteOrder", "the peer sends numbers in big-endian order")
    fields = dict(zip(_FIELDS, values))
    if fields["flags"] or any(reserved):
        raise Refused("Reserved", "bytes that must be zero are not")
    if not 1 <= fields["version_min"] <= fields["version_max"]:
        raise Refused("VersionRange", f"{fields['version_min']} to {fields['version_max']}")
    if fields["required"] & ~fields["supported"]:
        raise Refused("RequiredUnsupported", f"{fields['required']:#x}, {fields['supported']:#x}")
    if fields["frame_bytes_max"] < 1024:
        raise Refused("FrameLimitTooSmall", f"{fields['frame_bytes_max']}, at least 1024")
    return fields


def agree(local, peer):
    """What two sides agree on."""
    version = min(local["version_max"], peer["version_max"])
    least = max(local["version_min"], peer["version_min"])
    if version < least:
        raise Refused("NoCommonVersion", f"at most {version}, at least {least}")
    features = local["supported"] & peer["supported"]
    missing = (local["required"] | peer["required"]) & ~features
    if missing:
        raise Refused("MissingFeatures", f"{missing:#x}")
    if local["abi"] != peer["abi"]:
        raise Refused("AbiMismatch", f"{local['abi']} and {peer['abi']}")
    return dict(
        version=version, features=features,
        frame_bytes_max=min(local["frame_bytes_max"], peer["frame_bytes_max"]),
        fds_max=min(local["fds_max"], peer["fds_max"]) if features & DESCRIPTORS else 0,
        peer_instance=peer["instance"])


# Frames

_HEADER = struct.Struct("<IBBB")
_CONTROL_BYTES = {FIN: (0, 0), REJECT: (0, REJECT_BYTES_MAX), PING: (0, PING_BYTES_MAX),
                  PONG: (0, PING_BYTES_MAX), GOAWAY: (8, 8)}

Frame = collections.namedtuple("Frame", "kind flags fds body")


def _check(first):
    word = int.from_bytes(first, "little") ^ 0x0052494E47504F53
    return (word * 0x9E3779B97F4A7C15 % 2**64) >> 56


def encode_header(length, kind=MSG, flags=0, fds=0):
    first = _HEADER.pack(length, kind, flags, fds)
    return first + bytes((_check(first),))


def decode_header(data):
    """Length, kind, flags and number of descriptors, after the checks that need no agreement."""
    if data[7] != _check(data[:7]):
        raise Refused("HeaderCheck", bytes(data).hex(" "))
    length, kind, flags, fds = _HEADER.unpack_from(data)
    if kind == 0:
        raise Refused("ZeroKind")
    if flags & 0xF8:
        raise Refused("UnknownFlags", f"{flags:#x}")
    if kind > GOAWAY and flags & CRITICAL:
        raise Refused("UnknownCritical", f"kind {kind}")
    least, most = _CONTROL_BYTES.get(kind, (0, 2**32 - 1))
    if not least <= length <= most:
        raise Refused("ControlLength", f"kind {kind} with {length} bytes, {least} to {most}")
    return length, kind, flags, fds


class Decoder:
    """Takes what follows HELLO, cut anywhere, and gives frames. Does no input or output.

    It holds at most one frame, and what was fed behind it.
    """

    def __init__(self, agreement):
        self._agreement = agreement
        self._bytes = bytearray()
        self._header = None
        self._finished = False
        self._rejected = False
        self.position = 0
        """Where the first frame begins that `next` has not given."""

    def feed(self, data):
        self._bytes += data

    def next(self):
        """The next complete frame; None if more bytes are needed. Raises `Refused`."""
        if self._header is None:
            if len(self._bytes) < 8:
                return None
            header = decode_header(self._bytes[:8])
            self._admit(*header)
            self._header = header
        length, kind, flags, fds = self._header
        if len(self._bytes) < 8 + length:
            return None
        with memoryview(self._bytes) as view:
            body = bytes(view[8:8 + length])
        del self._bytes[:8 + length]
        self.position += 8 + length
        self._header = None
        self._finished |= kind == FIN
        self._rejected |= kind == REJECT
        return Frame(kind, flags, fds, body)

    def end(self):
        """What the end of the stream means here."""
        if self._bytes:
            return "Truncated"
        return "Rejected" if self._rejected else "Clean" if self._finished else "Aborted"

    def _admit(self, length, kind, flags, fds):
        features = self._agreement["features"]
        allowed = CRITICAL
        if kind == MSG:
            allowed |= (MORE if features & FRAGMENTS else 0) | (EXT if features & EXTENSIONS else 0)
        if flags & ~allowed:
            raise Refused("FlagsNotAllowed", f"{flags:#x} on kind {kind}")
        if fds > self._agreement["fds_max"]:
            raise Refused("DescriptorsNotAllowed", f"{fds}, at most {self._agreement['fds_max']}")
        if length > self._agreement["frame_bytes_max"]:
            raise Refused("FrameTooLarge", f"{length}, at most {self._agreement['frame_bytes_max']}")
        if self._rejected:
            raise Refused("AfterReject", f"kind {kind}")
        if self._finished and kind in (MSG, FIN):
            raise Refused("AfterFin", f"kind {kind}")


class PrefixDecoder:
    """Takes length-prefixed messages, cut anywhere, and gives them. Does no input or output."""

    def __init__(self, width_bytes=4, byte_order="big", frame_bytes_max=FRAME_BYTES_MAX):
        if width_bytes not in (2, 4, 8) or byte_order not in ("little", "big"):
            raise ValueError("lengths have 2, 4 or 8 bytes, little or big")
        self._width, self._order, self._limit = width_bytes, byte_order, frame_bytes_max
        self._bytes = bytearray()
        self.position = 0

    def feed(self, data):
        self._bytes += data

    def next(self):
        """The next message; None if more bytes are needed. Raises `Refused`."""
        if len(self._bytes) < self._width:
            return None
        length = int.from_bytes(self._bytes[:self._width], self._order)
        if length > self._limit:
            raise Refused("FrameTooLarge", f"{length}, at most {self._limit}")
        end = self._width + length
        if len(self._bytes) < end:
            return None
        with memoryview(self._bytes) as view:
            body = bytes(view[self._width:end])
        del self._bytes[:end]
        self.position += end
        return body

    def end(self):
        return "Truncated" if self._bytes else "Clean"

    def encode(self, body):
        if len(body) > min(self._limit, 2 ** (8 * self._width) - 1):
            raise ValueError(f"a message of {len(body)} bytes is too long")
        return len(body).to_bytes(self._width, self._order)


# Connections

_GONE = (BrokenPipeError, ConnectionResetError)
"""What a send raises if the peer has closed; the second one if it waited for room meanwhile."""


def _bytes_of(body):
    """Its bytes, whatever its items are. Raises TypeError if it lends none."""
    return memoryview(body).cast("B")


def _connect(sock, path, timeout):
    sock.settimeout(timeout)
    end = time.monotonic() + (float("inf") if timeout is None else timeout)
    pause = CONNECT_PAUSE_SECONDS_MIN
    while True:
        try:
            return sock.connect(path)
        except BlockingIOError:
            # The server's backlog is full, and for a socket with a timeout the kernel doesn't wait.
            left = end - time.monotonic()
            if left <= 0:
                raise socket.timeout("the server's backlog is full") from None
        time.sleep(min(pause, left))
        pause = min(2 * pause, CONNECT_PAUSE_SECONDS_MAX)


class _Stream:
    """What both kinds of connections do with their socket."""

    def __init__(self, sock, timeout):
        sock.settimeout(timeout)
        self.socket = sock
        self._reset = False
        self._gone = None
        """What ended the sending, if something has; every later send raises it again."""

    @classmethod
    def connect(cls, path, **options):
        """Connects to the socket at `path`; a name in the abstract namespace begins with @."""
        path = os.fspath(path)
        if isinstance(path, str) and path.startswith("@"):
            path = "\0" + path[1:]
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _connect(sock, path, options.get("timeout", TIMEOUT_SECONDS))
            return cls(sock, **options)
        except BaseException:
            sock.close()
            raise

    def close(self):
        """Closes the socket. Before a clean end was sent, the peer sees an abort."""
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __iter__(self):
        """All messages up to the clean end."""
        return iter(self.recv, None)

    def _receive(self, bytes_max=RECEIVE_BYTES):
        try:
            return self.socket.recv(bytes_max)
        except ConnectionResetError:
            # The peer closed with bytes unread that were on their way to it. What it had sent before
            # has been received: this comes behind it. The kernel says so once.
            self._reset = True
            return b""

    def _send(self, header, body=b""):
        try:
            self._write(header, body)
        except _GONE:
            self._look_for_reason()
            raise

    def _write(self, header, body=b""):
        if self._gone is not None:
            raise self._gone.with_traceback(None)
        parts = [b"".join((header, body))] if len(body) < RECEIVE_BYTES else [header, body]
        try:
            for part in parts:
                with memoryview(part) as view:
                    sent = 0
                    while sent < len(view):
                        # The timeout is for each of them: sendall has one for all.
                        sent += self.socket.send(view[sent:])
        except _GONE as error:
            # What the peer had sent before it went away can still be received.
            self._gone = error
            self._reset |= isinstance(error, ConnectionResetError)
            raise
        except BaseException:
            # Part of it may have left: what came behind it would be read as the rest.
            self.close()
            raise

    def _look_for_reason(self):
        """Raises why the peer went away, if it had said so. What it had sent besides stays for `recv`."""


class Connection(_Stream):
    """A connection that speaks the native profile, over a connected socket."""

    def __init__(self, sock, timeout=TIMEOUT_SECONDS, frame_bytes_max=FRAME_BYTES_MAX):
        super().__init__(sock, timeout)
        self._timeout = timeout
        self._local = hello(frame_bytes_max=frame_bytes_max,
                            instance=int.from_bytes(os.urandom(8), "little"))
        self._hello = b""
        self._decoder = None
        self._finished = False
        self._peer_finished = False
        self._end = None
        self._waiting = collections.deque()
        self._waiting_bytes = 0
        self.peer_takes = 2**64 - 1
        """How many messages the peer takes, counted from the first of this connection (GOAWAY)."""
        self.peer_going_away = False
        """Whether the peer has asked for an end of the connection (GOAWAY), as a server does that is being replaced:
        finish what is open, then `finish()`. Changes while receiving."""
        try:
            self._write(encode_hello(self._local))
        except _GONE:
            pass  # It may have said all it had to say.

    def agreement(self):
        """What was agreed; waits for the peer's HELLO."""
        if self._decoder is None:
            self._until_end(self._greet)
        return self._agreement

    def send(self, body):
        """Sends one message."""
        if self._finished:
            raise Error("finish() has been called: there are no more messages")
        # Released at the end, also with an error that is kept: what was lent can be changed again.
        with _bytes_of(body) as body:
            if self._decoder is None and len(body) <= EARLY_BYTES_MAX:
                self._send(encode_header(len(body)), body)
                return
            limit = self.agreement()["frame_bytes_max"]
            if len(body) > limit:
                raise ValueError(f"a message of {len(body)} bytes, the peer takes {limit}")
            self._send(encode_header(len(body)), body)

    def recv(self):
        """The next message; None once the peer has said that there are no more.

        Raises `Aborted`, `Truncated`, `Rejected` or `Refused` on any other end. Answers PINGs.
        """
        while not self._waiting and not self._peer_finished:
            self._take(self._frame())
        if not self._waiting:
            return None
        body = self._waiting.popleft()
        self._waiting_bytes -= 8 + len(body)
        return body

    def ping(self, body=b""):
        """Waits for the peer's answer to a PING; returns the seconds it took.

        Messages that come meanwhile are kept for `recv`.
        """
        body = bytes(_bytes_of(body))
        if len(body) > PING_BYTES_MAX:
            raise ValueError(f"{len(body)} bytes, at most {PING_BYTES_MAX}")
        start = time.monotonic()
        self._send(encode_header(len(body), PING), body)
        seen = self._waiting_bytes
        try:
            while True:
                frame = self._frame()
                if frame.kind == PONG and frame.body == body:
                    return time.monotonic() - start
                if seen > WAITING_BYTES_MAX:
                    raise Error(f"over {WAITING_BYTES_MAX} bytes of frames and no answer to PING")
                self._take(frame)
                seen += 8 + len(frame.body)
        except BaseException:
            # One PING may be unanswered at a time, and nobody waits for this one any more.
            self.close()
            raise

    def finish(self):
        """Says that there are no more messages. Receiving goes on."""
        if not self._finished or self._gone is not None:
            self._finished = True
            self._send(encode_header(0, FIN))

    def reject(self, reason):
        """Tells the peer why it is refused, if it still reads, and closes."""
        text = reason.encode()[:REJECT_BYTES_MAX].decode(errors="ignore").encode()
        try:
            self.socket.settimeout(REJECT_SECONDS_MAX)
            self.socket.sendall(encode_header(len(text), REJECT) + text)
        except OSError:
            pass
        self.close()

    def _take(self, frame):
        if frame.kind == MSG:
            self._waiting.append(frame.body)
            self._waiting_bytes += 8 + len(frame.body)
        elif frame.kind == FIN:
            self._peer_finished = True
        elif frame.kind == PING:
            try:
                self._write(encode_header(len(frame.body), PONG), frame.body)
            except _GONE:
                pass  # It has asked and closed; what it said besides counts.
        elif frame.kind == GOAWAY:
            self.peer_going_away = True
            self.peer_takes = min(self.peer_takes, int.from_bytes(frame.body, "little"))
        # A PONG that answers nothing and what a later version has besides are skipped.

    def _look_for_reason(self):
        seen = self._waiting_bytes
        # What a peer that is gone has sent is here. One that only reads no more may live, and say nothing.
        timeout, self._timeout = self._timeout, 0
        self._wait_at_most(0)
        try:
            while seen <= WAITING_BYTES_MAX:
                frame = self._frame()
                self._take(frame)
                seen += 8 + len(frame.body)
        except Rejected:
            raise
        except (Error, OSError):
            pass  # It said nothing.
        finally:
            self._timeout = timeout
            self._wait_at_most(timeout)

    def _wait_at_most(self, seconds):
        if self.socket.fileno() >= 0:
            self.socket.settimeout(seconds)

    def _frame(self):
        return self._until_end(self._next_frame)

    def _until_end(self, step):
        """What this step gives; an end that was met is met again."""
        if self._end is not None:
            raise self._end.with_traceback(None)
        try:
            return step()
        except Error as end:
            self._end = end
            if self._gone is None:
                self._gone = end
            raise

    def _next_frame(self):
        if self._decoder is None:
            self._greet()
        while True:
            try:
                frame = self._decoder.next()
            except Refused as refused:
                self.reject(f"{refused} (at byte {self._decoder.position} after HELLO)")
                raise
            if frame is not None:
                if frame.kind == REJECT:
                    self.close()
                    raise Rejected(_readable(frame.body))
                return frame
            data = self._receive()
            if not data:
                self.close()
                if self._decoder.end() == "Truncated":
                    raise Truncated("the stream ended within a frame")
                raise Aborted("the stream ended, and more was to come")
            self._decoder.feed(data)

    def _greet(self):
        end = None if self._timeout is None else time.monotonic() + self._timeout
        try:
            while len(self._hello) < HELLO_BYTES:
                if end is not None:
                    self._wait_at_most(max(end - time.monotonic(), 0.001))
                part = self._receive(HELLO_BYTES - len(self._hello))
                if not part:
                    self.close()
                    raise Truncated("the stream ended before the end of HELLO")
                self._hello += part
                check_magic(self._hello)
            self._agreement = agree(self._local, decode_hello(self._hello))
        except Refused as refused:
            if refused.name == "BadMagic":
                self.close()  # Such a peer can't read a REJECT.
            else:
                self.reject(str(refused))
            raise
        finally:
            self._wait_at_most(self._timeout)
        self._decoder = Decoder(self._agreement)


class LengthPrefixed(_Stream):
    """A connection with a length before each message, over a connected socket.

    Both sides must be set up alike: 2, 4 or 8 bytes, "little" or "big". The defaults are those of tokio's
    LengthDelimitedCodec. The clean end is the end of the stream between messages.
    """

    def __init__(self, sock, timeout=TIMEOUT_SECONDS, width_bytes=4, byte_order="big",
                 frame_bytes_max=FRAME_BYTES_MAX):
        super().__init__(sock, timeout)
        self._decoder = PrefixDecoder(width_bytes, byte_order, frame_bytes_max)

    def send(self, body):
        """Sends one message."""
        with _bytes_of(body) as body:
            self._send(self._decoder.encode(body), body)

    def recv(self):
        """The next message; None at the end of the stream.

        Raises `Truncated` or `Refused`, and `Aborted` if the peer has closed without reading all.
        """
        while True:
            try:
                body = self._decoder.next()
            except Refused:
                self.close()
                raise
            if body is not None:
                return body
            data = self._receive()
            if not data:
                if self._decoder.end() == "Truncated":
                    raise Truncated("the stream ended within a message")
                if self._reset:
                    raise Aborted("the peer closed without reading all that was sent to it")
                return None
            self._decoder.feed(data)

    def finish(self):
        """Says that there are no more messages. Receiving goes on."""
        self.socket.shutdown(socket.SHUT_WR)


def _readable(reason):
    text = reason.decode(errors="replace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def main(words):
    if not words or words[0] in ("-h", "--help"):
        print("usage: ringpost_client.py PATH [MESSAGE ...]\n"
              "Sends each message to the server at PATH, and prints what it answers until it ends.")
        return 0 if words else 2
    try:
        with Connection.connect(words[0]) as connection:
            for word in words[1:]:
                connection.send(os.fsencode(word))
            connection.finish()
            for answer in connection:
                print(answer.decode(errors="backslashreplace"))
    except (Error, OSError) as error:
        print(f"{words[0]}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
