"""Functional API of the ops: documentation, fake kernels and autograd for ``torch.ops.dmt.*``."""

from __future__ import annotations

from dmt_kernels.ops import _cuda, _library  # noqa: F401  (register the ops before the modules below extend them)
from dmt_kernels.ops.check_ids import MissingIds, MissingIdWatch, check_ids, raise_missing_ids
from dmt_kernels.ops.dot_interaction import dot_interaction
from dmt_kernels.ops.embedding_bag import embedding_bag, embedding_bag_
from dmt_kernels.ops.embedding_bag_blocks import embedding_bag_blocks_
from dmt_kernels.ops.embedding_update import embedding_row_squares, embedding_update_
from dmt_kernels.ops.id_codec import bytes_per_id, id_decode, id_encode, id_payload_bytes
from dmt_kernels.ops.id_exchange import IdExchange, IdRoutes, ReceivedIds, id_exchange, select_features
from dmt_kernels.ops.peer_all_to_all import peer_all_to_all, peer_all_to_all_start, peer_all_to_all_wait
from dmt_kernels.ops.stage import Ticket, stage_expect, stage_send, stage_share_memory, stage_start, stage_wait
from dmt_kernels.ops.tower_all_to_all import tower_all_to_all, tower_all_to_all_start, tower_all_to_all_wait
from dmt_kernels.ops.tower_pool import tower_pool
from dmt_kernels.ops.tower_pool_gradients import tower_pool_pooled_backward, tower_pool_weight_backward
from dmt_kernels.ops.two_stage_all_to_all import two_stage_all_to_all
from dmt_kernels.ops.wire_codec import wire_decode, wire_encode

__all__ = [
    "IdExchange",
    "IdRoutes",
    "MissingIdWatch",
    "MissingIds",
    "ReceivedIds",
    "Ticket",
    "bytes_per_id",
    "check_ids",
    "dot_interaction",
    "embedding_bag",
    "embedding_bag_",
    "embedding_bag_blocks_",
    "embedding_row_squares",
    "embedding_update_",
    "id_decode",
    "id_encode",
    "id_exchange",
    "id_payload_bytes",
    "peer_all_to_all",
    "peer_all_to_all_start",
    "peer_all_to_all_wait",
    "raise_missing_ids",
    "select_features",
    "stage_expect",
    "stage_send",
    "stage_share_memory",
    "stage_start",
    "stage_wait",
    "tower_all_to_all",
    "tower_all_to_all_start",
    "tower_all_to_all_wait",
    "tower_pool",
    "tower_pool_pooled_backward",
    "tower_pool_weight_backward",
    "two_stage_all_to_all",
    "wire_decode",
    "wire_encode",
]
