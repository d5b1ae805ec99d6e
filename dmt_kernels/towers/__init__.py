"""Layer 2: dense modules that compress a tower's embeddings before they cross hosts."""

from dmt_kernels.towers.base import TowerModule
from dmt_kernels.towers.build import TowerModuleKind, build_tower_module, common_out_dim
from dmt_kernels.towers.columns import even_columns, share_columns, tower_width
from dmt_kernels.towers.cross_net import CrossNet
from dmt_kernels.towers.custom import CustomTower
from dmt_kernels.towers.dcn import DCNTower
from dmt_kernels.towers.dlrm import DLRMTower
from dmt_kernels.towers.init import init_parameters_, isometry, seeded_rng
from dmt_kernels.towers.passthrough import PassThrough
from dmt_kernels.towers.slice import TowerSlice

__all__ = [
    "CrossNet",
    "CustomTower",
    "DCNTower",
    "DLRMTower",
    "PassThrough",
    "TowerModule",
    "TowerModuleKind",
    "TowerSlice",
    "build_tower_module",
    "common_out_dim",
    "even_columns",
    "init_parameters_",
    "isometry",
    "seeded_rng",
    "share_columns",
    "tower_width",
]
