"""The Python client against the test vectors, and against itself over sockets.

    python3 test_ringpost_client.py
"""

import array
import collections
import contextlib
import gc
import json
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import warnings
import weakref

import ringpost_client as client
from ringpost_client import (Aborted, Connection, Decoder, Error, LengthPrefixed, PrefixDecoder,
                             Refused, Rejected, Truncated, encode_header)

HERE = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(HERE, "../../vectors/vectors.json"), encoding="utf-8") as file:
    VECTORS = json.load(file)

WIDE = ("required", "supported", "instance", "features", "peer_instance")


def numbers(fields):
    """64-bit fields are strings in the file."""
    return {k: int(v, 16) if k in WIDE else v for k, v in fields.items()}


def outcome(function, *arguments):
    try:
        return function(*arguments), None
    except Refused as refused:
        return None, refused.name


def read(decoder, parts):
    """All that a decoder makes of a stream in these parts, which then ends."""
    found, error = [], None
    try:
        for part in parts:
            decoder.feed(part)
            while (frame := decoder.next()) is not None:
                found.append(frame)
    except Refused as refused:
        error = refused.name
    return found, error, None if error else decoder.end(), decoder.position


def cuts(data):
    """The stream whole, byte by byte, and in two parts, cut everywhere if it is short."""
    yield [data]
    yield [data[i:i + 1] for i in range(len(data))]
    for at in range(0, len(data), 1 + len(data) // 200):
        yield [data[:at], data[at:]]


class Vectors(unittest.TestCase):
    def test_all_lists_are_known(self):
        known = {"hello", "agreements", "headers", "streams", "length_prefixed"}
        # Of sockets that the client does not speak on.
        known |= {"packets", "prefixed_packets"}
        self.assertEqual(set(VECTORS), known)
        self.assertTrue(all(VECTORS.values()))

    def test_hello(self):
        for vector in VECTORS["hello"]:
            with self.subTest(vector["name"]):
                data = bytes.fromhex(vector["bytes"])
                fields, error = outcome(client.decode_hello, data)
                self.assertEqual(error, vector["error"])
                if error is None:
                    self.assertEqual(fields, numbers(vector["fields"]))
                    self.assertEqual(client.encode_hello(fields), data)

    def test_agreements(self):
        for vector in VECTORS["agreements"]:
            with self.subTest(vector["name"]):
                sides = [client.decode_hello(bytes.fromhex(vector[s])) for s in ("local", "peer")]
                agreement, error = outcome(client.agree, *sides)
                self.assertEqual(error, vector["error"])
                if error is None:
                    self.assertEqual(agreement, numbers(vector["agreement"]))

    def test_headers(self):
        for vector in VECTORS["headers"]:
            with self.subTest(vector["bytes"]):
                data = bytes.fromhex(vector["bytes"])
                fields, error = outcome(client.decode_header, data)
                self.assertEqual(error, vector["error"])
                if error is None:
                    expected = vector["fields"]
                    names = ("len", "kind", "flags", "fds")
                    self.assertEqual(fields, tuple(expected[name] for name in names))
                    self.assertEqual(encode_header(*fields), data)

    def test_streams(self):
        for vector in VECTORS["streams"]:
            data = bytes.fromhex(vector["bytes"])
            expected = [(f["kind"], f["flags"], f["fds"], bytes.fromhex(f["body"]))
                        for f in vector["frames"]]
            for parts in cuts(data):
                with self.subTest(vector["name"], parts=len(parts)):
                    found, error, end, position = read(Decoder(numbers(vector["agreement"])), parts)
                    self.assertEqual(found, expected)
                    self.assertEqual((error, end), (vector["error"], vector["end"]))
                    self.assertEqual(position, vector["position"])
            again = b"".join(encode_header(len(b), k, f, n) + b for k, f, n, b in expected)
            self.assertEqual(again, data[:vector["position"]])

    def test_length_prefixed(self):
        for vector in VECTORS["length_prefixed"]:
            data = bytes.fromhex(vector["bytes"])
            names = ("width_bytes", "byte_order", "frame_bytes_max")
            options = {name: vector[name] for name in names}
            for parts in cuts(data):
                with self.subTest(vector["name"], **options, parts=len(parts)):
                    found, error, end, position = read(PrefixDecoder(**options), parts)
                    self.assertEqual(found, [bytes.fromhex(body) for body in vector["frames"]])
                    self.assertEqual((error, end), (vector["error"], vector["end"]))
                    self.assertEqual(position, vector["position"])
            decoder = PrefixDecoder(**options)
            again = b"".join(decoder.encode(body) + body for body in found)
            self.assertEqual(again, data[:position])


class Peer:
    """The other end of a connection, by hand."""

    def __init__(self, **options):
        ours, self.socket = socket.socketpair()
        self.socket.settimeout(10)
        self.connection = Connection(ours, **options)
        self.read(64)

    def greet(self, **changes):
        self.socket.sendall(client.encode_hello(client.hello(**changes)))
        return self

    def send(self, kind, body=b"", flags=0):
        self.socket.sendall(encode_header(len(body), kind, flags) + body)

    def read(self, count):
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                break
            data += part
        return data

    def read_frame(self):
        """Kind and body; None at the end of the stream."""
        header = self.read(8)
        if not header:
            return None
        length, kind, _, _ = client.decode_header(header)
        return kind, self.read(length)

    def fill(self):
        """Sends whole messages for the connection until there is room for none. How many those were."""
        with socket.socket(fileno=os.dup(self.connection.socket.fileno())) as ours:
            for count in range(100_000):
                try:
                    ours.send(encode_header(1000) + bytes(1000), socket.MSG_DONTWAIT)
                except BlockingIOError:
                    return count

    def drain(self, count):
        """Reads what `fill` has sent."""
        for _ in range(count):
            assert self.read_frame() == (client.MSG, bytes(1000))

    def close(self):
        self.socket.close()
        self.connection.close()


@contextlib.contextmanager
def running(*functions):
    """Runs these meanwhile, and waits for them. Raises what one of them raises."""
    errors = []

    def run(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=[each], daemon=True) for each in functions]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
    for error in errors:
        raise error


@contextlib.contextmanager
def alarm(error, seconds=0.05):
    """Raises this in the main thread, as a handler of a signal does."""

    def handler(*_):
        raise error

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def patch(test, name, value):
    """Gives a constant of the module another value, for one test."""
    test.addCleanup(setattr, client, name, getattr(client, name))
    setattr(client, name, value)


class Connecting(unittest.TestCase):
    def full(self):
        """A server that has one connection waiting, has room for no other, and accepts nobody."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        server = socket.socket(socket.AF_UNIX)
        self.addCleanup(server.close)
        path = os.path.join(directory.name, "full.sock")
        server.bind(path)
        server.listen(0)
        first = Connection.connect(path)
        self.addCleanup(first.close)
        return server, path

    def test_waits_for_room_in_a_full_backlog(self):
        server, path = self.full()
        timer = threading.Timer(0.1, lambda: server.accept()[0].close())
        timer.start()
        self.addCleanup(timer.join)
        with Connection.connect(path) as connection:
            connection.send(b"late")
            accepted, _ = server.accept()
            with accepted:
                self.assertEqual(accepted.recv(64), client.encode_hello(connection._local))

    def test_gives_up_on_a_full_backlog_after_the_timeout(self):
        _, path = self.full()
        for kind in (Connection, LengthPrefixed):
            for timeout in (0.1, 0.0):
                start = time.monotonic()
                with self.assertRaises(socket.timeout):
                    kind.connect(path, timeout=timeout)
                self.assertGreaterEqual(time.monotonic() - start, timeout)


class Connections(unittest.TestCase):
    def peer(self, **options):
        peer = Peer(**options)
        self.addCleanup(peer.close)
        return peer

    def test_a_conversation(self):
        peer = self.peer().greet()
        for body in (b"", b"hello", bytes(range(256)) * 200):
            peer.connection.send(body)
            self.assertEqual(peer.read_frame(), (client.MSG, body))
            peer.send(client.MSG, body)
            self.assertEqual(peer.connection.recv(), body)
        peer.connection.finish()
        peer.connection.finish()
        self.assertEqual(peer.read_frame(), (client.FIN, b""))
        with self.assertRaises(Error):
            peer.connection.send(b"late")
        peer.send(client.MSG, b"last")
        peer.send(client.FIN)
        self.assertEqual(list(peer.connection), [b"last"])
        self.assertIsNone(peer.connection.recv())

    def test_short_messages_leave_before_the_greeting_and_long_ones_do_not(self):
        peer = self.peer()
        peer.connection.send(b"x" * 1024)
        self.assertEqual(peer.read_frame(), (client.MSG, b"x" * 1024))
        peer.greet(frame_bytes_max=2000)
        peer.connection.send(b"y" * 2000)
        self.assertEqual(peer.read_frame(), (client.MSG, b"y" * 2000))
        with self.assertRaisesRegex(ValueError, "2001 bytes, the peer takes 2000"):
            peer.connection.send(b"z" * 2001)

    def test_answers_pings_and_skips_what_it_does_not_know(self):
        peer = self.peer().greet()
        peer.send(client.PING, b"tick")
        peer.send(client.PONG, b"unasked")
        peer.send(0x42, b"later")
        peer.send(client.GOAWAY, struct.pack("<Q", 3))
        peer.send(client.GOAWAY, struct.pack("<Q", 9))
        peer.send(client.MSG, b"message")
        self.assertEqual(peer.connection.recv(), b"message")
        self.assertEqual(peer.read_frame(), (client.PONG, b"tick"))
        self.assertEqual(peer.connection.peer_takes, 3)

    def test_sees_that_the_peer_wants_an_end(self):
        peer = self.peer().greet()
        self.assertFalse(peer.connection.peer_going_away)
        # What ringpost says: whatever still comes is taken.
        peer.send(client.GOAWAY, struct.pack("<Q", 2**64 - 1))
        peer.send(client.MSG, b"message")
        self.assertEqual(peer.connection.recv(), b"message")
        self.assertTrue(peer.connection.peer_going_away)
        self.assertEqual(peer.connection.peer_takes, 2**64 - 1)

    def test_sends_the_bytes_of_whatever_lends_them(self):
        peer = self.peer().greet()
        numbers = array.array("I", range(3000))
        bodies = [bytearray(b"bytes"), memoryview(b"a view"), numbers, memoryview(numbers)[5:70]]
        for body in bodies:
            peer.connection.send(body)
            self.assertEqual(peer.read_frame(), (client.MSG, bytes(memoryview(body).cast("B"))))
        with self.assertRaises(TypeError):
            peer.connection.send("text")
        # Nothing has left, and it goes on.
        peer.connection.send(b"after")
        self.assertEqual(peer.read_frame(), (client.MSG, b"after"))

    def test_lets_go_of_what_it_could_not_send(self):
        for length in (100, 200_000):
            peer = self.peer().greet()
            peer.connection.agreement()
            peer.socket.close()
            body = bytearray(length)
            with self.assertRaises(client._GONE) as caught:
                peer.connection.send(body)
            body.clear()
            self.assertIsNotNone(caught.exception)

    def test_the_timeout_is_for_a_standstill(self):
        peer = self.peer(timeout=0.2).greet()
        body = bytes(2 << 20)

        def read():
            left = 8 + len(body)
            while left > 0:
                time.sleep(0.02)
                left -= len(peer.socket.recv(min(left, 100_000)))

        reader = threading.Thread(target=read)
        reader.start()
        self.addCleanup(reader.join)
        start = time.monotonic()
        peer.connection.send(body)
        self.assertGreater(time.monotonic() - start, 0.2)

    def test_pings_and_keeps_what_comes_meanwhile(self):
        peer = self.peer().greet()
        for body in (b"one", b"two"):
            peer.send(client.MSG, body)
        peer.send(client.PING, b"yours")
        frames = []

        def answer():
            frames.extend(peer.read_frame() for _ in range(2))
            peer.send(client.MSG, b"three")
            peer.send(client.PONG, b"mine")

        with running(answer):
            self.assertGreaterEqual(peer.connection.ping(b"mine"), 0)
        self.assertEqual(frames, [(client.PONG, b"yours"), (client.PING, b"mine")])
        self.assertEqual([peer.connection.recv() for _ in range(3)], [b"one", b"two", b"three"])

    def test_a_ping_keeps_no_flood(self):
        patch(self, "WAITING_BYTES_MAX", 200_000)
        for flood in (encode_header(60_000) + bytes(60_000),
                      encode_header(0) * 7_500,
                      (encode_header(8, 0x42) + bytes(8)) * 3_750,
                      encode_header(0, client.PONG) * 7_500):
            peer = self.peer().greet()

            def send():
                try:
                    for _ in range(100):
                        peer.socket.sendall(flood)
                except OSError:
                    pass

            thread = threading.Thread(target=send)
            thread.start()
            try:
                with self.assertRaisesRegex(Error, "no answer to PING"):
                    peer.connection.ping(b"mine")
            finally:
                peer.connection.close()
                thread.join()

    def test_one_message_before_the_answer_to_a_ping_may_go_beyond_the_bound(self):
        peer = self.peer().greet()
        long = bytes(client.WAITING_BYTES_MAX + 1)

        def answer():
            peer.read_frame()
            peer.send(client.MSG, long)
            peer.send(client.PONG, b"mine")

        thread = threading.Thread(target=answer)
        thread.start()
        self.addCleanup(thread.join)
        self.assertGreaterEqual(peer.connection.ping(b"mine"), 0)
        self.assertEqual(peer.connection.recv(), long)

    def test_pings_keep_no_flood_of_messages_that_nobody_receives(self):
        patch(self, "WAITING_BYTES_MAX", 200_000)
        peer = self.peer().greet()
        messages = encode_header(0) * 4_000
        count = 2 * client.WAITING_BYTES_MAX // len(messages)

        def answer():
            with contextlib.suppress(OSError):
                while peer.read_frame():
                    peer.socket.sendall(messages + encode_header(0, client.PONG))

        with running(answer), self.assertRaisesRegex(Error, "no answer to PING"):
            for _ in range(count):
                peer.connection.ping()

    def test_ends(self):
        for frames, error in (((), Aborted), (((client.MSG, b"x"),), Aborted)):
            peer = self.peer().greet()
            for frame in frames:
                peer.send(*frame)
            peer.socket.close()
            for _ in frames:
                peer.connection.recv()
            with self.assertRaises(error):
                peer.connection.recv()
        for start in (b"", client.MAGIC, client.encode_hello(client.hello()) + b"\2\0"):
            peer = self.peer()
            peer.socket.sendall(start)
            peer.socket.close()
            with self.assertRaises(Truncated):
                peer.connection.recv()
        peer = self.peer().greet()
        peer.send(client.REJECT, b"no\nroom \xff\x1b[2J")
        with self.assertRaises(Rejected) as raised:
            peer.connection.recv()
        self.assertEqual(str(raised.exception), "no\\nroom \ufffd\\x1b[2J")

    def test_a_reset_within_the_greeting_is_a_cut(self):
        for start in (b"", client.MAGIC):
            for call in (Connection.recv, Connection.agreement):
                ours, other = socket.socketpair()
                with Connection(ours) as connection, other:
                    other.sendall(start)
                    # Our HELLO is on the way and not read.
                    other.close()
                    with self.assertRaises(Truncated):
                        call(connection)

    def test_an_end_within_the_greeting_is_met_again(self):
        def send(connection):
            connection.send(bytes(client.EARLY_BYTES_MAX + 1))

        for start in (b"", client.MAGIC):
            for call in (Connection.recv, Connection.agreement, send):
                peer = self.peer()
                peer.socket.sendall(start)
                peer.socket.shutdown(socket.SHUT_WR)
                for again in (call, call, Connection.agreement, Connection.recv, send):
                    with self.assertRaises(Truncated):
                        again(peer.connection)
                with self.assertRaises(Truncated):
                    peer.connection.send(b"short")

    def test_a_failed_send_fails_again(self):
        for greets in (False, True):
            peer = self.peer()
            if greets:
                peer.greet()
            peer.socket.close()
            for _ in range(3):
                with self.assertRaises(BrokenPipeError):
                    peer.connection.send(b"question")
            with self.assertRaises(Aborted if greets else Truncated):
                peer.connection.recv()
            with self.assertRaises(BrokenPipeError):
                peer.connection.finish()

    def test_the_look_for_a_reason_waits_for_nothing(self):
        greeting = client.encode_hello(client.hello())
        for timeout in (2, None):
            for cut in (0, 5, len(greeting)):
                peer = self.peer(timeout=timeout)
                peer.socket.sendall(greeting[:cut])
                # It reads no more, and lives.
                peer.socket.shutdown(socket.SHUT_RD)
                timer = threading.Timer(1, peer.socket.shutdown, [socket.SHUT_WR])
                timer.start()
                start = time.monotonic()
                for _ in range(2):
                    with self.assertRaises(BrokenPipeError):
                        peer.connection.send(b"question")
                self.assertLess(time.monotonic() - start, 0.5)
                timer.cancel()
                timer.join()
                late = greeting[cut:] + encode_header(4) + b"late"
                timer = threading.Timer(0.1, peer.socket.sendall, [late])
                timer.start()
                self.assertEqual(peer.connection.recv(), b"late")
                timer.join()

    def test_a_failed_answer_to_a_ping_loses_nothing(self):
        peer = self.peer().greet()
        peer.connection.finish()
        for frame in ((client.PING, b"tick"), (client.MSG, b"last"), (client.FIN, b"")):
            peer.send(*frame)
        peer.socket.close()
        self.assertEqual(list(peer.connection), [b"last"])

    def test_a_refusal_is_told_even_if_the_peer_is_gone_before_a_send(self):
        for frames, error in (
            (((client.REJECT, b"no room"),), Rejected),
            (((client.MSG, b"1"), (client.PING, b""), (client.REJECT, b"no room")), Rejected),
            (((client.MSG, b"1"),), BrokenPipeError),
        ):
            peer = self.peer().greet()
            for frame in frames:
                peer.send(*frame)
            peer.socket.close()
            with self.assertRaises(error):
                peer.connection.send(b"question")
        peer = self.peer()
        peer.socket.close()
        with self.assertRaises(BrokenPipeError):
            peer.connection.send(b"question")

    def test_what_came_before_a_failed_send_can_be_received(self):
        answers = ((client.MSG, b"1"), (client.PING, b"tick"), (client.MSG, b""))
        for timeout in (10, None):
            for last, error in (
                ((client.FIN, b""), None),
                (None, Aborted),
                ((client.REJECT, b"no room"), Rejected),
            ):
                for failed in (Connection.send, Connection.ping):
                    finished = failed is Connection.ping and last and last[0] == client.FIN
                    told = Error if finished else error if error is Rejected else BrokenPipeError
                    with self.subTest(timeout=timeout, last=last, failed=failed.__name__):
                        peer = self.peer(timeout=timeout).greet()
                        for frame in answers + ((last,) if last else ()):
                            peer.send(*frame)
                        peer.socket.close()
                        with self.assertRaises(told):
                            failed(peer.connection, b"question")
                        self.assertEqual([peer.connection.recv() for _ in range(2)], [b"1", b""])
                        for _ in range(2):
                            if error is None:
                                self.assertIsNone(peer.connection.recv())
                            else:
                                with self.assertRaises(error):
                                    peer.connection.recv()

    def test_a_server_that_stops_in_order_loses_no_answers(self):
        with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as server:
            path = os.path.join(directory, "stops.sock")
            server.bind(path)
            server.listen()

            def serve():
                with Connection(server.accept()[0]) as connection:
                    for _ in range(20):
                        connection.send(connection.recv())
                    connection.finish()

            thread = threading.Thread(target=serve)
            thread.start()
            with Connection.connect(path) as connection:
                for number in range(20):
                    connection.send(b"%d" % number)
                thread.join()
                with self.assertRaises(BrokenPipeError):
                    connection.send(b"one more")
                self.assertEqual(list(connection), [b"%d" % number for number in range(20)])

    def test_more_than_is_looked_through_can_be_received_after_a_failed_send(self):
        peer = self.peer().greet()
        bodies = [bytes([number]) * 2_000 for number in range(5)]
        for body in bodies:
            peer.send(client.MSG, body)
        peer.send(client.FIN)
        peer.socket.close()
        patch(self, "WAITING_BYTES_MAX", 5_000)
        for _ in range(3):
            with self.assertRaises(BrokenPipeError):
                peer.connection.send(b"question")
        self.assertLess(len(peer.connection._waiting), len(bodies))
        self.assertEqual(list(peer.connection), bodies)

    def test_a_send_that_a_reset_interrupts_loses_no_answers(self):
        # Without a timeout it is the send that meets the reset, while it waits for room.
        for last, error in (((client.FIN, b""), None), ((client.REJECT, b"no room"), Rejected)):
            peer = self.peer(timeout=None).greet()
            peer.send(client.MSG, b"answer")
            peer.send(*last)
            timer = threading.Timer(0.1, peer.socket.close)
            timer.start()
            self.addCleanup(timer.join)
            with self.assertRaises(error or (BrokenPipeError, ConnectionResetError)):
                while True:
                    peer.connection.send(bytes(1000))
            self.assertEqual(peer.connection.recv(), b"answer")
            with self.assertRaises(error) if error else contextlib.nullcontext():
                self.assertIsNone(peer.connection.recv())

    def test_a_peer_that_is_gone_at_the_start_was_heard(self):
        ours, other = socket.socketpair()
        hello = client.encode_hello(client.hello())
        other.sendall(hello + encode_header(3) + b"all" + encode_header(0, client.FIN))
        other.close()
        with Connection(ours) as connection:
            self.assertEqual(list(connection), [b"all"])

    def test_a_peer_that_breaks_the_rules_is_told(self):
        peer = self.peer(frame_bytes_max=2000).greet()
        peer.send(client.MSG, bytes(2001))
        with self.assertRaises(Refused) as raised:
            peer.connection.recv()
        self.assertEqual(raised.exception.name, "FrameTooLarge")
        kind, reason = peer.read_frame()
        self.assertEqual(kind, client.REJECT)
        self.assertIn(b"2001, at most 2000", reason)
        self.assertEqual(peer.read(1), b"")

        peer = self.peer().greet(version_min=2, version_max=3)
        with self.assertRaises(Refused) as raised:
            peer.connection.agreement()
        self.assertEqual(raised.exception.name, "NoCommonVersion")
        self.assertEqual(peer.read_frame()[0], client.REJECT)

        peer = self.peer()
        hello = client.encode_hello(client.hello())
        peer.socket.sendall(hello[7::-1] + hello[8:])
        with self.assertRaises(Refused) as raised:
            peer.connection.agreement()
        self.assertEqual(raised.exception.name, "ByteOrder")
        self.assertEqual(peer.read_frame()[0], client.REJECT)

    def test_a_peer_with_another_protocol_is_refused_at_its_first_byte(self):
        peer = self.peer()
        peer.socket.sendall(b"S")
        with self.assertRaises(Refused) as raised:
            peer.connection.recv()
        self.assertEqual(raised.exception.name, "BadMagic")
        self.assertEqual(peer.read(100), b"")

    def test_a_silent_peer_is_not_waited_for(self):
        peer = self.peer(timeout=0.05)
        with self.assertRaises(socket.timeout):
            peer.connection.recv()

    def test_a_peer_that_does_not_read_is_not_waited_for(self):
        peer = self.peer(timeout=0.05).greet()
        with self.assertRaises(socket.timeout):
            while True:
                peer.connection.send(bytes(50_000))
        self.assertEqual(peer.connection.socket.fileno(), -1, "closed: half a message has left")

    def test_length_prefixed(self):
        for width in (2, 4, 8):
            for order in ("little", "big"):
                left, right = (LengthPrefixed(s, width_bytes=width, byte_order=order)
                               for s in socket.socketpair())
                with left, right:
                    for body in (b"", b"hello", b"x" * 60_000):
                        left.send(body)
                        self.assertEqual(right.recv(), body)
                    left.finish()
                    self.assertIsNone(right.recv())
                    right.socket.sendall(b"\1")
                    right.socket.shutdown(socket.SHUT_WR)
                    with self.assertRaises(Truncated):
                        left.recv()
        with self.assertRaises(ValueError):
            PrefixDecoder(width_bytes=2).encode(bytes(65_536))

    def test_length_prefixed_loses_no_answers_to_a_failed_send(self):
        for request, error in ((b"", None), (b"unread", Aborted)):
            for timeout in (10, None):
                ours, other = socket.socketpair()
                with LengthPrefixed(ours, timeout=timeout) as connection, other:
                    if request:
                        connection.send(request)
                    other.sendall(b"\0\0\0\1a\0\0\0\0")
                    other.close()
                    with self.assertRaises(BrokenPipeError):
                        connection.send(b"question")
                    self.assertEqual([connection.recv() for _ in range(2)], [b"a", b""])
                    with self.assertRaises(error) if error else contextlib.nullcontext():
                        self.assertIsNone(connection.recv())
        ours, other = socket.socketpair()
        with LengthPrefixed(ours, timeout=None) as connection:
            timer = threading.Timer(0.1, other.close)
            timer.start()
            self.addCleanup(timer.join)
            with self.assertRaises((BrokenPipeError, ConnectionResetError)):
                while True:
                    connection.send(bytes(1000))
            with self.assertRaises(Aborted):
                connection.recv()

    def test_length_prefixed_tells_a_reset_from_the_end(self):
        for start, received, error in (
            (b"", [], Aborted),
            (b"\0\0\0\1a\0\0\0\0", [b"a", b""], Aborted),
            (b"\0\0\0\1a\0\0", [b"a"], Truncated),
        ):
            ours, other = socket.socketpair()
            with LengthPrefixed(ours) as connection, other:
                connection.send(b"a request that is not read")
                other.sendall(start)
                other.close()
                self.assertEqual([connection.recv() for _ in received], received)
                for _ in range(2):
                    with self.assertRaises(error):
                        connection.recv()


class Interruption(BaseException):
    """As KeyboardInterrupt, which would end the tests."""


class Interrupted(unittest.TestCase):
    """What signal handlers do to a receive."""

    def test_a_receive_that_is_interrupted_closes(self):
        calls = (Connection.recv, Connection.ping, Connection.agreement, lambda c: list(c))
        for call in calls:
            for error in (KeyboardInterrupt, TimeoutError("of a handler"), socket.timeout("too")):
                peer = Peer(timeout=2)
                if call is not Connection.agreement:
                    peer.greet()
                with contextlib.closing(peer):
                    with alarm(error), self.assertRaises(BaseException) as raised:
                        call(peer.connection)
                    self.assertIn(error, (raised.exception, type(raised.exception)))
                    name = type(raised.exception).__name__
                    for again in (call, Connection.recv, Connection.finish, Connection.ping,
                                  lambda c: c.send(b"x")):
                        reason = f"interrupted by {name}: what it had received is lost"
                        with self.assertRaisesRegex(Aborted, reason):
                            again(peer.connection)
                    while peer.read_frame():
                        pass

    def test_what_was_in_hand_is_not_skipped(self):
        for place in ("feed", "next"):
            for kind in (Connection, LengthPrefixed):
                ours, other = socket.socketpair()
                with kind(ours, timeout=0.2) as connection, other:
                    if kind is Connection:
                        other.sendall(client.encode_hello(client.hello()))
                        other.sendall(b"".join(encode_header(1) + b"%d" % n for n in range(3)))
                        connection.agreement()
                    else:
                        other.sendall(b"".join(b"\0\0\0\1%d" % n for n in range(3)))
                    decoder, step = connection._decoder, getattr(connection._decoder, place)

                    def interrupted(*arguments):
                        setattr(decoder, place, step)
                        if place == "next":
                            step()
                        raise Interruption

                    setattr(decoder, place, interrupted)
                    with self.assertRaises(Interruption):
                        connection.recv()
                    for _ in range(2):
                        with self.assertRaisesRegex(Aborted, "interrupted by Interruption"):
                            connection.recv()
                    with self.assertRaisesRegex(Aborted, "interrupted by Interruption"):
                        connection.send(b"question")

    def test_messages_behind_one_that_is_lost_are_not_given(self):
        with contextlib.closing(Peer(timeout=1).greet()) as peer:
            def answer():
                peer.read_frame()
                for number in range(3):
                    peer.send(client.MSG, b"%d" % number)
                peer.send(client.PONG)

            with running(answer):
                peer.connection.ping()

            class Cut(collections.deque):
                def popleft(self):
                    super().popleft()
                    raise Interruption

            peer.connection._waiting = Cut(peer.connection._waiting)
            with self.assertRaises(Interruption):
                peer.connection.recv()
            with self.assertRaises(Aborted):
                peer.connection.recv()

    def test_a_receive_that_timed_out_goes_on(self):
        def connections():
            with contextlib.closing(Peer(timeout=0.05).greet()) as peer:
                yield peer.connection, peer.socket, encode_header(5) + b"whole"
            left, right = socket.socketpair()
            with LengthPrefixed(left, timeout=0.05) as connection, right:
                yield connection, right, b"\0\0\0\5whole"

        for connection, other, message in connections():
            for part in (message[:3], message[3:7]):
                with self.assertRaises(socket.timeout):
                    connection.recv()
                other.sendall(part)
            with self.assertRaises(socket.timeout):
                connection.recv()
            other.sendall(message[7:])
            self.assertEqual(connection.recv(), b"whole")
            connection.send(b"goes on")

    def test_a_send_that_is_interrupted_closes(self):
        for kind in (Connection, LengthPrefixed):
            ours, other = socket.socketpair()
            with kind(ours, timeout=2) as connection, other:
                other.sendall(client.encode_hello(client.hello()))
                with alarm(TimeoutError("of a handler")), self.assertRaises(TimeoutError):
                    while True:
                        connection.send(bytes(50_000))
                self.assertEqual(ours.fileno(), -1)
                for call in (lambda c: c.send(b""), kind.recv, kind.finish):
                    with self.assertRaisesRegex(Aborted, "sending was interrupted by TimeoutError"):
                        call(connection)


class Waiting(unittest.TestCase):
    """No room, no answer, no time."""

    def peer(self, **options):
        peer = Peer(**options).greet()
        self.addCleanup(peer.close)
        peer.connection.agreement()
        return peer

    def test_no_timeout_means_no_wait_at_all(self):
        peer = self.peer(timeout=0)
        start = time.monotonic()
        for call in (Connection.recv, Connection.recv):
            with self.assertRaises(socket.timeout):
                call(peer.connection)
        peer.send(client.MSG, b"here")
        peer.connection.send(b"there")
        self.assertEqual(peer.connection.recv(), b"here")
        with self.assertRaises(socket.timeout):
            peer.connection.ping()
        peer = self.peer(timeout=0)
        with self.assertRaises(socket.timeout):
            while True:
                peer.connection.send(bytes(50_000))
        left, right = socket.socketpair()
        with LengthPrefixed(left, timeout=0) as connection, right:
            with self.assertRaises(socket.timeout):
                connection.recv()
            right.sendall(b"\0\0\0\1a")
            self.assertEqual(connection.recv(), b"a")
        self.assertLess(time.monotonic() - start, 1)

    def test_an_answer_without_room_does_not_keep_from_receiving(self):
        peer = self.peer(timeout=0.5)
        count = peer.fill()
        peer.send(client.PING, b"tick")
        peer.send(client.MSG, b"message")
        self.assertEqual(peer.connection.recv(), b"message")
        with self.assertRaises(socket.timeout):
            peer.connection.recv()
        frames = []

        def drain():
            peer.drain(count)
            frames.append(peer.read_frame())
            peer.send(client.MSG, b"next")

        # It leaves while nothing else comes.
        with running(drain):
            self.assertEqual(peer.connection.recv(), b"next")
        self.assertEqual(frames, [(client.PONG, b"tick")])

    def test_an_answer_leaves_before_what_is_sent_later(self):
        for send, frame in (
            (lambda c: c.send(b"x" * 100_000), (client.MSG, b"x" * 100_000)),
            (Connection.finish, (client.FIN, b"")),
        ):
            peer = self.peer(timeout=2)
            count = peer.fill()
            peer.send(client.PING, b"tick")
            peer.send(client.MSG, b"message")
            self.assertEqual(peer.connection.recv(), b"message")
            frames = []

            def drain():
                peer.drain(count)
                frames.extend(peer.read_frame() for _ in range(2))

            with running(drain):
                send(peer.connection)
            self.assertEqual(frames, [(client.PONG, b"tick"), frame])

    def test_an_answer_does_not_get_into_the_middle_of_a_message(self):
        peer = self.peer(timeout=2)
        body = bytes(1 << 20)
        frames = []

        def read():
            # Part of the message is here, and no room for the rest.
            time.sleep(0.05)
            peer.send(client.PING, b"tick")
            peer.send(client.MSG, b"message")
            time.sleep(0.05)
            frames.extend(peer.read_frame() for _ in range(2))

        with running(read):
            peer.connection.send(body)
            self.assertEqual(peer.connection.recv(), b"message")
        self.assertEqual(frames, [(client.MSG, body), (client.PONG, b"tick")])

    def test_a_second_ping_before_there_was_room_for_an_answer_is_refused(self):
        patch(self, "REJECT_SECONDS_MAX", 0.1)
        peer = self.peer(timeout=1)
        peer.fill()
        for body in (b"1", b"2"):
            peer.send(client.PING, body)
        for _ in range(2):
            with self.assertRaises(Refused) as raised:
                peer.connection.recv()
            self.assertEqual(raised.exception.name, "SecondPing")
        self.assertEqual(peer.connection.socket.fileno(), -1)

    def test_a_slow_reader_is_no_standstill(self):
        peer = self.peer(timeout=0.4)
        stopped = threading.Event()

        def read():
            # Within the timeout, much less than makes the socket writable for poll.
            while not stopped.wait(0.05):
                peer.socket.recv(15_000)

        with running(read):
            try:
                peer.connection.send(bytes(400_000))
            finally:
                stopped.set()

    def test_a_standstill_is_noticed_soon(self):
        peer = self.peer(timeout=0.2)
        timer = threading.Timer(0.1, peer.socket.recv, [100_000])
        timer.start()
        self.addCleanup(timer.join)
        start = time.monotonic()
        with self.assertRaises(socket.timeout):
            peer.connection.send(bytes(4 << 20))
        self.assertGreaterEqual(time.monotonic() - start, 0.3)
        self.assertLess(time.monotonic() - start, 0.9)

    def test_both_sides_may_send_first(self):
        left, right = socket.socketpair()
        bodies = [bytes([number]) * 40_000 for number in range(20)]
        with Connection(left, timeout=1) as left, Connection(right, timeout=1) as right:
            def talk(connection):
                for body in bodies:
                    connection.send(body)
                connection.finish()
                self.assertEqual(list(connection), bodies)

            with running(lambda: talk(left), lambda: talk(right)):
                pass

    def test_a_send_keeps_no_flood(self):
        patch(self, "WAITING_BYTES_MAX", 200_000)
        for flood in (encode_header(20_000) + bytes(20_000), encode_header(0, client.PONG) * 2_500):
            peer = self.peer(timeout=0.2)
            stopped = threading.Event()

            def send():
                with contextlib.suppress(OSError):
                    peer.socket.settimeout(0.1)
                    while not stopped.is_set():
                        peer.socket.sendall(flood)

            with running(send):
                start = time.monotonic()
                with self.assertRaises(socket.timeout):
                    while True:
                        peer.connection.send(bytes(50_000))
                stopped.set()
            self.assertLess(time.monotonic() - start, 2)
            self.assertLess(peer.connection._waiting_bytes, client.WAITING_BYTES_MAX + 20_009)

    def test_what_a_send_has_kept_is_given_after_it_failed(self):
        peer = self.peer(timeout=0.1)
        for number in range(3):
            peer.send(client.MSG, b"%d" % number)
        with self.assertRaises(socket.timeout):
            while True:
                peer.connection.send(bytes(50_000))
        self.assertEqual([peer.connection.recv() for _ in range(3)], [b"0", b"1", b"2"])
        for call in (Connection.recv, Connection.finish, Connection.ping,
                     lambda c: c.send(b""), lambda c: c.send(bytes(5_000))):
            with self.assertRaisesRegex(Aborted, "sending timed out"):
                call(peer.connection)

    def test_a_send_that_waits_hears_why_it_need_not(self):
        for said, error in (
            (encode_header(2, client.REJECT) + b"no", Rejected),
            (b"garbage!", Refused),
            (b"\1", Truncated),
            (b"", Aborted),
        ):
            peer = self.peer(timeout=2)

            def say():
                time.sleep(0.05)
                peer.send(client.MSG, b"before")
                peer.socket.sendall(said)
                if error in (Truncated, Aborted):
                    peer.socket.shutdown(socket.SHUT_WR)

            start = time.monotonic()
            with running(say), self.assertRaises(error):
                peer.connection.send(bytes(1 << 20))
            self.assertLess(time.monotonic() - start, 1)
            self.assertEqual(peer.connection.recv(), b"before")
            for call in (Connection.recv, lambda c: c.send(b"")):
                with self.assertRaises(error):
                    call(peer.connection)
            # No other frame begins in the middle of the one that has not left.
            length, _, _, _ = client.decode_header(peer.read(8))
            data = peer.read(length)
            self.assertEqual(data, bytes(len(data)))
            self.assertLess(len(data), length)

    def test_a_send_that_waits_tells_a_peer_that_is_gone(self):
        for _ in range(30):
            peer = self.peer(timeout=2)

            def leave():
                time.sleep(0.002)
                peer.send(client.MSG, b"last")
                peer.socket.close()

            with running(leave), self.assertRaises(client._GONE):
                peer.connection.send(bytes(1 << 20))
            self.assertEqual(peer.connection.recv(), b"last")
            with self.assertRaises(Aborted):
                peer.connection.recv()


class Ends(unittest.TestCase):
    """What comes behind FIN, and what is left of a connection that is closed."""

    def peer(self, **options):
        peer = Peer(**options).greet()
        self.addCleanup(peer.close)
        return peer

    def test_what_comes_behind_fin_is_told(self):
        for behind, cut, error in (
            (encode_header(2, client.REJECT) + b"no", False, Rejected),
            (encode_header(1) + b"x", False, Refused),
            (encode_header(0, client.FIN), False, Refused),
            (b"garbage!", False, Refused),
            (b"\1\0", True, Truncated),
            (encode_header(8, client.GOAWAY) + b"\0\0\0", True, Truncated),
        ):
            for later in (False, True):
                peer = self.peer(timeout=1)
                peer.send(client.MSG, b"last")
                peer.send(client.FIN)
                if later:
                    self.assertEqual(list(peer.connection), [b"last"])
                peer.socket.sendall(behind)
                if cut:
                    peer.socket.shutdown(socket.SHUT_WR)
                if not later:
                    self.assertEqual(peer.connection.recv(), b"last")
                for call in (Connection.recv, Connection.recv, lambda c: c.send(b"")):
                    with self.assertRaises(error):
                        call(peer.connection)

    def test_answers_pings_behind_fin(self):
        peer = self.peer(timeout=1)
        peer.send(client.FIN)
        self.assertIsNone(peer.connection.recv())
        peer.send(client.PING, b"tick")
        self.assertIsNone(peer.connection.recv())
        self.assertEqual(peer.read_frame(), (client.PONG, b"tick"))

    def test_a_clean_end_stays_one_and_sending_goes_on(self):
        peer = self.peer(timeout=1)
        peer.send(client.FIN)
        peer.socket.shutdown(socket.SHUT_WR)
        for body in (b"1", b"2" * 100_000):
            for _ in range(2):
                self.assertIsNone(peer.connection.recv())
            peer.connection.send(body)
            self.assertEqual(peer.read_frame(), (client.MSG, body))
        peer.socket.close()
        self.assertIsNone(peer.connection.recv())
        with self.assertRaises(BrokenPipeError):
            peer.connection.send(b"3")
        self.assertIsNone(peer.connection.recv())
        peer.connection.close()
        self.assertIsNone(peer.connection.recv())

    def test_a_send_that_waits_may_meet_the_clean_end(self):
        peer = self.peer(timeout=2)

        def read():
            time.sleep(0.05)
            peer.send(client.MSG, b"last")
            peer.send(client.FIN)
            peer.socket.shutdown(socket.SHUT_WR)
            time.sleep(0.4)
            frames.append(peer.read_frame())

        frames = []
        with running(read):
            start = time.process_time()
            peer.connection.send(bytes(1 << 20))
            self.assertLess(time.process_time() - start, 0.2, "an end that is here wakes nobody")
        self.assertEqual(frames, [(client.MSG, bytes(1 << 20))])
        self.assertEqual(list(peer.connection), [b"last"])

    def test_a_flood_behind_fin_is_read_in_parts(self):
        patch(self, "WAITING_BYTES_MAX", 1_000)
        peer = self.peer(timeout=1)
        peer.send(client.FIN)
        self.assertIsNone(peer.connection.recv())
        flood = [encode_header(8, client.GOAWAY) + struct.pack("<Q", n) for n in range(1000, 800, -1)]
        peer.socket.sendall(b"".join(flood) + encode_header(2, client.REJECT) + b"no")
        self.assertIsNone(peer.connection.recv())
        self.assertGreater(peer.connection.peer_takes, 900)
        with self.assertRaises(Rejected):
            for _ in range(10):
                peer.connection.recv()
        self.assertEqual(peer.connection.peer_takes, 801)

    def test_a_peer_that_has_finished_is_not_pinged(self):
        for taken in (False, True):
            peer = self.peer(timeout=0.5)
            peer.send(client.FIN)
            if taken:
                self.assertIsNone(peer.connection.recv())
            start = time.monotonic()
            for _ in range(2):
                with self.assertRaisesRegex(Error, "the peer has finished"):
                    peer.connection.ping()
            self.assertLess(time.monotonic() - start, 0.3)
            self.assertIsNone(peer.connection.recv())
            peer.connection.send(b"goes on")
            self.assertEqual(peer.read_frame(), (client.MSG, b"goes on"))

    def test_a_peer_that_finishes_need_not_answer(self):
        peer = self.peer(timeout=2)

        def answer():
            peer.read_frame()
            peer.send(client.MSG, b"last")
            peer.send(client.FIN)

        start = time.monotonic()
        with running(answer), self.assertRaisesRegex(Error, "the peer has finished"):
            peer.connection.ping()
        self.assertLess(time.monotonic() - start, 1)
        self.assertEqual(list(peer.connection), [b"last"])
        peer.connection.send(b"goes on")
        self.assertEqual(peer.read_frame(), (client.MSG, b"goes on"))

    def test_an_old_answer_does_not_count(self):
        peer = self.peer(timeout=2)
        peer.send(client.PONG, b"mine")

        def answer():
            peer.read_frame()
            time.sleep(0.1)
            peer.send(client.PONG, b"mine")

        with running(answer):
            self.assertGreaterEqual(peer.connection.ping(b"mine"), 0.05)

    def test_a_ping_that_met_no_end_leaves_the_end_to_recv(self):
        peer = self.peer(timeout=0.5)
        with running(lambda: peer.send(*(client.PONG, peer.read_frame()[1]))):
            peer.connection.ping(b"1")
        peer.socket.shutdown(socket.SHUT_WR)
        with self.assertRaises(Aborted):
            peer.connection.recv()

    def test_a_ping_without_an_answer_closes(self):
        peer = self.peer(timeout=0.05)
        with self.assertRaises(socket.timeout):
            peer.connection.ping()
        for call in (Connection.ping, Connection.recv, Connection.finish, lambda c: c.send(b"")):
            with self.assertRaisesRegex(Aborted, "a PING was not answered"):
                call(peer.connection)

    def test_what_was_closed_says_so(self):
        calls = (Connection.recv, Connection.ping, Connection.finish, Connection.agreement,
                 lambda c: c.send(b""), lambda c: c.send(bytes(5_000)))
        for close, reason in (
            (Connection.close, "closed on this side"),
            (lambda c: c.reject("no"), r"reject\(\) has been called"),
            (lambda c: c.socket.close(), "closed on this side"),
        ):
            for call in calls:
                with contextlib.closing(Peer()) as peer:
                    close(peer.connection)
                    for again in (call, *calls):
                        with self.assertRaisesRegex(Aborted, reason):
                            again(peer.connection)
                    peer.connection.close()
                    peer.connection.reject("again")

    def test_length_prefixed_that_was_closed_says_so(self):
        for close, reason in (
            (LengthPrefixed.close, "closed on this side"),
            (self.time_out, "sending timed out"),
        ):
            left, right = socket.socketpair()
            with LengthPrefixed(left, timeout=0.05) as connection, right:
                close(connection)
                for call in (LengthPrefixed.recv, LengthPrefixed.finish, lambda c: c.send(b"")):
                    with self.assertRaisesRegex(Aborted, reason):
                        call(connection)
        left, right = socket.socketpair()
        with LengthPrefixed(left, frame_bytes_max=10) as connection, right:
            right.sendall(b"\0\0\0\x0b")
            for call in (LengthPrefixed.recv, LengthPrefixed.recv, LengthPrefixed.finish,
                         lambda c: c.send(b"")):
                with self.assertRaises(Refused) as raised:
                    call(connection)
                self.assertEqual(raised.exception.name, "FrameTooLarge")
                self.assertEqual(str(raised.exception), "FrameTooLarge: 11, at most 10")

    def time_out(self, connection):
        with self.assertRaises(socket.timeout):
            while True:
                connection.send(bytes(50_000))

    def test_length_prefixed_sends_nothing_behind_its_end(self):
        left, right = (LengthPrefixed(sock) for sock in socket.socketpair())
        with left, right:
            left.finish()
            left.finish()
            with self.assertRaisesRegex(Error, r"finish\(\) has been called"):
                left.send(b"late")
            right.send(b"answer")
            right.close()
            self.assertEqual(list(left), [b"answer"])
        self.assertNotEqual(LengthPrefixed.close.__doc__, Connection.close.__doc__)
        self.assertIn("clean end", LengthPrefixed.close.__doc__)

    def test_a_failure_does_not_keep_the_connection(self):
        def send(connection):
            connection.send(b"question")

        def close(connection):
            connection.close()
            connection.recv()

        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        greeting = client.encode_hello(client.hello())
        ping = greeting + encode_header(0, client.PING) + encode_header(0)
        for kind, call, said, how in (
            (Connection, send, b"", socket.SHUT_RD),
            (Connection, send, greeting, socket.SHUT_RDWR),
            (Connection, Connection.finish, b"", socket.SHUT_RD),
            (Connection, Connection.ping, greeting, socket.SHUT_RD),
            (Connection, Connection.recv, b"", socket.SHUT_WR),
            (Connection, Connection.recv, ping, socket.SHUT_RD),
            (Connection, Connection.recv, b"garbage", socket.SHUT_RD),
            (Connection, close, b"", socket.SHUT_RD),
            (LengthPrefixed, send, b"", socket.SHUT_RD),
            (LengthPrefixed, LengthPrefixed.recv, b"\0", socket.SHUT_WR),
        ):
            ours, other = socket.socketpair()
            other.sendall(said)
            connection = kind(ours, timeout=0.02)
            number, kept = ours.fileno(), weakref.ref(connection)
            other.shutdown(how)
            for _ in range(3):
                # Not caught by unittest, which clears the frames that the error went through.
                try:
                    call(connection)
                except (Error, OSError):
                    pass
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                del connection, ours
            self.assertIsNone(kept())
            with self.assertRaises(OSError):
                os.fstat(number)
            other.close()


class Options(unittest.TestCase):
    def test_limits_that_the_format_does_not_have(self):
        with tempfile.TemporaryDirectory() as directory:
            nowhere = os.path.join(directory, "nobody listens")
            for kind, limits in ((Connection, (1023, 0, -1, 2**32, 2000.0, None)),
                                 (LengthPrefixed, (-1, 2**32, 2000.0, None))):
                for limit in limits:
                    left, right = socket.socketpair()
                    with left, right, self.assertRaisesRegex(ValueError, "frame_bytes_max"):
                        kind(left, frame_bytes_max=limit)
                    with self.assertRaisesRegex(ValueError, "frame_bytes_max"):
                        kind.connect(nowhere, frame_bytes_max=limit)
                for timeout in (-1, float("nan")):
                    with self.assertRaisesRegex(ValueError, "timeout"):
                        kind.connect(nowhere, timeout=timeout)
            with self.assertRaisesRegex(ValueError, "2, 4 or 8 bytes"):
                LengthPrefixed.connect(nowhere, width_bytes=3)
        for limit in (-1, 2**32):
            with self.assertRaises(ValueError):
                PrefixDecoder(frame_bytes_max=limit)
        for limit in (1024, 2**32 - 1):
            for sock in socket.socketpair():
                Connection(sock, frame_bytes_max=limit).close()

    def test_sockets_that_are_no_streams(self):
        for kind in (Connection, LengthPrefixed):
            for other in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
                left, right = socket.socketpair(socket.AF_UNIX, other)
                with left, right:
                    with self.assertRaisesRegex(ValueError, "SOCK_STREAM"):
                        kind(left)
                    right.setblocking(False)
                    with self.assertRaises(BlockingIOError):
                        right.recv(64)

    def test_names_may_be_bytes_or_paths(self):
        name = f"@ringpost-python-{os.getpid()}"
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("\0" + name[1:])
            server.listen()
            for path in (name, name.encode(), pathlib.PurePath(name)):
                with Connection.connect(path) as connection, server.accept()[0] as accepted:
                    self.assertEqual(accepted.recv(64), client.encode_hello(connection._local))

    def test_reasons_that_are_no_unicode(self):
        for reason, told in (("a\udcffb", b"a\\udcffb"), ("\u20ac" * 400, "\u20ac".encode() * 341)):
            with contextlib.closing(Peer().greet()) as peer:
                peer.connection.reject(reason)
                self.assertEqual(peer.read_frame(), (client.REJECT, told))


class Shell(unittest.TestCase):
    """The module as a program, against a server that does not receive while it sends."""

    def serve(self, **greeting):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        path = os.path.join(directory.name, "echo.sock")
        server = socket.socket(socket.AF_UNIX)
        self.addCleanup(server.close)
        server.bind(path)
        server.listen()

        def echo():
            with contextlib.suppress(OSError), server.accept()[0] as sock:
                sock.settimeout(10)
                stream = sock.makefile("rb")
                stream.read(64)
                sock.sendall(client.encode_hello(client.hello(**greeting)))
                while header := stream.read(8):
                    sock.sendall(header + stream.read(client.decode_header(header)[0]))

        thread = threading.Thread(target=echo, daemon=True)
        thread.start()
        self.addCleanup(thread.join, 10)
        return path

    def run_it(self, *words, stdout=subprocess.PIPE, **environment):
        return subprocess.run(
            [sys.executable, "-B", client.__file__, *words], stdout=stdout,
            stderr=subprocess.PIPE, timeout=20, env={**os.environ, **environment})

    def fails(self, outcome, pattern):
        """With this one line."""
        self.assertEqual(outcome.returncode, 1, outcome)
        errors = outcome.stderr.decode()
        self.assertRegex(errors, pattern)
        self.assertEqual(errors.count("\n"), 1, errors)

    def test_any_number_of_messages(self):
        for words in (["x" * 100_000] * 10, [f"{n:01000}" for n in range(700)], ["", "a"]):
            outcome = self.run_it(self.serve(), *words)
            self.assertEqual((outcome.returncode, outcome.stderr), (0, b""))
            self.assertEqual(outcome.stdout.decode(), "".join(f"{word}\n" for word in words))

    def test_a_message_that_the_peer_does_not_take(self):
        outcome = self.run_it(self.serve(frame_bytes_max=2000), "short", "x" * 2001)
        self.fails(outcome, r"^message 2: a message of 2001 bytes, the peer takes 2000\n$")

    def test_an_answer_that_can_not_be_printed(self):
        outcome = self.run_it(self.serve(), "\u20ac", PYTHONIOENCODING="ascii")
        self.fails(outcome, "^standard output: UnicodeEncodeError")

    def test_output_that_takes_nothing(self):
        with open("/dev/full", "wb") as full:
            self.fails(self.run_it(self.serve(), "a", stdout=full), "^standard output: .*No space")
            self.fails(self.run_it("--help", stdout=full), "^standard output: .*No space")
        closed = subprocess.run(
            ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-B", client.__file__,
             self.serve(), "a"], stderr=subprocess.PIPE, timeout=20)
        self.fails(closed, "^standard output: ")

    def test_output_that_nobody_reads(self):
        reading, writing = os.pipe()
        os.close(reading)
        with open(writing, "wb") as pipe:
            outcome = self.run_it(self.serve(), "a", stdout=pipe)
        self.assertEqual((outcome.returncode, outcome.stderr), (1, b""))


class Specification(unittest.TestCase):
    """The programs that SPEC.md shows."""

    def setUp(self):
        with open(os.path.join(HERE, "../../SPEC.md"), encoding="utf-8") as page:
            self.programs = re.findall(r"```python\n(.*?)```", page.read(), re.DOTALL)
        self.assertEqual(len(self.programs), 2)

    def test_a_length_prefixed_peer(self):
        names = {}
        exec(self.programs[0], names)
        for data, received, error in (
            (b"\1\0\0\0a\0\0\0\0", [b"a", b"", None, None], None),
            (b"", [None], None),
            (b"\1\0\0\0a\1", [b"a"], "cut"),
            (b"\1\0\0\0", [], "cut"),
            (b"\3\0\0\0ab", [], "cut"),
            (b"\xff\xff\xff\xff", [], "FrameTooLarge"),
        ):
            left, right = socket.socketpair()
            with left, right, right.makefile("rb") as stream:
                right.settimeout(5)
                left.sendall(data)
                left.shutdown(socket.SHUT_WR)
                self.assertEqual([names["receive"](stream) for _ in received], received)
                if error:
                    with self.assertRaisesRegex(Exception, error):
                        names["receive"](stream)
        left, right = socket.socketpair()
        with left, LengthPrefixed(right, byte_order="little") as peer:
            names["send"](left, b"hello")
            self.assertEqual(peer.recv(), b"hello")

    def test_a_plain_datagram_client_that_runs_again(self):
        with tempfile.TemporaryDirectory() as directory, \
                socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
            server.settimeout(10)
            server.bind(os.path.join(directory, "server.sock"))

            def reply():
                for _ in range(2):
                    data, address = server.recvfrom(100)
                    server.sendto(data.upper(), os.path.join(directory, address))

            with running(reply):
                for _ in range(2):
                    outcome = subprocess.run([sys.executable, "-c", self.programs[1]],
                                             cwd=directory, timeout=10, capture_output=True)
                    self.assertEqual(outcome.stderr, b"")
                    self.assertIn(b"HELLO", outcome.stdout)


if __name__ == "__main__":
    unittest.main()
