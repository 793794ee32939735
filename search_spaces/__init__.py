"""The declarative language of search spaces: parsed, checked, drawn from, enumerated."""

from search_spaces.grids import GridPoints
from search_spaces.problems import Path, Problem, SpaceError, did_you_mean
from search_spaces.schema import space_json_schema
from search_spaces.space import SearchSpace
from search_spaces.values import Scalar

__all__ = [
    "GridPoints",
    "Path",
    "Problem",
    "Scalar",
    "SearchSpace",
    "SpaceError",
    "did_you_mean",
    "space_json_schema",
]
