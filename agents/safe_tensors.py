"""Where the numbers lie in a safetensors file: what its header says."""

from __future__ import annotations

import json
from typing import NamedTuple


class Placed(NamedTuple):
    """One tensor of the file.

    Attributes:
        dtype: as the format spells it, such as "F16".
        shape: of the tensor.
        begin: offset of its first byte in the file.
        size: bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    size: int


def placed(data: bytes) -> dict[str, Placed]:
    """Name -> place, of a file that the safetensors library has accepted.

    Source: https://huggingface.co/docs/safetensors: eight bytes with the header's length, little-endian, the header
    as JSON with offsets counted from its end, the numbers.
    """
    header_size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_size])
    return {
        name: Placed(
            entry["dtype"],
            tuple(entry["shape"]),
            8 + header_size + entry["data_offsets"][0],
            entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }
