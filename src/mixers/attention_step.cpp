// A step of attention: one token of each of many streams, each with its own cache.
#include <algorithm>

#include "mixers/attention.h"
#include "mixers/heads.h"
#include "mixers/step_parts.h"
#include "ops/attention_step.h"
#include "ops/precision.h"
#include "ops/row_by_row.h"

namespace seqloom {
namespace {

/// How many neighbours from i on are one memory.
int64_t run_length(at::ArrayRef<Memory*> streams, size_t i) {
  size_t end = i + 1;
  while (end < streams.size() && streams[end] == streams[i]) ++end;
  return static_cast<int64_t>(end - i);
}

/// The caches of all streams with room for their tokens, which they keep.
struct Room {
  std::vector<Tensor> keys, values;
  std::vector<int64_t> lengths;  // entries up to each row's own

  /// Of what was read before, at most `limit` entries stay in a cache (all when limit < 0).
  Room(at::ArrayRef<Memory*> streams, int64_t limit) {
    for (size_t i = 0; i < streams.size();) {
      Memory& memory = *streams[i];
      const int64_t rows = run_length(streams, i);
      for (const char* name : {"k", "v"}) {
        memory[name] = grown(memory[name], rows, 2, limit < 0 ? -1 : limit + rows);
        std::vector<Tensor>& all = name[0] == 'k' ? keys : values;
        all.insert(all.end(), rows, memory[name]);
      }
      for (int64_t row = rows; row > 0; --row) lengths.push_back(memory["k"].size(2) - row + 1);
      i += static_cast<size_t>(rows);
    }
  }
};

bool all_real(at::ArrayRef<Memory*> streams) {
  return std::all_of(streams.begin(), streams.end(), [](Memory* m) { return m->at("keep").size(1) == 0; });
}

}  // namespace

int64_t Attention::longest() const {
  const bool table = is("learned") || (is("urpe") && !options_.window);
  return table ? options_.max_positions : ScannableMixer::longest();
}

Tensor Attention::placed(const Tensor& x, const std::vector<int64_t>& positions) const {
  if (!is("learned") && !is("sinusoidal")) return x;
  const Tensor at = torch::tensor(positions, torch::TensorOptions(torch::kInt64).device(x.device()));
  const Tensor vectors = is("learned")
                             ? learned_at(position_->weight, at)
                             : ops::elementwise(at, [this](const Tensor& t) { return sinusoidal_at(t, width()); });
  return x + vectors.to(x.scalar_type());
}

Tensor Attention::read_each(const Tensor& x, at::ArrayRef<Memory*> streams, Pass& pass) {
  // only where scores are products of what was projected and no more: attention_step knows no bias and no softcap
  const bool plain = is("none") || is("learned") || is("sinusoidal") || is("rope");
  if (!plain || options_.logit_softcap || pass.context.defined() || pass.positions.defined() || !all_real(streams)) {
    return ScannableMixer::read_each(x, streams, pass);
  }
  for (Memory* memory : streams) check_memory(*memory, 1);
  const std::vector<int64_t> positions = positions_of(streams);
  const Tensor at = placed(x, positions);
  Tensor q = split_heads(q_proj_(at), options_.heads), k = split_heads(k_proj_(at), kv_heads_);
  const Tensor v = split_heads(v_proj_(at), kv_heads_);
  if (q_norm_) q = q_norm_->forward(q);
  if (k_norm_) k = k_norm_->forward(k);

  const Room room(streams, options_.window ? *options_.window - 1 : -1);
  ops::StepRope rope{is("rope") ? std::make_optional(frequencies_) : std::nullopt, positions,
                     options_.rope_layout == "interleaved"};
  const Tensor o = ops::attention_step(q, k, v, room.keys, room.values, room.lengths, options_.window, scale(), rope);
  for (Memory* memory : streams) trim(*memory);
  count_each(streams);
  return o_proj_(merge_heads(o).to(x.scalar_type()));
}

}  // namespace seqloom
