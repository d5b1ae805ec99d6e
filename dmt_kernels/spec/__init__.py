"""Layer 0: plain dataclasses that every other layer speaks in. No tensors are computed here."""

from dmt_kernels.spec.batch import Batch, Jagged
from dmt_kernels.spec.errors import ExchangeError, InputError, NotBuilt, RankFailed
from dmt_kernels.spec.optimizer import TableOptimizer
from dmt_kernels.spec.partition import Partition
from dmt_kernels.spec.payloads import Payloads
from dmt_kernels.spec.seeding import derive_seed
from dmt_kernels.spec.shards import Plan, Shard
from dmt_kernels.spec.tables import Table, tables_by_feature
from dmt_kernels.spec.topology import Topology
from dmt_kernels.spec.wire_format import ErrorBound, WireFormat

__all__ = [
    "Batch",
    "ErrorBound",
    "ExchangeError",
    "InputError",
    "Jagged",
    "NotBuilt",
    "Partition",
    "Payloads",
    "Plan",
    "RankFailed",
    "Shard",
    "Table",
    "TableOptimizer",
    "Topology",
    "WireFormat",
    "derive_seed",
    "tables_by_feature",
]
