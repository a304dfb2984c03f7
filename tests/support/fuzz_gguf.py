"""Open many damaged copies of a GGUF file, each in a fork: python fuzz_gguf.py FILE CASES SEED.

One byte of the header is changed in each. Prints how many copies opened and how many were refused;
a copy that ends the process, or raises anything but one line of gemb's own, is printed and fails.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import tempfile
from pathlib import Path

from gemb.backend import Runtime
from gemb.errors import GembError
from gemb.models.gguf_header import read_header
from gemb_llamacpp import LlamaCppBackend, encode, native  # noqa: F401 (imported before the forks)

OPENED, REFUSED, BROKEN = 0, 3, 4
TEXT = "hello world \n\n <unused0> ▁ 日本 zq"


def outcome(path: Path) -> int:
    """Open and use the file in a fork; return its exit status."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return status if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(20)
    try:
        encoder = LlamaCppBackend().open(path, Runtime(device="cpu", threads=1))
        encoder.encode(encoder.tokenize([TEXT]))
    except GembError as error:
        os._exit(REFUSED if "\n" not in str(error) else BROKEN)
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(BROKEN)
    os._exit(OPENED)


def main(source: Path, cases: int, seed: int) -> None:
    native.llama()
    data = source.read_bytes()
    end = read_header(source).data_start
    generator = random.Random(seed)
    counts = {OPENED: 0, REFUSED: 0}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.gguf"
        for _ in range(cases):
            # Half of them among the keys, before the long arrays of the vocabulary.
            at = generator.randrange(min(end, 1500) if generator.random() < 0.5 else end)
            value = generator.choice(
                [data[at] ^ (1 << generator.randrange(8)), generator.randrange(256), 0, 255]
            )
            path.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
            status = outcome(path)
            if status not in counts:
                sys.exit(f"byte {at}: {data[at]} -> {value}: status {status}")
            counts[status] += 1
    print(counts[OPENED], counts[REFUSED])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
