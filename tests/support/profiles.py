"""ICC profiles of wide colour spaces, built from their definitions (ICC.1:2001-04: a matrix and a gamma)."""

from __future__ import annotations

import struct

import numpy as np

D50 = np.array([0.9642, 1.0, 0.8249])
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
SPACES = {  # x, y of red, green, blue and white; gamma
    "Display P3": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.3127, 0.3290), 2.2),
    "Adobe RGB": ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060), (0.3127, 0.3290), 563 / 256),
}


def matrix(name: str) -> np.ndarray:
    """Return the matrix (3, 3) from linear RGB to XYZ under D50."""
    *primaries, white, _ = SPACES[name]
    xyz = np.array([(x / y, 1, (1 - x - y) / y) for x, y in primaries]).T
    target = np.array([white[0] / white[1], 1, (1 - sum(white)) / white[1]])
    to_white = xyz * np.linalg.solve(xyz, target)
    gains = (BRADFORD @ D50) / (BRADFORD @ target)
    return np.linalg.inv(BRADFORD) @ np.diag(gains) @ BRADFORD @ to_white


def profile(name: str) -> bytes:
    """Return the ICC profile of one of ``SPACES``."""

    def fixed(values: np.ndarray) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(SPACES[name][-1] * 256)) + b"\0\0"
    text = b"text\0\0\0\0public domain\0"
    label = name.encode() + b"\0"
    described = b"desc\0\0\0\0" + struct.pack(">I", len(label)) + label + bytes(78)
    tags = {b"desc": described, b"cprt": text, b"wtpt": fixed(D50)}
    tags |= {kind: fixed(column) for kind, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), matrix(name).T, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for kind, data in tags.items():
        table += kind + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = at + len(body)
    head = struct.pack(">I4sI4s4s4s12s4s", size, bytes(4), 0x02100000, b"mntr", b"RGB ", b"XYZ ", bytes(12), b"acsp")
    head = (head + bytes(68 - len(head)) + b"".join(struct.pack(">i", round(v * 65536)) for v in D50)).ljust(128, b"\0")
    return head + struct.pack(">I", len(tags)) + table + body


def of_black_alone() -> bytes:
    """Return a CMYK profile by which only black ink is seen (ICC.1:2001-04, 6.5.8: lut8Type, two grid points)."""
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])
    lut += b"".join(struct.pack(">i", 65536 * (row == column)) for row in range(3) for column in range(3))
    corners = b"".join(bytes([0 if corner % 2 else 255, 128, 128]) for corner in range(16))  # K varies fastest
    lut += 4 * bytes(range(256)) + corners + 3 * bytes(range(256))
    white = b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(float(v) * 65536)) for v in D50)
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 6) + b"black\0" + bytes(78),
        b"cprt": b"text\0\0\0\0public domain\0",
        b"wtpt": white,
        b"A2B0": lut,
    }
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for kind, data in tags.items():
        table += kind + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s12s4s", at + len(body), bytes(4), 0x02100000, b"prtr", b"CMYK", b"Lab ", bytes(12), b"acsp")
    head = (head + bytes(68 - len(head)) + b"".join(struct.pack(">i", round(v * 65536)) for v in D50)).ljust(128, b"\0")
    return head + struct.pack(">I", len(tags)) + table + body
