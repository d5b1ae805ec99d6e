"""Layer 2: process groups. The mesh of towers and members, the check that ranks agree, the dense reductions, and the
traffic it all makes.
"""

from dmt_kernels.comm.agreement import check_agreement, digest_of
from dmt_kernels.comm.mesh import Mesh, build_mesh
from dmt_kernels.comm.reduce import GradientSum, all_reduce_flat
from dmt_kernels.ops import traffic

__all__ = ["GradientSum", "Mesh", "all_reduce_flat", "build_mesh", "check_agreement", "digest_of", "traffic"]
