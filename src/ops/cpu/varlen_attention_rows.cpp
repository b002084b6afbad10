#include "ops/cpu/varlen_attention_rows.h"

#include <algorithm>
#include <numbers>

namespace seqloom::ops::cpu {

torch::Tensor by_head(const torch::Tensor& x) {
  constexpr int64_t kMultiple = 16;
  const torch::Tensor rows = x.transpose(0, 1);
  const int64_t width = x.size(2), padded = (width + kMultiple - 1) / kMultiple * kMultiple;
  if (padded == width) return rows.to(torch::kFloat32).contiguous();
  torch::Tensor wide = torch::zeros({x.size(1), x.size(0), padded}, x.options().dtype(torch::kFloat32));
  wide.narrow(2, 0, width).copy_(rows);
  return wide;
}

VarlenRows::VarlenRows(const torch::Tensor& queries, const torch::Tensor& keys, const torch::Tensor& values,
                       const VarlenRule& rule)
    : q(by_head(queries)),
      k(by_head(keys)),
      v(by_head(values)),
      rule_(rule),
      // turned round, so that queries' entries lie in their order
      bias_(rule.bias.defined() ? rule.bias.flip(1) * std::numbers::log2e : torch::Tensor()),
      width_(queries.size(2)),
      first_q_(rule.first_q.const_data_ptr<int64_t>()),
      first_k_(rule.first_k.const_data_ptr<int64_t>()) {}

int64_t VarlenRows::longest() const {
  int64_t most = 0;
  for (int64_t s = 0; s < sequences(); ++s) most = std::max(most, first_q_[s + 1] - first_q_[s]);
  return most;
}

QueryBlock VarlenRows::queries(int64_t sequence, int64_t head, int64_t first, int64_t last) const {
  const int64_t count = first_q_[sequence + 1] - first_q_[sequence];
  const int64_t keys = first_k_[sequence + 1] - first_k_[sequence], row = first_k_[sequence];
  const int64_t kv_head = head / (q.size(0) / k.size(0)), offset = (kv_head * k.size(1) + row) * padded();
  QueryBlock b;
  b.q = q.const_data_ptr<float>() + (head * q.size(1) + first_q_[sequence] + first) * padded();
  b.k = k.const_data_ptr<float>() + offset;
  b.v = v.const_data_ptr<float>() + offset;
  b.keep = rule_.keep.defined() ? rule_.keep.const_data_ptr<bool>() + row : nullptr;
  b.rows = last - first;
  b.keys = keys;
  b.width = width_;
  b.padded = padded();
  b.place = first + (rule_.causal ? keys - count : 0);
  b.causal = rule_.causal;
  b.window = rule_.window;
  b.scale = static_cast<float>(rule_.scale);
  b.bias = bias_.defined() ? bias_.const_data_ptr<float>() + head * bias_.size(1) : nullptr;
  b.reach = bias_.defined() ? bias_.size(1) / 2 : 0;
  b.softcap = static_cast<float>(rule_.softcap * std::numbers::log2e);
  return b;
}

std::vector<VarlenTask> VarlenRows::tasks(int64_t rows) const {
  std::vector<VarlenTask> all;
  for (int64_t s = 0; s < sequences(); ++s) {
    const int64_t count = first_q_[s + 1] - first_q_[s];
    for (int64_t first = 0; first < count; first += rows) {
      const int64_t last = std::min(count, first + rows);
      const QueryBlock b = queries(s, 0, first, last);
      const int64_t cost = (last - first) * (b.end_key(b.rows / 2) - b.first_key(b.rows / 2));
      for (int64_t head = 0; head < q.size(0); ++head) {
        all.push_back({s, head, first, last, cost, static_cast<int64_t>(all.size())});
      }
    }
  }
  return all;
}

QueryBlock VarlenRows::block(const VarlenTask& task, int64_t first) const {
  return queries(task.sequence, task.head, first, std::min(task.last, first + kQueries));
}

}  // namespace seqloom::ops::cpu
