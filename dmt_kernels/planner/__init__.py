"""Layer 2: which features form a tower, and which member holds which shard. Knows no process group."""

from dmt_kernels.planner.partitioner import STRATEGIES, partition_features
from dmt_kernels.planner.placement import SPLITS, place

__all__ = ["SPLITS", "STRATEGIES", "partition_features", "place"]
