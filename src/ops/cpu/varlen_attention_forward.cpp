#include <hwy/aligned_allocator.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "ops/cpu/task_queue.h"
#include "ops/cpu/varlen_attention.h"
#include "ops/cpu/varlen_attention_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/varlen_attention_forward.cpp"
#include <hwy/foreach_target.h>
// clang-format off: must follow foreach_target
#include <hwy/highway.h>
#include "ops/cpu/varlen_attention_tile-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

/// Keys that are scored, exponentiated and multiplied at a time.
constexpr int64_t kKeys = 4 * kStrip;

/// The running softmax of a block (Milakov & Gimelshein 2018, arXiv 1805.02867; Dao et al. 2022, arXiv 2205.14135).
struct Running {
  float* queries;                // [padded, kQueries], scaled such that scores are exponents of 2
  float* scores;                 // [kKeys, kQueries], then weights
  float* sums;                   // [kQueries, padded], of weighted values
  float *most, *total, *factor;  // [kQueries]: maximum, sum of weights, what the last maximum shrank earlier sums by
};

/// Weights of keys [first, last) in one vector of rows; returns whether their maximum has moved.
inline bool Exponentiate(const QueryBlock& b, const Running& r, int64_t first, int64_t last, int64_t column) {
  const int64_t final_row = HWY_MIN(column + static_cast<int64_t>(kTileLanes), b.rows) - 1;
  const int64_t begin = HWY_MIN(HWY_MAX(first, b.first_key(column)), last);
  const int64_t end = HWY_MAX(HWY_MIN(last, b.end_key(final_row)), begin);
  float* scores = r.scores + column;
  const auto at = [&](int64_t j) { return scores + (j - first) * kQueries; };
  const TileVector none = hn::Set(kTileTag, kHidden);
  TileVector tops[4] = {hn::Load(kTileTag, r.most + column), none, none, none};
  const TileVector before = tops[0];
  int64_t j = begin;
  for (; j + 4 <= end; j += 4) {
    for (int64_t u = 0; u < 4; ++u) tops[u] = hn::Max(tops[u], hn::Load(kTileTag, at(j + u)));
  }
  for (; j < end; ++j) tops[0] = hn::Max(tops[0], hn::Load(kTileTag, at(j)));
  const TileVector top = hn::Max(hn::Max(tops[0], tops[1]), hn::Max(tops[2], tops[3]));
  const TileVector origin = hn::IfThenElse(hn::Eq(top, none), hn::Zero(kTileTag), top);
  TileVector total = hn::Zero(kTileTag);
  for (j = first; j < begin; ++j) hn::Store(hn::Zero(kTileTag), kTileTag, at(j));
  for (; j < end; ++j) {
    const TileVector weight = Exp2(kTileTag, hn::Sub(hn::Load(kTileTag, at(j)), origin));
    total = hn::Add(total, weight);
    hn::Store(weight, kTileTag, at(j));
  }
  for (; j < last; ++j) hn::Store(hn::Zero(kTileTag), kTileTag, at(j));
  const TileVector factor = Exp2(kTileTag, hn::Sub(before, origin));
  hn::Store(top, kTileTag, r.most + column);
  hn::Store(factor, kTileTag, r.factor + column);
  hn::Store(hn::MulAdd(hn::Load(kTileTag, r.total + column), factor, total), kTileTag, r.total + column);
  return !hn::AllTrue(kTileTag, hn::Eq(before, top));
}

inline void Shrink(const QueryBlock& b, const Running& r) {
  for (int64_t i = 0; i < b.rows; ++i) {
    if (r.factor[i] == 1) continue;
    const TileVector factor = hn::Set(kTileTag, r.factor[i]);
    for (int64_t c = 0; c < b.padded; c += kTileLanes) {
      float* sum = r.sums + i * b.padded + c;
      hn::Store(hn::Mul(factor, hn::Load(kTileTag, sum)), kTileTag, sum);
    }
  }
}

inline void ReadKeys(const QueryBlock& b, const Running& r, int64_t first, int64_t last) {
  for (int64_t j = first; j < last; j += kStrip) {
    const int64_t end = HWY_MIN(last, j + kStrip);
    Scores(b, r.queries, j, end, ColumnsOf(b, j, end), r.scores + (j - first) * kQueries);
  }
  bool moved = false;
  for (int64_t column = 0; column < b.rows; column += kTileLanes) {
    moved = Exponentiate(b, r, first, last, column) || moved;
  }
  if (moved) Shrink(b, r);
  for (int64_t i = 0; i < b.rows; i += kStrip) {
    const int64_t rows = HWY_MIN(kStrip, b.rows - i);
    const int64_t begin = HWY_MAX(first, b.first_key(i)), end = HWY_MIN(last, b.end_key(i + rows - 1));
    if (begin >= end) continue;
    TileProduct({r.scores + (begin - first) * kQueries + i, 1, kQueries}, b.v + begin * b.padded, b.padded,
                r.sums + i * b.padded, b.padded, rows, end - begin, b.padded, /*add=*/true);
  }
}

/// o: rows of `width` floats, o_step apart; lse: lse_step apart.
void AttendBlock(const QueryBlock& b, float* o, int64_t o_step, float* lse, int64_t lse_step, float* scratch) {
  const auto take = [&](int64_t size) { return std::exchange(scratch, scratch + size); };
  Running r{take(b.padded * kQueries),
            take(kKeys * kQueries),
            take(kQueries * b.padded),
            take(kQueries),
            take(kQueries),
            take(kQueries)};
  Transpose(b.q, b.rows, b.padded, b.scale * kLog2E, r.queries);
  std::fill_n(r.sums, kQueries * b.padded, 0.0f);
  std::fill_n(r.most, kQueries, kHidden);
  std::fill_n(r.total, kQueries, 0.0f);
  const int64_t end = b.end_key(b.rows - 1);
  for (int64_t j = b.first_key(0); j < end; j += kKeys) ReadKeys(b, r, j, HWY_MIN(end, j + kKeys));
  for (int64_t i = 0; i < b.rows; ++i) {
    const bool nothing = r.total[i] == 0;
    const TileVector share = hn::Set(kTileTag, nothing ? 0.0f : 1 / r.total[i]);
    for (int64_t c = 0; c < b.width; c += kTileLanes) {
      const TileVector sum = hn::Load(kTileTag, r.sums + i * b.padded + c);
      StoreFirst(kTileTag, hn::Mul(share, sum), o + i * o_step + c, b.width - c);
    }
    lse[i * lse_step] = nothing ? kHidden : (r.most[i] + std::log2(r.total[i])) / kLog2E;
  }
}

/// Floats of scratch that AttendBlock needs.
int64_t AttendScratch(int64_t padded) {
  return (2 * padded + kKeys + 3) * kQueries;
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqloom::ops::cpu {

HWY_EXPORT(AttendBlock);
HWY_EXPORT(AttendScratch);

std::tuple<torch::Tensor, torch::Tensor> varlen_attention_forward(const torch::Tensor& q, const torch::Tensor& k,
                                                                  const torch::Tensor& v, const VarlenRule& rule) {
  const VarlenRows rows(q, k, v, rule);
  const int64_t heads = q.size(1), width = q.size(2);
  const auto options = rows.q.options();
  torch::Tensor o = torch::empty({q.size(0), heads, width}, options), lse = torch::empty({q.size(0), heads}, options);
  float *o_out = o.mutable_data_ptr<float>(), *lse_out = lse.mutable_data_ptr<float>();
  run_tasks(rows.tasks(kQueries), [&] {
    const auto size = HWY_DYNAMIC_DISPATCH(AttendScratch)(rows.padded());
    return [&, scratch = hwy::AllocateAligned<float>(size)](const VarlenTask& task) {
      const int64_t row = (rows.first_query(task) + task.first) * heads + task.head;
      HWY_DYNAMIC_DISPATCH(AttendBlock)
      (rows.block(task, task.first), o_out + row * width, heads * width, lse_out + row, heads, scratch.get());
    };
  });
  return {o, lse};
}

}  // namespace seqloom::ops::cpu
#endif  // HWY_ONCE
