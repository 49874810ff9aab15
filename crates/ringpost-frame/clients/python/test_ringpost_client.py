"""The Python client against the test vectors, and against itself over sockets.

    python3 test_ringpost_client.py
"""

import array
import contextlib
import json
import os
import socket
import struct
import tempfile
import threading
import time
import unittest

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
        length, kind, _, _ = client.decode_header(self.read(8))
        return kind, self.read(length)

    def close(self):
        self.socket.close()
        self.connection.close()


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
        peer = self.peer(timeout=0.5).greet()
        body = bytes(4 << 20)

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
        self.assertGreater(time.monotonic() - start, 0.5)

    def test_pings_and_keeps_what_comes_meanwhile(self):
        peer = self.peer().greet()
        for body in (b"one", b"two"):
            peer.send(client.MSG, body)
        peer.send(client.PING, b"yours")
        peer.send(client.PONG, b"mine")
        self.assertGreaterEqual(peer.connection.ping(b"mine"), 0)
        self.assertEqual(peer.read_frame(), (client.PING, b"mine"))
        self.assertEqual(peer.read_frame(), (client.PONG, b"yours"))
        self.assertEqual([peer.connection.recv() for _ in range(2)], [b"one", b"two"])

    def test_a_ping_keeps_no_flood(self):
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
            peer.send(client.MSG, long)
            peer.send(client.PONG, b"mine")

        thread = threading.Thread(target=answer)
        thread.start()
        self.addCleanup(thread.join)
        self.assertGreaterEqual(peer.connection.ping(b"mine"), 0)
        self.assertEqual(peer.connection.recv(), long)

    def test_pings_keep_no_flood_of_messages_that_nobody_receives(self):
        peer = self.peer().greet()
        messages = encode_header(0) * 4_000
        with self.assertRaisesRegex(Error, "no answer to PING"):
            for _ in range(2 * client.WAITING_BYTES_MAX // len(messages)):
                peer.socket.sendall(messages + encode_header(0, client.PONG))
                peer.connection.ping()
                peer.read_frame()

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
                self.assertEqual(peer.connection.socket.gettimeout(), timeout)
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
                    with self.subTest(timeout=timeout, last=last, failed=failed.__name__):
                        peer = self.peer(timeout=timeout).greet()
                        for frame in answers + ((last,) if last else ()):
                            peer.send(*frame)
                        peer.socket.close()
                        with self.assertRaises(error if error is Rejected else BrokenPipeError):
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
        self.addCleanup(setattr, client, "WAITING_BYTES_MAX", client.WAITING_BYTES_MAX)
        client.WAITING_BYTES_MAX = 5_000
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


if __name__ == "__main__":
    unittest.main()
