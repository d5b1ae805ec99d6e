"""Layer 4: models over any exchange; flat and multi-tower are one class."""

from dmt_kernels.models.base import Model
from dmt_kernels.models.dcn import DCN
from dmt_kernels.models.dlrm import DLRM
from dmt_kernels.models.dot_interaction import DotInteraction
from dmt_kernels.models.expansion import Expansion, expanded_dim
from dmt_kernels.models.mlp import MLP

__all__ = ["DCN", "DLRM", "MLP", "DotInteraction", "Expansion", "Model", "expanded_dim"]
