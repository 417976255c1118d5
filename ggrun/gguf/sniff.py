"""What a file that is not GGUF looks like.

Knows first bytes of files that people pass by mistake; must not know anything of GGUF.
"""

from __future__ import annotations

# (first bytes, what the file is and what to do about it)
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "it is a Git LFS pointer, not the model itself; run `git lfs pull` or download the file"),
    (b"PK\x03\x04", "it looks like a zip archive or a PyTorch checkpoint; convert it to GGUF"),
    (b"\x80\x02", "it looks like a Python pickle (an old PyTorch checkpoint); convert it to GGUF"),
    (b"tjgg", "it is an old GGML model (ggjt); get a GGUF conversion of it"),
    (b"fmgg", "it is an old GGML model (ggmf); get a GGUF conversion of it"),
    (b"lmgg", "it is an old GGML model (ggml); get a GGUF conversion of it"),
    (b"algg", "it is an old GGML LoRA adapter (ggla)"),
    (b"FUGG", "its bytes are in big-endian order"),
    (b"\x1f\x8b", "it is compressed with gzip; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "it is compressed with zstd; unpack it first"),
    (b"\xfd7zXZ", "it is compressed with xz; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "it is a 7z archive; unpack it first"),
    (b"BZh", "it is compressed with bzip2; unpack it first"),
    (b"\x93NUMPY", "it is a NumPy array"),
    (b"\x89HDF", "it is an HDF5 file; convert it to GGUF"),
    (b"\x7fELF", "it is a program"),
    (b"%PDF", "it is a PDF document"),
)


def describe(beginning: bytes) -> str:
    """What a file with these first bytes (512 are plenty) is, as the end of the sentence "X is not a GGUF file: ..."."""
    if not beginning:
        return "it is empty"
    for prefix, what in _BEGINNINGS:
        if beginning.startswith(prefix):
            return what
    text = beginning.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "it is a web page, perhaps a login or error page saved in place of the model; download it again"
    if beginning[8:9] == b"{" and int.from_bytes(beginning[:8], "little") < 1 << 32:
        return "it looks like safetensors; convert it to GGUF"
    if text.startswith((b"{", b"[")):
        return "it looks like JSON"
    if not beginning.strip(b"\0"):
        return "it begins with zeros, as a download that never finished does"
    if b"GGUF".startswith(beginning):
        return f"it ends after {len(beginning)} bytes"
    if beginning.isascii() and beginning.decode("ascii").replace("\n", " ").replace("\r", " ").replace("\t", " ").isprintable():
        return "it looks like text"
    return f"it begins with the bytes {beginning[:4].hex(' ')}, not with 'GGUF'"
