#pragma once

#include <cstddef>

#include "ops/cpu/head_rows.h"

namespace seqloom::ops::cpu {

/// Tokens of a chunk: inside it the recurrence is products of small matrices, across chunks a state is handed on.
constexpr size_t kGlaChunk = 64;

/// One head of one sequence.
struct GlaHead {
  HeadRows q, k, v, gate;  // gate.from is null without gates
  bool gate_a_channel;     // K log gates a token, or one
  size_t tokens, keys, values;
  float scale;
};

/// state and checkpoints are padded, [padded(K), padded(V)] each.
struct GlaForward {
  HeadResult o;
  float* state;        // read and replaced
  float* checkpoints;  // the states before each chunk and behind the last one, or null
};

struct GlaBackward {
  HeadRows d_o;
  const float* checkpoints;
  float* d_state;  // the final state's gradient, which becomes the initial one's
  HeadResult dq, dk, dv, d_gate;
};

/// `count` heads of one sequence. All of them take a chunk of tokens before the next one begins: a row of memory is
/// then read whole.
void gla_forward_heads(const GlaHead* heads, const GlaForward* outs, size_t count);
void gla_backward_heads(const GlaHead* heads, const GlaBackward* outs, size_t count);
/// The recurrence as it is defined, for few tokens.
void gla_recurrent_heads(const GlaHead* heads, const GlaForward* outs, size_t count);

}  // namespace seqloom::ops::cpu
