"""The arrays of numbers that packages hand to one another, by name."""

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]  # [n, dim], of length one unless said otherwise
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Rows = NDArray[np.int64]  # numbers of rows, from 0
TokenIds = NDArray[np.int32]  # [tokens]
