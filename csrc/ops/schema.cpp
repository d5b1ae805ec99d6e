// Every op's signature: the table of contents. Letters, the order of bags and the meaning of ids are those of
// kernels/cpu/bag_layout.h; poolings: 0 sum, 1 mean; bounds: 0 error, 1 warn, 2 none (1 and 2
// are one to an op: it is the Python function that counts and warns). The Python functions of the same names, in
// dmt_kernels/ops, carry the documentation.
#include <torch/csrc/stable/library.h>

#ifndef DMT_LIBRARY  // another name for tests of CUDA kernels on the CPU (tests/simt)
#define DMT_LIBRARY dmt
#endif

// clang-format off
STABLE_TORCH_LIBRARY(DMT_LIBRARY, ops) {
  // The pooled lookup [K*B, D] and its gradients.
  ops.def("embedding_bag(Tensor[] tables, Tensor ids, Tensor offsets, Tensor? per_sample_weights=None, int[]? feature_tables=None, int[]? poolings=None, int[]? row_starts=None, int[]? block_order=None, int bounds=0, ScalarType? out_dtype=None, bool sparse=False) -> Tensor");
  ops.def("embedding_bag_(Tensor(a!) out, Tensor[] tables, Tensor ids, Tensor offsets, Tensor? per_sample_weights=None, int[]? feature_tables=None, int[]? poolings=None, int[]? row_starts=None, int[]? block_order=None, int bounds=0) -> ()");
  // Into M blocks of rows, K a multiple of M, each in the tables' dtype or, of uint8, as messages of a wire format (below).
  ops.def("embedding_bag_blocks_(Tensor(a!)[] blocks, Tensor[] tables, Tensor ids, Tensor offsets, Tensor? per_sample_weights=None, int[]? feature_tables=None, int[]? poolings=None, int[]? row_starts=None, int[]? block_order=None, int bounds=0, int format=0) -> ()");
  ops.def("embedding_bag_backward(Tensor grad, Tensor ids, Tensor offsets, Tensor? per_sample_weights, SymInt[] table_rows, SymInt[] table_dims, ScalarType dtype, int[]? feature_tables=None, int[]? poolings=None, int[]? row_starts=None, int[]? block_order=None) -> Tensor[]");
  ops.def("embedding_bag_weights_backward(Tensor grad, Tensor[] tables, Tensor ids, Tensor offsets, int[]? feature_tables=None, int[]? poolings=None, int[]? row_starts=None, int[]? block_order=None) -> Tensor");

  // Where ids are out of range: int64 [5] = (count, block, feature, sample, position) of the first.
  ops.def("check_ids(Tensor ids, Tensor offsets, SymInt[] rows, int num_blocks=1) -> Tensor");

  // On CUDA, where nobody waits for an answer: [6] = (count, id, table, feature, sample, block) of one of the ids that ops with bounds=0 found
  // out of range since the last call.
  ops.def("take_missing_ids(Tensor like) -> Tensor");

  // The optimizer step of the rows that a batch touched, and the row statistic that column shards exchange before it.
  ops.def("embedding_update_(Tensor(a!)[] tables, Tensor(b!)[] states, Tensor grad, Tensor ids, Tensor offsets, Tensor? per_sample_weights=None, int[]? feature_tables=None, int[]? poolings=None, int[]? row_starts=None, int[]? block_order=None, int bounds=0, int optimizer=0, float lr=0.01, float eps=1e-8, float weight_decay=0.0, Tensor? row_mean_squares=None) -> ()");
  ops.def("embedding_row_squares(Tensor[] tables, Tensor grad, Tensor ids, Tensor offsets, Tensor? per_sample_weights=None, int[]? feature_tables=None, int[]? poolings=None, int[]? row_starts=None, int[]? block_order=None, float weight_decay=0.0) -> Tensor[]");

  // embedding_bag(...) @ weight.T + bias: [K*B, C]; and the gradients of weight, [C, D], and of the pooled rows, [K*B, D].
  ops.def("tower_pool(Tensor[] tables, Tensor ids, Tensor offsets, Tensor weight, Tensor? bias=None, Tensor? per_sample_weights=None, int[]? feature_tables=None, int[]? poolings=None, int[]? row_starts=None, int[]? block_order=None, int bounds=0, bool sparse=False, ScalarType? product_dtype=None) -> Tensor");
  ops.def("tower_pool_weight_backward(Tensor grad, Tensor[] tables, Tensor ids, Tensor offsets, Tensor? per_sample_weights=None, int[]? feature_tables=None, int[]? poolings=None, int[]? row_starts=None, int[]? block_order=None, ScalarType? product_dtype=None) -> Tensor");
  ops.def("tower_pool_pooled_backward(Tensor grad, Tensor weight, ScalarType? product_dtype=None) -> Tensor");

  // Dot products of all pairs of the features that lie side by side in blocks [N, F_i*dim]: [N, P], and before them the
  // first block if asked for; and the gradients of the blocks.
  ops.def("dot_interaction(Tensor[] blocks, SymInt dim, bool with_first=False) -> Tensor");
  ops.def("dot_interaction_backward(Tensor grad, Tensor[] blocks, SymInt dim, bool with_first=False) -> Tensor[]");

  // Rows [N, D] to and from the bytes that carry them between ranks. Formats: 0 fp32, 1 bf16, 2 fp16, 3 fp8, 4 int8; a
  // seed asks for stochastic rounding. kernels/wire_format.h has the layout.
  ops.def("wire_encode(Tensor input, int format, int? seed=None, SymInt step=0, SymInt first_row=0) -> Tensor");
  ops.def("wire_decode(Tensor message, SymInt dim, int format, ScalarType? dtype=None) -> Tensor");
  // The same for blocks [N_i, D_i], whose bytes lie one behind the other in a message of one dimension.
  ops.def("wire_encode_blocks_(Tensor(a!) message, Tensor[] blocks, int format, int? seed=None, SymInt step=0, SymInt first_row=0) -> ()");
  ops.def("wire_decode_blocks_(Tensor(a!)[] blocks, Tensor message, int format) -> ()");

  // Bags of ids to and from the two messages that carry them to each rank; kernels/cpu/id_codec.h has the layout.
  ops.def("id_encode(Tensor ids, Tensor offsets, Tensor? weights, int[] rows, int[] routes, int[] route_sizes, int[] id_bytes, int chunks=1) -> (Tensor, Tensor, Tensor)");
  ops.def("id_payload_bytes(Tensor lengths, int world, int item_bytes) -> Tensor");
  ops.def("id_decode(Tensor lengths, Tensor payload, int world, int id_bytes, bool weighted, int chunks=1, ScalarType? dtype=None) -> Tensor[]");

  // Collectives over a process group, by its name: uneven pieces of a flat tensor, and the stages made of it, on blocks
  // [G, N, D] of equal height. Implemented as compositions of functional collectives in dmt_kernels/ops.
  ops.def("all_to_all_start(Tensor input, SymInt[] output_splits, SymInt[] input_splits, str group) -> Tensor");
  ops.def("all_to_all_wait(Tensor started) -> Tensor");
  ops.def("tower_all_to_all_start(Tensor pooled, SymInt[] widths, str group) -> Tensor");
  ops.def("tower_all_to_all_wait(Tensor started) -> Tensor");
  ops.def("tower_all_to_all(Tensor pooled, SymInt[] widths, str group) -> Tensor");
  ops.def("peer_all_to_all_start(Tensor compressed, SymInt[] widths, str group) -> Tensor");
  ops.def("peer_all_to_all_wait(Tensor started) -> Tensor");
  ops.def("peer_all_to_all(Tensor compressed, SymInt[] widths, str group) -> Tensor");
  ops.def("two_stage_all_to_all(Tensor pooled, SymInt[] member_widths, SymInt[] tower_widths, str tower_group, str peer_group) -> Tensor");
  ops.def("id_exchange(Tensor ids, Tensor offsets, Tensor? weights, int features, int[] routes, int[] route_sizes, int rank, str group) -> (Tensor, Tensor, Tensor)");
}
// clang-format on
