"""Ray: `gemb embed --engine ray`, and `Embedder` for everybody's own `map_batches`.

`embedder`: the class; it needs no Ray, and serves Spark and Daft, too. `cluster`: Ray, started or
joined. `files`: inputs on any file system. `source`: a Ray datasource of gemb's records. `parts`: a
folder of parts that a later run goes on with. `worker`: records to a part. `run`: the driver.

A Ray row is a part: some thousand records of one input file, which one worker embeds and writes
under a name that follows from the input alone. Ray may lose it, and give it to another worker, at
any time: its file is the same, and replaces the other as a whole.
"""

from gemb.integrations.ray.embedder import Embedder

__all__ = ["Embedder"]
