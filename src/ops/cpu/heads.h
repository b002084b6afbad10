#pragma once

#include <vector>

#include "base/torch.h"
#include "ops/cpu/balanced_for.h"
#include "ops/cpu/head_rows.h"

namespace seqloom::ops::cpu {

/// A row of a batch, or a packed sequence in its only row, and its chunks; `chunks_before` are those of the sequences
/// before it.
struct Sequence {
  int64_t row, first, tokens, chunks, chunks_before;
};

/// Those of q [B, T, ...] in chunks of `chunk` tokens; `offsets` are empty unless sequences are packed.
inline std::vector<Sequence> sequences_of(const torch::Tensor& q, const std::vector<int64_t>& offsets, size_t chunk) {
  const bool packed = !offsets.empty();
  const int64_t count = packed ? static_cast<int64_t>(offsets.size()) - 1 : q.size(0);
  std::vector<Sequence> sequences;
  int64_t before = 0;
  for (int64_t s = 0; s < count; ++s) {
    const int64_t first = packed ? offsets[s] : 0, tokens = (packed ? offsets[s + 1] : q.size(1)) - first;
    const int64_t chunks = (tokens + static_cast<int64_t>(chunk) - 1) / static_cast<int64_t>(chunk);
    sequences.push_back({packed ? 0 : s, first, tokens, chunks, before});
    before += chunks;
  }
  return sequences;
}

/// The rows of head h of a sequence in t [B, T, H, ...], float32 or bfloat16; none of an undefined tensor.
inline HeadRows rows_of(const torch::Tensor& t, const Sequence& s, int64_t h) {
  if (!t.defined()) return {nullptr, 0};
  const HeadRows all{t.const_data_ptr(), static_cast<size_t>(t.stride(1)), t.scalar_type() == torch::kBFloat16};
  return all.at(s.row * t.stride(0) + s.first * t.stride(1) + h * t.stride(2));
}
inline HeadResult result_of(const torch::Tensor& t, const Sequence& s, int64_t h) {
  if (!t.defined()) return {nullptr, 0};
  const HeadResult all{t.mutable_data_ptr(), static_cast<size_t>(t.stride(1)), t.scalar_type() == torch::kBFloat16};
  return all.at(s.row * t.stride(0) + s.first * t.stride(1) + h * t.stride(2));
}

/// Runs work on all heads of all sequences in parallel, up to `together` heads of one sequence at a time, which one
/// thread takes through a chunk before the next chunk. head(b, h) says what a head reads, out(b, h) where it writes.
template <typename Head, typename Out, typename MakeHead, typename MakeOut>
void for_heads(const std::vector<Sequence>& sequences, int64_t heads, int64_t together, MakeHead head, MakeOut out,
               void (*work)(const Head*, const Out*, size_t)) {
  std::vector<int64_t> costs;
  for (const Sequence& s : sequences) costs.insert(costs.end(), heads, s.tokens + 1);
  balanced_for(TaskCosts(costs), [&](int64_t begin, int64_t end) {
    std::vector<Head> group;
    std::vector<Out> outs;
    for (int64_t at = begin; at < end; ++at) {
      group.push_back(head(at / heads, at % heads));
      outs.push_back(out(at / heads, at % heads));
      const bool full = static_cast<int64_t>(group.size()) == together || (at + 1) % heads == 0;
      if (!full && at + 1 < end) continue;
      work(group.data(), outs.data(), group.size());
      group.clear();
      outs.clear();
    }
  });
}

}  // namespace seqloom::ops::cpu
