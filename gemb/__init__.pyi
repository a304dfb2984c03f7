from gemb.embedding.model import Model as Model
from gemb.errors import GembError as GembError
from gemb.models.profile import ModelProfile as ModelProfile
from gemb.search.interface import Index as Index
from gemb.search.interface import SearchHit as SearchHit
from gemb.search.interface import SearchHits as SearchHits
from gemb.search.interface import search as search

__version__: str
