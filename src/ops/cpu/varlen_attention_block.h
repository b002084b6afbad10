#pragma once

#include <algorithm>
#include <cstdint>

namespace seqloom::ops::cpu {

/// Queries that one task works on at a time: they lie in the lanes of the score tiles.
constexpr int64_t kQueries = 64;

/// Up to kQueries queries of one head against all keys of their sequence. Rows of q, k and v are contiguous and padded
/// with zeros to a multiple of 16 floats.
struct QueryBlock {
  const float *q, *k, *v;  // [rows, padded], [keys, padded] twice
  const bool* keep;        // [keys], null: all keys are real
  int64_t rows, keys, width, padded;
  int64_t place;  // query i stands at key i + place
  bool causal;
  int64_t window;  // 0: none
  float scale;
  const float* bias;  // [2 reach + 1], entry reach + i + place - j, cut off, in exponents of 2; null: none
  int64_t reach;
  float softcap;  // in exponents of 2; 0: none

  bool windowed() const { return causal && window > 0; }
  /// Rows first .. end - 1 see key j.
  int64_t first_row(int64_t j) const { return causal ? std::clamp<int64_t>(j - place, 0, rows) : 0; }
  int64_t end_row(int64_t j) const { return windowed() ? std::clamp<int64_t>(j - place + window, 0, rows) : rows; }
  /// Keys first .. end - 1 are seen by row i.
  int64_t first_key(int64_t i) const { return windowed() ? std::clamp<int64_t>(i + place - window + 1, 0, keys) : 0; }
  int64_t end_key(int64_t i) const { return causal ? std::clamp<int64_t>(i + place + 1, 0, keys) : keys; }
};

/// What the backward pass adds to a block.
struct GradientBlock : QueryBlock {
  const float* d_o = nullptr;                    // [rows, padded]
  const float *lse = nullptr, *delta = nullptr;  // of row i at i * step
  int64_t step = 0;                              // between rows of lse and delta
  float *dk = nullptr, *dv = nullptr;            // [keys, padded], added to; dk lacks the factor `scale`
  float* dq = nullptr;                           // [rows, padded], written
  float* d_bias = nullptr;                       // added to: that of row i and key j at i + place - j + origin
  int64_t origin = 0;
};

}  // namespace seqloom::ops::cpu
