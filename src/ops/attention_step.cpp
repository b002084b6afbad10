#include "ops/attention_step.h"

#include <fmt/ostream.h>
#include <torch/library.h>

#include <algorithm>

#include "base/error.h"
#include "ops/cpu/attention_step.h"
#include "ops/fused.h"
#include "ops/operator.h"
#include "ops/precision.h"
#include "ops/reference_gradient.h"
#include "ops/rotary.h"
#include "ops/step_states.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;

void check_tokens(const Tensor& q, const Tensor& k, const Tensor& v) {
  const bool fits = q.dim() == 3 && k.dim() == 3 && k.sizes() == v.sizes() && q.size(0) == k.size(0) &&
                    q.size(2) == k.size(2) && k.size(1) > 0 && q.size(1) % k.size(1) == 0;
  if (fits) return;
  misuse("attention_step: q {}, k {}, v {}: expected q [R, H, d] and k, v [R, Hkv, d] where Hkv divides H",
         fmt::streamed(q.sizes()), fmt::streamed(k.sizes()), fmt::streamed(v.sizes()));
}

void check_caches(const Tensor& k, at::TensorList keys, at::TensorList values, const std::vector<int64_t>& lengths) {
  const auto rows = static_cast<size_t>(k.size(0));
  if (keys.size() != rows || values.size() != rows || lengths.size() != rows) {
    misuse("attention_step: {} keys, {} values, {} lengths for {} rows", keys.size(), values.size(), lengths.size(),
           rows);
  }
  for (size_t r = 0; r < rows; ++r) {
    const Tensor& cache = keys[r];
    const bool fits = cache.dim() == 4 && cache.size(0) == 1 && cache.size(1) == k.size(1) &&
                      cache.size(3) == k.size(2) && cache.sizes() == values[r].sizes();
    if (!fits) {
      misuse("attention_step: a cache has keys {} and values {}, expected both [1, {}, n, {}]",
             fmt::streamed(cache.sizes()), fmt::streamed(values[r].sizes()), k.size(1), k.size(2));
    }
    if (lengths[r] < 1 || lengths[r] > cache.size(2)) {
      misuse("attention_step: length {} of a cache of {} entries", lengths[r], cache.size(2));
    }
  }
}

void check_rope(const StepRope& rope, int64_t rows, int64_t width) {
  if (!rope.frequencies) return;
  if (rope.frequencies->dim() != 1 || 2 * rope.frequencies->size(0) > width ||
      static_cast<int64_t>(rope.positions.size()) != rows) {
    misuse("attention_step: {} frequencies and {} positions for {} rows of heads {} wide",
           fmt::streamed(rope.frequencies->sizes()), rope.positions.size(), rows, width);
  }
}

/// x [R, H, d] turned.
Tensor turned(const Tensor& x, const StepRope& rope) {
  if (!rope.frequencies) return x;
  const Tensor at = torch::tensor(rope.positions, torch::kFloat64).view({-1, 1, 1});
  const Tensor angles = at * rope.frequencies->cpu();
  const auto part = [&](const Tensor& t) { return t.to(x.device(), x.scalar_type()); };
  return rotary(x.unsqueeze(2), part(angles.cos()).unsqueeze(1), part(angles.sin()).unsqueeze(1), rope.interleaved)
      .squeeze(2);
}

Tensor reference(const Tensor& q, const Tensor& k, const Tensor& v, at::TensorList keys, at::TensorList values,
                 const std::vector<int64_t>& lengths, std::optional<int64_t> window, double scale,
                 const StepRope& rope) {
  const Tensor queries = turned(widened(q), rope), fresh = turned(widened(k), rope);
  const int64_t share = q.size(1) / k.size(1);
  std::vector<Tensor> rows;
  for (int64_t r = 0; r < q.size(0); ++r) {
    const int64_t length = lengths[r], seen = std::min(length, window.value_or(length));
    keys[r][0].select(1, length - 1).copy_(fresh[r]);
    values[r][0].select(1, length - 1).copy_(v[r]);
    const auto read = [&](const Tensor& cache) {
      return cache[0].narrow(1, length - seen, seen).repeat_interleave(share, 0);  // [H, n, d]
    };
    const Tensor scores = torch::matmul(read(keys[r]), queries[r].unsqueeze(2)).squeeze(2) * scale;
    rows.push_back(torch::matmul(scores.softmax(1).unsqueeze(1), read(values[r])).squeeze(1));
  }
  return torch::stack(rows).to(q.scalar_type());
}

/// Whether entries lie one behind the other, heads anywhere.
bool dense_entries(at::TensorList caches) {
  return std::all_of(caches.begin(), caches.end(), [](const Tensor& t) {
    return t.is_cpu() && t.scalar_type() == torch::kFloat32 && !t.requires_grad() &&
           t.select(0, 0).select(0, 0).is_contiguous();
  });
}

}  // namespace

Tensor attention_step(const Tensor& q, const Tensor& k, const Tensor& v, at::TensorList keys, at::TensorList values,
                      const std::vector<int64_t>& lengths, std::optional<int64_t> window, double scale,
                      const StepRope& rope) {
  check_tokens(q, k, v);
  check_caches(k, keys, values, lengths);
  check_rope(rope, q.size(0), q.size(2));
  if (window && *window < 1) misuse("attention_step: window = {}, expected at least 1", *window);
  if (q.numel() == 0) return q.clone();
  if (!fusable({q, k, v}) || wants_gradient({q, k, v}) || !dense_entries(keys) || !dense_entries(values)) {
    return reference(q, k, v, keys, values, lengths, window, scale, rope);
  }
  const Tensor frequencies = rope.frequencies ? rope.frequencies->to(torch::kFloat64).contiguous() : Tensor();
  Tensor o = torch::empty(q.sizes(), widened(q).options());
  cpu::attention_step({dense_rows_of(q), dense_rows_of(k), dense_rows_of(v), keys, values, lengths, window, scale,
                       frequencies, rope.positions, rope.interleaved},
                      o);
  return o.to(q.scalar_type());
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  define_update(
      m,
      "attention_step(Tensor q, Tensor k, Tensor v, Tensor(a!)[] keys, Tensor(b!)[] values, int[] lengths, float "
      "scale, int? window=None, Tensor? frequencies=None, int[] positions=[], bool interleaved=False) -> Tensor",
      [](const Tensor& q, const Tensor& k, const Tensor& v, at::TensorList keys, at::TensorList values,
         const std::vector<int64_t>& lengths, double scale, std::optional<int64_t> window,
         const std::optional<Tensor>& frequencies, const std::vector<int64_t>& positions, bool interleaved) {
        return attention_step(q, k, v, keys, values, lengths, window, scale, {frequencies, positions, interleaved});
      });
}

}  // namespace seqloom::ops
