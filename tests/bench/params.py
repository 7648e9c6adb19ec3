"""Parameter files of Kiln (and PaddlePaddle): a .pdiparams file is its tensors, sorted by name, without the names."""
import struct
import numpy as np


def _varint(b, at):
    v = shift = 0
    while True:
        c = b[at]
        v, at, shift = v | (c & 127) << shift, at + 1, shift + 7
        if c < 128:
            return v, at


def _dims(desc):
    """Dimensions of a TensorDesc; its type must be float32."""
    at, dims = 0, []
    while at < len(desc):
        key, at = _varint(desc, at)
        value, at = _varint(desc, at)
        if key & 7 == 2:  # bytes: padding
            at += value
        elif key >> 3 == 1 and value != 5:
            raise ValueError("a parameter is not float32")
        elif key >> 3 == 2:
            dims.append(value)
    return dims


def read(path):
    """The arrays of a file, in its order; they share one mapping of it."""
    b, at, out = np.memmap(path, np.uint8, "r"), 0, []
    while at < len(b):
        n = struct.unpack_from("<i", b, at + 16)[0]  # after version (4), levels (8: none), version (4)
        dims = _dims(bytes(b[at + 20:at + 20 + n]))
        at += 20 + n
        size = 4 * int(np.prod(dims, dtype=np.int64))
        out.append(np.frombuffer(b, np.float32, size // 4, at).reshape(dims))
        at += size
    return out
