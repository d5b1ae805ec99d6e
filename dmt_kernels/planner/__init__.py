"""Layer 2: which features form a tower, and which member holds which shard. Knows no process group."""

from dmt_kernels.planner.affinity import alignment, load_affinity, mean_cosine, mutual_information
from dmt_kernels.planner.grouping import BY_AFFINITY, GROUPINGS, Grouping, check_grouping, group_features
from dmt_kernels.planner.loads import DEFAULT_SLACK, LOADS, Load, tower_loads
from dmt_kernels.planner.partitioner import STRATEGIES, partition_features
from dmt_kernels.planner.placement import SPLITS, place
from dmt_kernels.planner.program import DEFAULT_SECONDS

__all__ = [
    "BY_AFFINITY",
    "DEFAULT_SECONDS",
    "DEFAULT_SLACK",
    "GROUPINGS",
    "LOADS",
    "SPLITS",
    "STRATEGIES",
    "Grouping",
    "Load",
    "alignment",
    "check_grouping",
    "group_features",
    "load_affinity",
    "mean_cosine",
    "mutual_information",
    "partition_features",
    "place",
    "tower_loads",
]
