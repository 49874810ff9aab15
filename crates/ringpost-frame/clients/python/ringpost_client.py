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

Messages are bytes, or anything else that lends its bytes (memoryview). One thread uses a connection at a
time. To wait for several, give each a thread: select on `connection.socket` does not see messages that
have come along with an earlier one. That socket has no time-out of its own, and needs to stay so.

**Waiting.** Calls block, and raise `socket.timeout` after `timeout` seconds in which nothing moved; None
waits for ever, 0 not at all. A receive times out if nothing came. A send that waits for room looks every
`timeout` seconds, and times out if the peer has read nothing since the look before, or since the wait
began: after one to two `timeout`. Linux tells what was read in pieces of up to 36 KiB.

While a `Connection` waits for room, it takes what arrives and keeps it for `recv`, up to
`WAITING_BYTES_MAX`, so two sides that send to each other don't block each other before that. A
`LengthPrefixed` does not: receive now and then.

**Errors.** These close the connection:

- `close` and `reject`;
- a `send`, `finish` or `ping` that timed out, or that an exception from elsewhere interrupted, such as
  KeyboardInterrupt: part of it may have left. Only a send that timed out while a long message waited for
  the peer's HELLO can be called again;
- a `ping` that met over `WAITING_BYTES_MAX` of frames and no answer;
- a `recv`, iteration or `agreement` that was interrupted so: what it had received is lost. One that timed
  out can be called again;
- whatever raises `Aborted`, `Truncated`, `Rejected` or `Refused`.

After that, every call raises an `Error` with the reason, except that `recv` of a `Connection` gives first
what was kept for it, unless receiving was interrupted. Other errors close nothing.

After a send that finds the peer gone (`BrokenPipeError`, `ConnectionResetError`), every later one raises
the same, and `recv` gives what the peer had sent, and then its end. That closes nothing either.
"""

import collections
import copy
import errno
import fcntl
import os
import select
import socket
import struct
import sys
import termios
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
"""Frames that are taken while something else is waited for, with what waits already; one may go beyond."""
RECEIVE_BYTES = 1 << 16


class Error(Exception):
    """Anything that ends a connection other than its clean end."""


class Aborted(Error):
    """There was no clean end: the peer is gone, or this side has closed. Messages may be missing."""


class Truncated(Error):
    """The stream ended within HELLO, a header or a body."""


class Rejected(Error):
    """The peer refuses this connection; the text is its reason."""


class Refused(Error):
    """The peer sent what the format forbids. `name` is the name that SPEC.md gives it.

    SecondPing, which it does not name, is a PING before there was room for the answer to the last one.
    """

    def __init__(self, name, detail=""):
        super().__init__(f"{name}: {detail}" if detail else name)
        self.name = name


class TimedOut(socket.timeout):
    """A time-out of this module's own. Handlers of signals raise others, and anywhere."""


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
        _check_limit(frame_bytes_max, 0)
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
_SEND_NOW = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)


def _bytes_of(body):
    """Its bytes, whatever its items are. Raises TypeError if it lends none."""
    return memoryview(body).cast("B")


def _check_limit(frame_bytes_max, least):
    if not isinstance(frame_bytes_max, int) or not least <= frame_bytes_max < 2**32:
        raise ValueError(f"frame_bytes_max is {frame_bytes_max!r}, not from {least} to {2**32 - 1}")


def _check_timeout(timeout):
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"timeout is {timeout!r}, neither None nor 0 seconds or more")


def _connect(sock, path, timeout):
    sock.settimeout(timeout)
    end = _end_of(timeout)
    pause = CONNECT_PAUSE_SECONDS_MIN
    while True:
        try:
            return sock.connect(path)
        except BlockingIOError:
            # The server's backlog is full, and for a socket with a timeout the kernel doesn't wait.
            left = end - time.monotonic()
            if left <= 0:
                raise TimedOut("the server's backlog is full") from None
        time.sleep(min(pause, left))
        pause = min(2 * pause, CONNECT_PAUSE_SECONDS_MAX)


def _end_of(seconds):
    """When a wait ends that begins now."""
    return float("inf") if seconds is None else time.monotonic() + seconds


class _Stream:
    """What both kinds of connections do with their socket. Nothing waits but `_wait`."""

    def __init__(self, sock, timeout):
        if sock.type != socket.SOCK_STREAM:
            raise ValueError("the socket is of another type than SOCK_STREAM")
        sock.setblocking(True)
        self.socket = sock
        self._timeout = timeout
        self._reset = False
        self._clean = False
        """Whether the stream has ended as it should."""
        self._end = None
        """What ended the receiving, if something has; every later receive raises it again."""
        self._gone = None
        """The same of the sending."""
        self._midway = False
        """Whether a frame is being sent: no other may begin."""
        self._asked = True
        """Whether the end of the stream may be met; a send to come tells first if the peer is gone."""
        self._answer = b""
        """What has not left of the answer to a PING."""
        self._waiting = collections.deque()
        """What came while something else was waited for."""
        self._waiting_bytes = 0
        self._finished = False

    @classmethod
    def connect(cls, path, **options):
        """Connects to the socket at `path`; a name in the abstract namespace begins with @."""
        cls._check_options(**options)
        path = os.fsencode(path)
        if path.startswith(b"@"):
            path = b"\0" + path[1:]
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

    def _go_on(self, known):
        """Raises this end again, if there is one. Only copies are: a traceback would hold the connection."""
        if known is not None:
            raise copy.copy(known)
        if self.socket.fileno() < 0:
            raise Aborted("the connection has been closed on this side")

    def _stop(self, reason):
        """Closes, and keeps the reason for later calls unless there is one."""
        self._end = self._end or copy.copy(reason)
        self._gone = self._gone or copy.copy(reason)
        self.socket.close()

    def _guard(self, step, *arguments):
        """What a step of receiving gives. Closes if it fails otherwise than by waiting for too long."""
        try:
            return step(*arguments)
        except TimedOut:
            raise  # Nothing is lost.
        except Error as error:
            self._stop(error)
            raise
        except BaseException as error:
            # It may have come between any two instructions.
            self._end, self._clean = None, False
            self._waiting.clear()
            self._waiting_bytes = 0
            self._stop(Aborted(f"receiving was interrupted by {type(error).__name__}: "
                               "what it had received is lost"))
            raise

    def _wait(self, events, end):
        """Waits for one of these events. Raises `TimedOut`."""
        poll = select.poll()
        poll.register(self.socket, events)
        while not poll.poll(1000 * max(0, min(end - time.monotonic(), 1_000_000))):
            if time.monotonic() >= end:
                raise TimedOut("timed out")

    def _receive(self, end, bytes_max=RECEIVE_BYTES):
        while True:
            try:
                return self.socket.recv(bytes_max, socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass
            except ConnectionResetError:
                # The peer closed with bytes unread that were on their way to it. What it had sent before
                # has been received: this comes behind it. The kernel says so once.
                self._reset = True
                return b""
            self._answer_now()
            room = select.POLLOUT if self._answer and not self._midway else 0
            self._wait(select.POLLIN | room, end)

    def _answer_now(self):
        """Sends of the answer to a PING what there is room for."""
        if self._answer and not self._midway:
            try:
                self._answer = self._answer[self.socket.send(self._answer, _SEND_NOW):]
            except BlockingIOError:
                pass
            except _GONE as error:
                self._lose(error)  # It has asked and closed; what it said besides counts.

    def _lose(self, error):
        """The peer takes no more. What it had sent before can still be received."""
        self._gone = copy.copy(error)
        self._reset |= isinstance(error, ConnectionResetError)
        self._answer = b""

    def _send(self, header, body=b""):
        try:
            self._write(header, body)
        except _GONE:
            self._look_for_reason()
            raise

    def _write(self, header, body=b""):
        self._go_on(self._gone)
        self._midway, self._asked = True, False
        try:
            header, self._answer = self._answer + header, b""
            parts = [b"".join((header, body))] if len(body) < RECEIVE_BYTES else [header, body]
            for part in parts:
                with memoryview(part) as view:
                    self._push(view)
            self._midway = False
            self._answer_now()
        except _GONE as error:
            self._lose(error)
            raise
        except BaseException as error:
            # Part of it may have left: what came behind it would be read as the rest.
            name = type(error).__name__
            how = "timed out" if name == "TimedOut" else f"was interrupted by {name}"
            self._stop(Aborted(f"sending {how}: part of it may have left"))
            raise
        finally:
            self._midway, self._asked = False, True

    def _push(self, view):
        """Sends all of it. Waits for room as long as the peer reads."""
        sent, unread, seen = 0, None, self._waiting_bytes
        while sent < len(view):
            try:
                sent += self.socket.send(view[sent:], _SEND_NOW)
                unread = None
                continue
            except BlockingIOError:
                pass
            asked = self._asked
            seen = self._meanwhile(seen)
            if asked != self._asked:
                continue
            if unread is None:
                unread, end = self._unread(), _end_of(self._timeout)
            try:
                more = seen <= WAITING_BYTES_MAX and not self._clean
                self._wait(select.POLLOUT | (select.POLLIN if more else 0), end)
            except TimedOut:
                # There is room for the poll only after much has been read.
                before, unread, end = unread, self._unread(), _end_of(self._timeout)
                if unread >= before:
                    raise

    def _unread(self):
        """The memory of what the peer has not read; always the same where the system does not tell."""
        try:
            return struct.unpack("i", fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4)))[0]
        except OSError:
            return 0

    def _meanwhile(self, seen):
        """Takes what arrives while a send waits. How much has been seen then."""
        return WAITING_BYTES_MAX + 1

    def _look_for_reason(self):
        """Raises why the peer went away, if it had said so. What it had sent besides stays for `recv`."""


class Connection(_Stream):
    """A connection that speaks the native profile, over a connected socket."""

    def __init__(self, sock, timeout=TIMEOUT_SECONDS, frame_bytes_max=FRAME_BYTES_MAX):
        self._check_options(timeout, frame_bytes_max)
        super().__init__(sock, timeout)
        self._local = hello(frame_bytes_max=frame_bytes_max,
                            instance=int.from_bytes(os.urandom(8), "little"))
        self._hello = b""
        self._decoder = None
        self._peer_finished = False
        self.peer_takes = 2**64 - 1
        """How many messages the peer takes, counted from the first of this connection (GOAWAY)."""
        self.peer_going_away = False
        """Whether the peer has asked for an end of the connection (GOAWAY), as a server does that is being replaced:
        finish what is open, then `finish()`. Changes while receiving."""
        try:
            self._write(encode_hello(self._local))
        except _GONE:
            pass  # It may have said all it had to say.

    @staticmethod
    def _check_options(timeout=TIMEOUT_SECONDS, frame_bytes_max=FRAME_BYTES_MAX, **_):
        _check_timeout(timeout)
        _check_limit(frame_bytes_max, 1024)

    def agreement(self):
        """What was agreed; waits for the peer's HELLO."""
        if self._decoder is None:
            self._guard(self._greet, self._timeout)
        return self._agreement

    def send(self, body):
        """Sends one message."""
        if self._finished:
            self._go_on(self._gone)
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

        Raises `Aborted`, `Truncated`, `Rejected` or `Refused` on any other end, also on one that comes
        behind the last message. Answers PINGs.
        """
        return self._guard(self._recv)

    def ping(self, body=b""):
        """Waits for the peer's answer to a PING; returns the seconds it took.

        Messages that come meanwhile are kept for `recv`. Raises `Error` if the peer has finished and need not
        answer. Any other failure once the PING has left closes the connection: one may be unanswered at a
        time, and nobody waits for this one any more.
        """
        body = bytes(_bytes_of(body))
        if len(body) > PING_BYTES_MAX:
            raise ValueError(f"{len(body)} bytes, at most {PING_BYTES_MAX}")
        seen = self._waiting_bytes
        if self._gone is None:
            # A PONG that is here already answers nothing.
            self._asked = False
            seen = self._guard(self._gather, seen)
            self._asked = True
            if self._peer_finished:
                raise Error("the peer has finished and need not answer")
        start = time.monotonic()
        self._send(encode_header(len(body), PING), body)
        try:
            answered = self._guard(self._await_pong, body, seen)
        except TimedOut:
            self._stop(Aborted("a PING was not answered in time"))
            raise
        if not answered:
            raise Error("the peer has finished and need not answer")
        return time.monotonic() - start

    def finish(self):
        """Says that there are no more messages. Receiving goes on."""
        if not self._finished or self._gone is not None:
            self._finished = True
            self._send(encode_header(0, FIN))

    def reject(self, reason):
        """Tells the peer why it is refused, if it still reads, and closes."""
        try:
            self._tell(reason)
        finally:
            self._stop(Aborted("reject() has been called"))

    def _tell(self, reason):
        if self._midway or self._gone is not None or self.socket.fileno() < 0:
            return
        text = reason.encode(errors="backslashreplace")[:REJECT_BYTES_MAX]
        text = text.decode(errors="ignore").encode()
        data = self._answer + encode_header(len(text), REJECT) + text
        end = _end_of(REJECT_SECONDS_MAX)
        try:
            while data:
                try:
                    data = data[self.socket.send(data, _SEND_NOW):]
                except BlockingIOError:
                    self._wait(select.POLLOUT, end)
        except (TimedOut, *_GONE):
            pass

    def _recv(self):
        while not self._waiting and not self._peer_finished:
            self._take(self._next_frame(self._timeout))
        if self._waiting:
            self._waiting_bytes -= 8 + len(self._waiting[0])
            return self._waiting.popleft()
        # What came behind FIN may say that it was no clean end. After `close` it was one.
        if self._end is not None or self.socket.fileno() >= 0:
            self._gather(0)
        return None

    def _ready(self):
        """The messages that are here. What ended the connection is for whoever comes next."""
        try:
            self._guard(self._gather, self._waiting_bytes)
        except Error:
            pass
        while self._waiting:
            yield self.recv()

    def _await_pong(self, body, seen):
        """Whether the answer came, and not the peer's FIN."""
        while not self._peer_finished:
            frame = self._next_frame(self._timeout)
            if frame.kind == PONG and frame.body == body:
                return True
            if seen > WAITING_BYTES_MAX:
                raise Error(f"over {WAITING_BYTES_MAX} bytes of frames and no answer to PING")
            self._take(frame)
            seen += 8 + len(frame.body)
        return False

    def _gather(self, seen):
        """Takes what is here, as far as the bound allows; waits for nothing. How much has been seen then."""
        try:
            while seen <= WAITING_BYTES_MAX:
                frame = self._next_frame(0)
                if frame is None:
                    break
                self._take(frame)
                seen += 8 + len(frame.body)
        except TimedOut:
            pass
        return seen

    def _meanwhile(self, seen):
        return self._guard(self._gather, seen)

    def _look_for_reason(self):
        # What a peer that is gone has sent is here. One that only reads no more may live, and say nothing.
        try:
            self._guard(self._gather, self._waiting_bytes)
        except Rejected:
            raise
        except Error:
            pass  # It said nothing.

    def _take(self, frame):
        if frame.kind == MSG:
            self._waiting.append(frame.body)
            self._waiting_bytes += 8 + len(frame.body)
        elif frame.kind == FIN:
            self._peer_finished = True
        elif frame.kind == GOAWAY:
            self.peer_going_away = True
            self.peer_takes = min(self.peer_takes, int.from_bytes(frame.body, "little"))
        # A PONG that answers nothing and what a later version has besides are skipped.

    def _next_frame(self, seconds):
        """The next frame, which may take so many seconds in which nothing comes; None at the clean end."""
        if self._clean:
            return None
        self._greet(seconds)
        self._answer_now()
        while True:
            try:
                frame = self._decoder.next()
                if frame is not None and frame.kind == PING:
                    self._keep_answer(frame.body)
            except Refused as refused:
                self._tell(f"{refused} (at byte {self._decoder.position} after HELLO)")
                raise
            if frame is not None:
                if frame.kind == REJECT:
                    raise Rejected(_readable(frame.body))
                return frame
            data = self._receive(_end_of(seconds))
            if data:
                self._decoder.feed(data)
                continue
            end = self._decoder.end()
            if end == "Clean":
                self._clean = True
                return None
            self._let_send_ask()
            if end == "Truncated":
                raise Truncated("the stream ended within a frame")
            raise Aborted("the stream ended, and more was to come")

    def _keep_answer(self, body):
        if self._answer:
            raise Refused("SecondPing", "there was no room yet for the answer to the one before")
        if self._gone is None:
            self._answer = encode_header(len(body), PONG) + body
            self._answer_now()

    def _let_send_ask(self):
        """Has the send that waits, or comes next, meet the end first: it tells whether the peer is gone."""
        if not self._asked:
            self._asked = True
            raise TimedOut

    def _greet(self, seconds):
        """Waits for the peer's HELLO, so many seconds for all of it."""
        self._go_on(self._end)
        if self._decoder is not None:
            return
        end = _end_of(seconds)
        try:
            while len(self._hello) < HELLO_BYTES:
                part = self._receive(end, HELLO_BYTES - len(self._hello))
                if not part:
                    self._let_send_ask()
                    raise Truncated("the stream ended before the end of HELLO")
                self._hello += part
                check_magic(self._hello)
            self._agreement = agree(self._local, decode_hello(self._hello))
        except Refused as refused:
            if refused.name != "BadMagic":  # Such a peer can't read a REJECT.
                self._tell(str(refused))
            raise
        self._decoder = Decoder(self._agreement)


class LengthPrefixed(_Stream):
    """A connection with a length before each message, over a connected socket.

    Both sides must be set up alike: 2, 4 or 8 bytes, "little" or "big". The defaults are those of tokio's
    LengthDelimitedCodec. The clean end is the end of the stream between messages.
    """

    def __init__(self, sock, timeout=TIMEOUT_SECONDS, width_bytes=4, byte_order="big",
                 frame_bytes_max=FRAME_BYTES_MAX):
        self._decoder = self._check_options(timeout, width_bytes, byte_order, frame_bytes_max)
        super().__init__(sock, timeout)

    @staticmethod
    def _check_options(timeout=TIMEOUT_SECONDS, width_bytes=4, byte_order="big",
                       frame_bytes_max=FRAME_BYTES_MAX, **_):
        _check_timeout(timeout)
        return PrefixDecoder(width_bytes, byte_order, frame_bytes_max)

    def close(self):
        """Closes the socket. That is a clean end for a peer whose messages were all received, as `finish` is."""
        super().close()

    def send(self, body):
        """Sends one message."""
        if self._finished:
            self._go_on(self._gone)
            raise Error("finish() has been called: there are no more messages")
        with _bytes_of(body) as body:
            self._send(self._decoder.encode(body), body)

    def recv(self):
        """The next message; None at the end of the stream.

        Raises `Truncated` or `Refused`, and `Aborted` if the peer has closed without reading all.
        """
        return self._guard(self._recv)

    def finish(self):
        """Says that there are no more messages. Receiving goes on."""
        if self.socket.fileno() < 0:
            self._go_on(self._gone)
        self._finished = True
        self.socket.shutdown(socket.SHUT_WR)

    def _recv(self):
        while not self._clean:
            self._go_on(self._end)
            body = self._decoder.next()
            if body is not None:
                return body
            data = self._receive(_end_of(self._timeout))
            if data:
                self._decoder.feed(data)
            elif self._decoder.end() == "Truncated":
                raise Truncated("the stream ended within a message")
            elif self._reset:
                raise Aborted("the peer closed without reading all that was sent to it")
            else:
                self._clean = True
        return None


def _readable(reason):
    text = reason.decode(errors="replace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# From a shell

class _Failed(Exception):
    """Ends the program with this line, or without one."""


def _print(text):
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        print(text, flush=True)
    except (OSError, UnicodeError) as error:
        if sys.stdout is not None and isinstance(error, OSError):
            # What its buffer holds would fail again at the exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        line = f"standard output: {type(error).__name__}: {error}"
        # Whoever read the pipe has had enough, and needs no complaint.
        raise _Failed("" if isinstance(error, BrokenPipeError) else line) from None


def _talk(path, words):
    with Connection.connect(path) as connection:
        for number, word in enumerate(words, 1):
            try:
                connection.send(os.fsencode(word))
            except ValueError as error:
                raise _Failed(f"message {number}: {error}") from None
            for answer in connection._ready():
                _print(answer.decode(errors="backslashreplace"))
        connection.finish()
        for answer in connection:
            _print(answer.decode(errors="backslashreplace"))


def main(words):
    try:
        if not words or words[0] in ("-h", "--help"):
            _print("usage: ringpost_client.py PATH [MESSAGE ...]\n"
                   "Sends each message to the server at PATH, and prints what it answers until it ends.")
            return 0 if words else 2
        _talk(words[0], words[1:])
        return 0
    except _Failed as failed:
        line = str(failed)
    except (Error, OSError) as error:
        line = f"{words[0]}: {type(error).__name__}: {error}"
    if line:
        print(line, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
