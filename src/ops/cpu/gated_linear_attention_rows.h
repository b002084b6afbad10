#pragma once

#include <cstddef>

#include "ops/cpu/head_rows.h"

namespace seqloom::ops::cpu {

/// Tokens of a chunk: inside it the recurrence is products of small matrices, across chunks a state is handed on.
constexpr size_t kGlaChunk = 64;

/// Below this many tokens the recurrence itself takes less than a chunk's set-up.
constexpr size_t kFewTokens = 8;

/// One head of one sequence.
struct GlaHead {
  HeadRows q, k, v, gate;  // gate.from is null without gates
  bool gate_a_channel;     // K log gates a token, or one
  size_t tokens, keys, values;
  float scale;
};

/// States are padded, [padded(K), padded(V)] each.
struct GlaForward {
  HeadResult o;
  float* state;        // read, unless there is none at the start, and replaced
  bool from_nothing;   // the state at the start is zero, whatever is there
  bool keep;           // whether checkpoints are kept
  float* checkpoints;  // the states between chunks
};

struct GlaBackward {
  HeadRows d_o;
  const float *initial, *checkpoints, *last;  // the states before the first chunk, null: zero; between; behind
  float* d_state;                             // the final state's gradient, which becomes the initial one's; null: zero
  bool with_initial;                          // whether the initial one's gradient is asked for
  HeadResult dq, dk, dv, d_gate;
};

/// `count` heads of one sequence. All of them take a chunk of tokens before the next one begins: a row of memory is
/// then read whole. Few tokens without checkpoints go through the recurrence as it is defined.
void gla_forward_heads(const GlaHead* heads, const GlaForward* outs, size_t count);
void gla_backward_heads(const GlaHead* heads, const GlaBackward* outs, size_t count);

}  // namespace seqloom::ops::cpu
