#include <hwy/aligned_allocator.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "ops/cpu/task_queue.h"
#include "ops/cpu/varlen_attention.h"
#include "ops/cpu/varlen_attention_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/varlen_attention_backward.cpp"
#include <hwy/foreach_target.h>
// clang-format off: must follow foreach_target
#include <hwy/highway.h>
#include "ops/cpu/varlen_attention_tile-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

/// Keys that are worked on at a time.
constexpr int64_t kGradientKeys = kTileKeys;

struct GradientTiles {
  float *queries, *d_o;       // [padded, kQueries]; queries scaled such that scores are exponents of 2
  float *weights, *d_scores;  // [kGradientKeys, kQueries]
  float *lse, *delta;         // [kQueries]
};

/// Scores -> weights e^(s - lse), gradients of weights -> gradients of scores w (dw - delta), before the softcap.
inline void Differentiate(const GradientTiles& t, float softcap, int64_t keys, const ColumnRange& columns) {
  const TileVector one = hn::Set(kTileTag, 1.0f), steepness = hn::Set(kTileTag, softcap > 0 ? 1 / softcap : 0.0f);
  for (int64_t i = columns.begin; i < columns.end; i += kTileLanes) {
    const TileVector lse = hn::Load(kTileTag, t.lse + i), delta = hn::Load(kTileTag, t.delta + i);
    for (int64_t j = 0; j < keys; ++j) {
      float *weights = t.weights + j * kQueries + i, *d_scores = t.d_scores + j * kQueries + i;
      const TileVector score = hn::Load(kTileTag, weights), w = Exp2(kTileTag, hn::Sub(score, lse));
      TileVector d = hn::Mul(w, hn::Sub(hn::Load(kTileTag, d_scores), delta));
      if (softcap > 0) {  // a hidden score is no number
        const TileVector bent = hn::Mul(score, steepness), slope = hn::NegMulAdd(bent, bent, one);
        d = hn::IfThenZeroElse(hn::Eq(w, hn::Zero(kTileTag)), hn::Mul(d, slope));
      }
      hn::Store(w, kTileTag, weights);
      hn::Store(d, kTileTag, d_scores);
    }
  }
}

/// Adds up the gradients of scores at equal distances.
inline void BiasGradients(const GradientBlock& b, const GradientTiles& t, int64_t first, int64_t last,
                          const ColumnRange& columns) {
  for (int64_t j = first; j < last; ++j) {
    const float* d_scores = t.d_scores + (j - first) * kQueries;
    float* to = b.d_bias + b.place - j + b.origin;
    for (int64_t i = columns.begin; i < columns.end; i += kTileLanes) {
      hn::StoreU(hn::Add(hn::LoadU(kTileTag, to + i), hn::Load(kTileTag, d_scores + i)), kTileTag, to + i);
    }
  }
}

inline void KeyGradients(const GradientBlock& b, const GradientTiles& t, int64_t first, int64_t last) {
  const ColumnRange columns = ColumnsOf(b, first, last);
  const int64_t padded = b.padded, keys = last - first, row = columns.begin;
  const int64_t rows = HWY_MIN(columns.end, b.rows) - row;
  if (rows <= 0) return;
  Scores(b, t.queries, first, last, columns, t.weights);
  const size_t step = padded;
  TileProduct({b.v + first * padded, step, 1}, t.d_o + row, kQueries, t.d_scores + row, kQueries, keys, b.width,
              columns.end - row, /*add=*/false);
  Differentiate(t, b.softcap, keys, columns);
  if (b.d_bias != nullptr) BiasGradients(b, t, first, last, columns);
  TileProduct({t.weights + row, kQueries, 1}, b.d_o + row * padded, padded, b.dv + first * padded, padded, keys, rows,
              padded, /*add=*/true);
  TileProduct({t.d_scores + row, kQueries, 1}, b.q + row * padded, padded, b.dk + first * padded, padded, keys, rows,
              padded, /*add=*/true);
  TileProduct({t.d_scores + row, 1, kQueries}, b.k + first * padded, padded, b.dq + row * padded, padded, rows, keys,
              padded, /*add=*/true);
}

void GradientsOfBlock(const GradientBlock& b, float* scratch) {
  const auto take = [&](int64_t size) { return std::exchange(scratch, scratch + size); };
  GradientTiles t{take(b.padded * kQueries),
                  take(b.padded * kQueries),
                  take(kGradientKeys * kQueries),
                  take(kGradientKeys * kQueries),
                  take(kQueries),
                  take(kQueries)};
  Transpose(b.q, b.rows, b.padded, b.scale * kLog2E, t.queries);
  Transpose(b.d_o, b.rows, b.padded, 1, t.d_o);
  for (int64_t i = 0; i < kQueries; ++i) {  // rows that see nothing, or are not there, get weights of 0
    const bool sees = i < b.rows && b.lse[i * b.step] != kHidden;
    t.lse[i] = sees ? b.lse[i * b.step] * kLog2E : -kHidden;
    t.delta[i] = sees ? b.delta[i * b.step] : 0;
  }
  std::fill_n(b.dq, b.rows * b.padded, 0.0f);
  const int64_t end = b.end_key(b.rows - 1);
  for (int64_t j = b.first_key(0); j < end; j += kGradientKeys) KeyGradients(b, t, j, HWY_MIN(end, j + kGradientKeys));
}

/// Floats of scratch that GradientsOfBlock needs.
int64_t GradientScratch(int64_t padded) {
  return (2 * padded + 2 * kGradientKeys + 2) * kQueries;
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqloom::ops::cpu {

HWY_EXPORT(GradientsOfBlock);
HWY_EXPORT(GradientScratch);

namespace {

/// Queries a task: tasks of one head add to key gradients of their own, so that there are only as many as keep some
/// threads busy. The cut does not depend on the number of threads, so results do not either.
int64_t rows_per_task(const VarlenRows& rows) {
  constexpr int64_t kTasks = 16, kMostParts = 4, kLeastRows = 512;
  const int64_t heads = std::max<int64_t>(1, rows.sequences() * rows.q.size(0));
  const int64_t parts = std::clamp<int64_t>(kTasks / heads, 1, kMostParts);
  const int64_t count = std::max(kLeastRows, (rows.longest() + parts - 1) / parts);
  return (count + kQueries - 1) / kQueries * kQueries;
}

/// The gradient of the bias in parts of tasks' own: part i has that of distances i + place - j from `lowest[i]` on.
struct BiasParts {
  BiasParts(const VarlenRows& rows, const std::vector<VarlenTask>& tasks, const torch::TensorOptions& options) {
    starts.push_back(0);
    for (const VarlenTask& task : tasks) {
      const QueryBlock b = rows.block(task, task.first);
      lowest.push_back(b.place - b.keys + 1);
      starts.push_back(starts.back() + task.last - task.first + b.keys + kQueries);  // the last block's rows are padded
    }
    parts = torch::zeros({starts.back()}, options);
  }

  /// Tasks are added in their order, whatever thread did them.
  torch::Tensor total(const std::vector<VarlenTask>& tasks, int64_t heads, int64_t size) const {
    torch::Tensor sums = torch::zeros({heads, size}, torch::kFloat64);
    const auto* from = parts.const_data_ptr<float>();
    auto* to = sums.mutable_data_ptr<double>();
    for (const VarlenTask& task : tasks) {
      const int64_t count = starts[task.index + 1] - starts[task.index];
      for (int64_t x = 0; x < count; ++x) {
        const int64_t entry = size / 2 - (lowest[task.index] + x);
        to[task.head * size + std::clamp<int64_t>(entry, 0, size - 1)] += from[starts[task.index] + x];
      }
    }
    return sums.to(torch::kFloat32);
  }

  torch::Tensor parts;
  std::vector<int64_t> starts, lowest;
};

/// Gradients of parts and query heads [parts, H, Nk, padded] -> [Nk, Hkv, d].
torch::Tensor gathered(const torch::Tensor& parts, int64_t kv_heads, int64_t width) {
  torch::Tensor heads = parts.unflatten(1, {kv_heads, -1});
  heads = heads.size(0) * heads.size(2) == 1 ? heads.select(2, 0).select(0, 0) : heads.sum({0, 2});
  return heads.narrow(2, 0, width).transpose(0, 1);
}

}  // namespace

VarlenGradients varlen_attention_backward(const torch::Tensor& d_o, const torch::Tensor& q, const torch::Tensor& k,
                                          const torch::Tensor& v, const torch::Tensor& lse, const torch::Tensor& delta,
                                          const VarlenRule& rule, bool with_bias) {
  const VarlenRows rows(q, k, v, rule);
  const torch::Tensor d_out = by_head(d_o), l = lse.contiguous(), d = delta.contiguous();
  const int64_t heads = q.size(1), width = q.size(2), padded = rows.padded(), per_task = rows_per_task(rows);
  const int64_t parts = std::max<int64_t>(1, (rows.longest() + per_task - 1) / per_task);
  torch::Tensor dq = torch::empty_like(rows.q);
  torch::Tensor dk = torch::zeros({parts, heads, k.size(0), padded}, rows.q.options()), dv = torch::zeros_like(dk);
  const float *d_in = d_out.const_data_ptr<float>(), *l_in = l.const_data_ptr<float>(),
              *delta_in = d.const_data_ptr<float>();
  float *dq_out = dq.mutable_data_ptr<float>(), *dk_out = dk.mutable_data_ptr<float>(),
        *dv_out = dv.mutable_data_ptr<float>();
  const std::vector<VarlenTask> tasks = rows.tasks(per_task);
  std::optional<BiasParts> bias;
  if (with_bias) bias.emplace(rows, tasks, rows.q.options());
  run_tasks(tasks, [&] {
    const auto size = HWY_DYNAMIC_DISPATCH(GradientScratch)(padded);
    return [&, scratch = hwy::AllocateAligned<float>(size)](const VarlenTask& task) {
      const int64_t part = task.first / per_task;
      const int64_t keys = ((part * heads + task.head) * k.size(0) + rows.first_key(task)) * padded;
      for (int64_t first = task.first; first < task.last; first += kQueries) {
        const int64_t query = rows.first_query(task) + first, row = task.head * q.size(0) + query;
        GradientBlock b{rows.block(task, first)};
        b.d_o = d_in + row * padded;
        b.dq = dq_out + row * padded;
        b.lse = l_in + query * heads + task.head;
        b.delta = delta_in + query * heads + task.head;
        b.step = heads;
        b.dk = dk_out + keys;
        b.dv = dv_out + keys;
        if (bias) {
          b.d_bias = bias->parts.mutable_data_ptr<float>() + bias->starts[task.index];
          b.origin = -bias->lowest[task.index];
        }
        HWY_DYNAMIC_DISPATCH(GradientsOfBlock)(b, scratch.get());
      }
    };
  });
  return {dq.narrow(2, 0, width).transpose(0, 1) * rule.scale, gathered(dk, k.size(1), width) * rule.scale,
          gathered(dv, k.size(1), width), bias ? bias->total(tasks, heads, rule.bias.size(1)) : torch::Tensor()};
}

}  // namespace seqloom::ops::cpu
#endif  // HWY_ONCE
