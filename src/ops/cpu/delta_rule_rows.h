#pragma once

#include <algorithm>
#include <cstddef>

#include "ops/cpu/head_rows.h"

namespace seqloom::ops::cpu {

/// Tokens of a chunk: inside it the recurrence is products of small matrices and a triangular solve, across chunks a
/// state is handed on.
constexpr size_t kDeltaChunk = 64;
/// Columns of values that go through a chunk together. What happens to a column of the state depends on no other one,
/// and a narrow panel of it stays in the cache however wide the values are.
constexpr size_t kDeltaPanel = 64;

/// Below this many tokens the recurrence itself takes less than a chunk's set-up.
constexpr size_t kFewDeltaTokens = 8;

/// One head of one sequence.
struct DeltaHead {
  HeadRows q, k, v, beta, gate;  // beta and gate: one number a token; gate.from is null without gates
  size_t tokens, keys, values;
  float scale;
};

/// Columns [column, column + width) of matrices that are laid out panel by panel, each row-major.
struct DeltaPanel {
  size_t column, width;
};

inline DeltaPanel delta_panel(size_t column, size_t padded_values) {
  return {column, std::min(kDeltaPanel, padded_values - column)};
}

/// `states` holds panels [padded(K), width], `state_step` floats a chunk: the states before each chunk and behind the
/// last one, or with a step of 0 the latest alone. `errors` holds panels [kDeltaChunk, width], `error_step` floats a
/// chunk likewise.
struct DeltaForward {
  HeadResult o;
  const float* initial;  // [K, V]
  float* last;           // [K, V]
  float *states, *errors;
  size_t state_step, error_step;
};

struct DeltaBackward {
  HeadRows d_o;
  const float *states, *errors;
  size_t state_step, error_step;
  const float* d_last;  // [K, V]
  float* d_initial;     // [K, V]
  float* d_state;       // room for one in panels
  HeadResult dq, dk, dv, d_beta, d_gate;
};

/// `count` heads of one sequence. All of them take a chunk of tokens before the next one begins: a row of memory is
/// then read whole. Few tokens of which no states are kept go through the recurrence as it is defined.
void delta_forward_heads(const DeltaHead* heads, const DeltaForward* outs, size_t count);
void delta_backward_heads(const DeltaHead* heads, const DeltaBackward* outs, size_t count);

}  // namespace seqloom::ops::cpu
