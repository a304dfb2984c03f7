"""A GGUF file with other keys or tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf

KEY = "gemma-embedding."
ABSENT = object()


def changed(source: Path, target: Path, changes: dict[str, Any], arch: str = KEY[:-1]) -> Path:
    """Write the file again with other values; a tensor's name stands for the tensor."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, arch)
    for key, field in reader.fields.items():
        value = changes.get(key, field.contents())
        if key.startswith("GGUF.") or key == "general.architecture" or value is ABSENT:
            continue
        sub_type = field.types[1] if len(field.types) > 1 else None
        kind = field.types[0]
        if isinstance(value, tuple):  # another type, too
            value, kind = value
        writer.add_key_value(key.replace(KEY, f"{arch}."), value, kind, sub_type)
    for key in changes.keys() - reader.fields.keys() - {t.name for t in reader.tensors}:
        value, kind = changes[key]
        writer.add_key_value(key, value, kind)
    for tensor in reader.tensors:
        value = changes.get(tensor.name, tensor.data)
        if value is not ABSENT:
            writer.add_tensor(tensor.name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
