"""CRC-32C (Castagnoli) in plain Python, by large integers: about 100 MB/s.

A message is a polynomial over two elements, its checksum is the remainder by another one. A long message
is halved again and again: `high * x^n + low` has the same remainder as `high * (x^n mod P) + low`, and that
product is a few shifts of `high`. The bit order is that of the checksum: bit 0 of the first byte is the
highest power, so in a little-endian integer the lower bits are the higher powers.
"""

from __future__ import annotations

from functools import lru_cache

# As RFC 3720 has it, without its highest power, and with x^31 as bit 0.
POLYNOMIAL = 0x82F63B78
# Bits up to which a byte at a time is quicker.
SHORT = 1024


def _times_x(value: int) -> int:
    return value >> 1 ^ (POLYNOMIAL if value & 1 else 0)


def _table() -> list[int]:
    table = list(range(256))
    for _ in range(8):
        table = [_times_x(value) for value in table]
    return table


TABLE = _table()


@lru_cache(maxsize=4096)
def _power(exponent: int) -> tuple[int, ...]:
    """The powers of x whose sum is the remainder of `x**exponent`."""
    result, square = 1 << 31, 1 << 30
    while exponent:
        if exponent & 1:
            result = _product(result, square)
        square, exponent = _product(square, square), exponent >> 1
    return tuple(31 - bit for bit in range(32) if result >> bit & 1)


def _product(a: int, b: int) -> int:
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = _times_x(b)
    return product


def crc32c(data: bytes, before: int = 0) -> int:
    """The checksum of `data`; `before` is that of the bytes in front of it."""
    crc, bits = before ^ 0xFFFFFFFF, 8 * len(data)
    if bits > SHORT:
        message, crc = int.from_bytes(data, "little") ^ crc, 0
        while bits > SHORT:
            # Whole bytes; the rest has room for the product of the half and a remainder.
            half = (bits // 2 - 32) & ~7
            bits -= half
            high = message & ((1 << half) - 1)
            message >>= half
            for power in _power(bits):
                message ^= high << (bits - half - power)
        data = message.to_bytes(bits // 8, "little")
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
