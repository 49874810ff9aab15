#!/usr/bin/env python3
"""A second implementation of the wire format, and the source of vectors.json.

Written from SPEC.md for people who implement the format in another language: it shows one way to do
it, slowly and without cleverness. `python3 reference.py > vectors.json` writes the vectors again; a
test of this crate checks that the file is what this program says and that the crate agrees.
Numbers of 64 bits are hexadecimal strings, because many JSON readers keep only 53 bits.
"""

import json
import struct
import sys

MAGIC = b"\xf5RNGPOST"
HELLO = struct.Struct("<8sHHIQQIHHQ16s")
FRAGMENTS, EXTENSIONS, DESCRIPTORS = 1, 2, 4
MSG, FIN, REJECT, PING, PONG, GOAWAY = range(1, 7)
MORE, EXT, CRITICAL = 1, 2, 4
CONTROL = {FIN: (0, 0), REJECT: (0, 1024), PING: (0, 64), PONG: (0, 64), GOAWAY: (8, 8)}


class Refused(Exception):
    """The format forbids it; the name says why."""


# HELLO


def hello(**changes):
    fields = dict(version_min=1, version_max=1, flags=0, required=0, supported=0,
                  frame_bytes_max=65536, fds_max=0, abi=1, instance=0x1122334455667788)
    return {**fields, **changes}


def encode_hello(h):
    return HELLO.pack(MAGIC, *h.values(), bytes(16))


def decode_hello(data):
    magic, *values, reserved = HELLO.unpack(data)
    if magic == MAGIC[::-1]:
        raise Refused("ByteOrder")
    if magic != MAGIC:
        raise Refused("BadMagic")
    h = dict(zip(hello(), values))
    if any(reserved) or h["flags"]:
        raise Refused("Reserved")
    if not 1 <= h["version_min"] <= h["version_max"]:
        raise Refused("VersionRange")
    if h["required"] & ~h["supported"]:
        raise Refused("RequiredUnsupported")
    if h["frame_bytes_max"] < 1024:
        raise Refused("FrameLimitTooSmall")
    return h


def agree(a, b):
    version = min(a["version_max"], b["version_max"])
    features = a["supported"] & b["supported"]
    if version < max(a["version_min"], b["version_min"]):
        raise Refused("NoCommonVersion")
    if (a["required"] | b["required"]) & ~features:
        raise Refused("MissingFeatures")
    if a["abi"] != b["abi"]:
        raise Refused("AbiMismatch")
    return dict(version=version, features=features,
                frame_bytes_max=min(a["frame_bytes_max"], b["frame_bytes_max"]),
                fds_max=min(a["fds_max"], b["fds_max"]) if features & DESCRIPTORS else 0,
                peer_instance=b["instance"])


# Frames


def check_byte(seven):
    word = int.from_bytes(seven, "little")
    return ((word ^ 0x52494E47504F53) * 0x9E3779B97F4A7C15 >> 56) & 0xFF


def encode_header(length, kind=MSG, flags=0, fds=0):
    seven = struct.pack("<IBBB", length, kind, flags, fds)
    return seven + bytes([check_byte(seven)])


def frame(kind, body=b"", flags=0, fds=0):
    return encode_header(len(body), kind, flags, fds) + body


def decode_header(data):
    length, kind, flags, fds, check = struct.unpack("<IBBBB", data)
    if check != check_byte(data[:7]):
        raise Refused("HeaderCheck")
    if kind == 0:
        raise Refused("ZeroKind")
    if flags & ~(MORE | EXT | CRITICAL):
        raise Refused("UnknownFlags")
    if kind > GOAWAY and flags & CRITICAL:
        raise Refused("UnknownCritical")
    low, high = CONTROL.get(kind, (0, 0xFFFFFFFF))
    if not low <= length <= high:
        raise Refused("ControlLength")
    return dict(len=length, kind=kind, flags=flags, fds=fds)


def admit(header, agreement, finished, rejected):
    allowed = CRITICAL
    if header["kind"] == MSG and agreement["features"] & FRAGMENTS:
        allowed |= MORE
    if header["kind"] == MSG and agreement["features"] & EXTENSIONS:
        allowed |= EXT
    if header["flags"] & ~allowed:
        raise Refused("FlagsNotAllowed")
    if header["fds"] > (agreement["fds_max"] if agreement["features"] & DESCRIPTORS else 0):
        raise Refused("DescriptorsNotAllowed")
    if header["len"] > agreement["frame_bytes_max"]:
        raise Refused("FrameTooLarge")
    if rejected:
        raise Refused("AfterReject")
    if finished and header["kind"] in (MSG, FIN):
        raise Refused("AfterFin")


def decode_stream(data, agreement):
    """What a receiver makes of the bytes after HELLO, if the stream ends with them."""
    frames, at, error, end = [], 0, None, None
    finished = rejected = False
    try:
        while at < len(data):
            if len(data) - at < 8:
                end = "Truncated"
                break
            header = decode_header(data[at:at + 8])
            admit(header, agreement, finished, rejected)
            if len(data) - at - 8 < header["len"]:
                end = "Truncated"
                break
            finished |= header["kind"] == FIN
            rejected |= header["kind"] == REJECT
            body = data[at + 8:at + 8 + header["len"]]
            frames.append(dict(kind=header["kind"], flags=header["flags"], fds=header["fds"],
                               body=body.hex()))
            at += 8 + header["len"]
    except Refused as refused:
        error = str(refused)
    if error is None and end is None:
        end = "Rejected" if rejected else "Clean" if finished else "Aborted"
    return dict(frames=frames, error=error, end=end, position=at)


def decode_prefixed(data, width, byte_order, limit):
    frames, at, error, end = [], 0, None, "Clean"
    while at < len(data):
        length = int.from_bytes(data[at:at + width], byte_order)
        if len(data) - at < width:
            end = "Truncated"
            break
        if length > limit:
            error, end = "FrameTooLarge", None
            break
        if len(data) - at - width < length:
            end = "Truncated"
            break
        frames.append(data[at + width:at + width + length].hex())
        at += width + length
    return dict(frames=frames, error=error, end=end, position=at)


# Packets: one frame each


def decode_packet(data):
    """The header of the frame in a packet. What may come on this connection is for admit to say."""
    if len(data) < 8:
        raise Refused("PacketLength")
    header = decode_header(data[:8])
    if len(data) != 8 + header["len"]:
        raise Refused("PacketLength")
    return header


def decode_prefixed_packet(data, width, byte_order):
    """The message in a packet of the length-prefixed profile."""
    if len(data) < width or len(data) != width + int.from_bytes(data[:width], byte_order):
        raise Refused("PacketLength")
    return data[width:].hex()


# Vectors


def result(function, *arguments):
    try:
        return function(*arguments), None
    except Refused as refused:
        return None, str(refused)


def wide(fields):
    """64-bit fields as strings."""
    if fields is None:
        return None
    names = ("required", "supported", "instance", "features", "peer_instance")
    return {k: f"{v:#x}" if k in names else v for k, v in fields.items()}


def hello_vectors():
    plain = encode_hello(hello())

    def patched(offset, data):
        return plain[:offset] + data + plain[offset + len(data):]

    cases = [
        ("plain", plain),
        ("every field differs", encode_hello(hello(
            version_min=2, version_max=0x0304, required=0x100, supported=0x8000000000000105,
            frame_bytes_max=0x05060708, fds_max=0x090A, abi=0x0B0C,
            instance=0xF1F2F3F4F5F6F7F8))),
        ("smallest frame limit", encode_hello(hello(frame_bytes_max=1024))),
        ("largest values", encode_hello(hello(
            version_max=0xFFFF, required=2**64 - 1, supported=2**64 - 1, frame_bytes_max=2**32 - 1,
            fds_max=0xFFFF, abi=0xFFFF, instance=2**64 - 1))),
        ("zeros", bytes(64)),
        ("ones", b"\xff" * 64),
        ("text protocol", b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: a-text-client\r\n\r\n..."[:64]),
        ("one bit of magic", patched(0, b"\xf4")),
        ("big-endian", MAGIC[::-1] + plain[8:]),
        ("first flag", patched(12, b"\x01")),
        ("last flag", patched(15, b"\x80")),
        ("first reserved byte", patched(48, b"\x01")),
        ("last reserved byte", patched(63, b"\x80")),
        ("version zero", patched(8, b"\0\0")),
        ("empty version range", patched(8, b"\x03\0\x02\0")),
        ("requires what it lacks", encode_hello(hello(required=3, supported=1))),
        ("frame limit below floor", encode_hello(hello(frame_bytes_max=1023))),
        ("frame limit zero", encode_hello(hello(frame_bytes_max=0))),
    ]
    vectors = []
    for name, data in cases:
        fields, error = result(decode_hello, data)
        vectors.append(dict(name=name, bytes=data.hex(), fields=wide(fields), error=error))
    return vectors


def agreement_vectors():
    cases = [
        ("equals", {}, {}),
        ("smaller limit wins", dict(frame_bytes_max=4096), dict(frame_bytes_max=8192)),
        ("highest common version", dict(version_max=7), dict(version_min=2, version_max=5)),
        ("ranges that touch", dict(version_max=3), dict(version_min=3, version_max=9)),
        ("ranges apart", dict(version_max=2), dict(version_min=3, version_max=9)),
        ("common features", dict(supported=0x13), dict(supported=0x36)),
        ("requirement met", dict(required=2, supported=3), dict(supported=6)),
        ("requirement missed", dict(required=2, supported=3), dict(supported=4)),
        ("unknown requirement", dict(required=1 << 63, supported=1 << 63), {}),
        ("descriptors agreed", dict(supported=4, fds_max=16), dict(supported=4, fds_max=253)),
        ("descriptors on one side", dict(supported=4, fds_max=16), dict(fds_max=253)),
        ("most descriptors", dict(supported=4, fds_max=253), dict(supported=4, fds_max=0xFFFF)),
        ("descriptors supported, none taken", dict(supported=4), dict(supported=4, fds_max=253)),
        ("descriptors required", dict(required=4, supported=4, fds_max=1), dict(supported=4, fds_max=1)),
        ("descriptors required, not supported", dict(required=4, supported=4, fds_max=1), {}),
        ("layouts differ", {}, dict(abi=2)),
    ]
    vectors = []
    for name, local, peer in cases:
        local, peer = hello(**local), hello(**{"instance": 2, **peer})
        agreement, error = result(agree, local, peer)
        vectors.append(dict(name=name, local=encode_hello(local).hex(),
                            peer=encode_hello(peer).hex(), agreement=wide(agreement), error=error))
    return vectors


def header_vectors():
    def spoiled(data, bit):
        return (int.from_bytes(data, "little") ^ 1 << bit).to_bytes(8, "little")

    cases = [encode_header(length) for length in
             (0, 1, 64, 255, 256, 1024, 65535, 65536, 0x00FFFFFF, 0x12345678, 2**31, 2**32 - 1)]
    cases += [encode_header(low, kind) for kind, (low, _) in CONTROL.items()]
    cases += [encode_header(high, kind) for kind, (_, high) in CONTROL.items()]
    cases += [encode_header(high + 1, kind) for kind, (_, high) in CONTROL.items()]
    cases += [encode_header(7, GOAWAY), encode_header(2**32 - 1, FIN)]
    cases += [encode_header(5, MSG, flags) for flags in range(1, 8)]
    cases += [encode_header(5, MSG, 1 << bit) for bit in range(3, 8)]
    cases += [encode_header(0, MSG, 0, fds) for fds in (1, 253, 255)]
    cases += [encode_header(length, MSG, 0, fds) for length in (1, 64, 65536) for fds in (1, 2, 16, 253)]
    cases += [encode_header(0, PING, 0, 1), encode_header(9, 7, 0, 4), spoiled(encode_header(64, MSG, 0, 3), 48)]
    cases += [encode_header(0, PING, CRITICAL), encode_header(9, 7), encode_header(9, 7, CRITICAL)]
    cases += [encode_header(8, 0x80), encode_header(8, 0xFF, CRITICAL), encode_header(8, 0xFF)]
    cases += [encode_header(0, 0), encode_header(5, 0, 0xFF)]
    cases += [bytes(8), b"\xff" * 8, MAGIC, b"GET / HT", b"\n" * 8]
    cases += [spoiled(encode_header(64), bit) for bit in range(64)]
    vectors = []
    for data in cases:
        fields, error = result(decode_header, data)
        vectors.append(dict(bytes=data.hex(), fields=fields, error=error))
    return vectors


def stream_vectors():
    hi = frame(MSG, b"hi")
    fin = frame(FIN)
    everything = dict(features=7, frame_bytes_max=1024, fds_max=4)
    descriptors = dict(features=4, fds_max=4)
    cases = [
        ("nothing", b"", {}),
        ("one message", hi, {}),
        ("one message and FIN", hi + fin, {}),
        ("empty messages", frame(MSG) * 3 + fin, {}),
        ("largest message", frame(MSG, b"\xab" * 1024) + fin, {}),
        ("too large by one", hi + encode_header(1025), {}),
        ("too large, far", hi + encode_header(2**32 - 1), {}),
        ("all kinds", hi + frame(PING, b"tick") + frame(PONG, b"tick") + frame(PING)
         + frame(GOAWAY, struct.pack("<Q", 3)) + frame(0x42, b"later") + frame(0xC0, bytes(8)) + fin, {}),
        ("full control frames", frame(PING, b"p" * 64) + frame(PONG, b"q" * 64)
         + frame(REJECT, b"r" * 1024), {}),
        ("refused with a reason", hi + frame(REJECT, "no common version: 1 to 1, 3 to 4".encode()), {}),
        ("refused after FIN", hi + fin + frame(REJECT, b"too late"), {}),
        ("control frames after FIN", fin + frame(PING, b"x") + frame(PONG, b"y")
         + frame(GOAWAY, bytes(8)) + frame(0x42), {}),
        ("message after FIN", fin + hi, {}),
        ("second FIN", fin + fin, {}),
        ("message after REJECT", frame(REJECT) + hi, {}),
        ("FIN after REJECT", frame(REJECT) + fin, {}),
        ("unknown kind that may be skipped", frame(7, b"skip me") + hi + fin, {}),
        ("unknown kind that may not", hi + frame(7, b"heed me", CRITICAL), {}),
        ("message marked critical", frame(MSG, b"hi", CRITICAL) + fin, {}),
        ("unknown flag", hi + frame(MSG, b"hi", 0x08), {}),
        ("MORE, not agreed", hi + frame(MSG, b"hi", MORE), {}),
        ("EXT, not agreed", hi + frame(MSG, b"hi", EXT), {}),
        ("descriptors, not agreed", hi + frame(MSG, b"hi", 0, 1), {}),
        ("MORE on a control frame", frame(PING, b"", MORE), everything),
        ("EXT on an unknown kind", frame(7, b"", EXT), everything),
        ("all features agreed", frame(MSG, b"a", MORE, 4) + frame(MSG, b"b", MORE | EXT)
         + frame(MSG, b"c") + hi + fin, everything),
        ("too many descriptors", frame(MSG, b"", 0, 5), everything),
        ("descriptors on some messages", hi + frame(MSG, b"one", 0, 1) + hi + frame(MSG, b"", 0, 4)
         + frame(MSG, b"two", 0, 2) + fin, descriptors),
        ("descriptors on a control frame", frame(PING, b"", 0, 1) + fin, descriptors),
        ("too many descriptors, nothing else agreed", hi + frame(MSG, b"hi", 0, 5), descriptors),
        ("cut behind a header with descriptors", frame(MSG, b"hi", 0, 2)[:8], descriptors),
        ("most descriptors", frame(MSG, b"hi", 0, 253) + fin, dict(features=4, fds_max=253)),
        ("kind zero", hi + encode_header(2, 0) + b"hi", {}),
        ("lost place", hi[1:] + hi, {}),
        ("second HELLO", encode_hello(hello()), {}),
        ("cut in a header", hi + hi[:7], {}),
        ("cut behind a header", hi + hi[:8], {}),
        ("cut in a body", hi + hi[:9], {}),
        ("cut in FIN", hi + fin[:1], {}),
    ]
    vectors = []
    for name, data, changes in cases:
        agreement = {**dict(features=0, frame_bytes_max=1024, fds_max=0), **changes}
        vectors.append(dict(name=name, bytes=data.hex(), agreement=wide(agreement),
                            **decode_stream(data, agreement)))
    return vectors


def prefixed_vectors():
    vectors = []
    for width in (2, 4, 8):
        for byte_order in ("little", "big"):
            def prefixed(*bodies):
                return b"".join(len(b).to_bytes(width, byte_order) + b for b in bodies)

            cases = [
                ("nothing", b"", 1024),
                ("messages", prefixed(b"hi", b"", b"there", b"x" * 300), 1024),
                ("only empty messages", prefixed(b"", b"", b""), 0),
                ("at the limit", prefixed(b"12345"), 5),
                ("over the limit", prefixed(b"1234", b"123456"), 5),
                ("longest length", b"\xff" * width, 1024),
                ("cut in a length", prefixed(b"hi") + prefixed(b"hi")[:width - 1], 1024),
                ("cut behind a length", prefixed(b"hi") + prefixed(b"hi")[:width], 1024),
                ("cut in a body", prefixed(b"hi") + prefixed(b"hi")[:width + 1], 1024),
            ]
            if width == 8:
                cases.append(("low 32 bits small", (2**32 + 2).to_bytes(8, byte_order) + b"hi", 1024))
            for name, data, limit in cases:
                vectors.append(dict(name=name, width_bytes=width, byte_order=byte_order,
                                    frame_bytes_max=limit, bytes=data.hex(),
                                    **decode_prefixed(data, width, byte_order, limit)))
    return vectors


def packet_vectors():
    hi = frame(MSG, b"hi")
    cases = [
        ("message", hi),
        ("empty message", frame(MSG)),
        ("longer message", frame(MSG, bytes(range(256)) * 2)),
        ("end", frame(FIN)),
        ("control frame", frame(PING, b"tick")),
        ("unknown kind that may be skipped", frame(7, b"skip me")),
        ("unknown kind that may not", frame(7, b"heed me", CRITICAL)),
        ("flags and descriptors", frame(MSG, b"hi", MORE | EXT | CRITICAL, 3)),
        ("nothing", b""),
        ("one byte", hi[:1]),
        ("no whole header", hi[:7]),
        ("no whole header, and wrong", b"\xff" * 7),
        ("header alone", hi[:8]),
        ("one byte too few", hi[:9]),
        ("one byte too many", hi + b"!"),
        ("two frames", hi + hi),
        ("no byte behind an empty message", frame(MSG) + b"!"),
        ("longest length", encode_header(2**32 - 1) + b"hi"),
        ("wrong check byte", hi[:7] + bytes([hi[7] ^ 1]) + b"hi"),
        ("wrong check byte and length", hi[:7] + bytes([hi[7] ^ 1])),
        ("kind zero", encode_header(2, 0) + b"hi"),
        ("unknown flag", frame(MSG, b"hi", 0x08)),
        ("control frame of a wrong length", frame(FIN, b"x")),
    ]
    return [dict(name=name, bytes=data.hex(), **dict(zip(("fields", "error"), result(decode_packet, data))))
            for name, data in cases]


def prefixed_packet_vectors():
    vectors = []
    for width in (2, 4, 8):
        for byte_order in ("little", "big"):
            def prefixed(body):
                return len(body).to_bytes(width, byte_order) + body

            cases = [
                ("message", prefixed(b"hi")),
                ("empty message", prefixed(b"")),
                ("nothing", b""),
                ("no whole length", prefixed(b"hi")[:width - 1]),
                ("length alone", prefixed(b"hi")[:width]),
                ("one byte too few", prefixed(b"hi")[:-1]),
                ("one byte too many", prefixed(b"hi") + b"!"),
                ("longest length", b"\xff" * width + b"hi"),
            ]
            for name, data in cases:
                body, error = result(decode_prefixed_packet, data, width, byte_order)
                vectors.append(dict(name=name, width_bytes=width, byte_order=byte_order,
                                    bytes=data.hex(), body=body, error=error))
    return vectors


def main():
    sections = dict(hello=hello_vectors(), agreements=agreement_vectors(), headers=header_vectors(),
                    streams=stream_vectors(), length_prefixed=prefixed_vectors(),
                    packets=packet_vectors(), prefixed_packets=prefixed_packet_vectors())
    text = []
    for name, vectors in sections.items():
        lines = ",\n".join("    " + json.dumps(vector) for vector in vectors)
        text.append(f'  "{name}": [\n{lines}\n  ]')
    sys.stdout.write("{\n" + ",\n".join(text) + "\n}\n")


if __name__ == "__main__":
    main()
