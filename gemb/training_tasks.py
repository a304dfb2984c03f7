"""What the texts of training data are for. It stands alone, for every `gemb` loads it."""

from typing import Literal

Task = Literal["retrieval", "similarity", "code", "qa", "fact", "classification", "clustering"]
