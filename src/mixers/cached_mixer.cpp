#include "mixers/cached_mixer.h"

#include <algorithm>

#include "mixers/heads.h"
#include "ops/precision.h"

namespace seqloom {
namespace {

/// Of the reads of cached memories at most this many numbers of copied memory at a time.
constexpr int64_t kCopiedElements = 1 << 24;

/// weights [B] times t [B, ...].
Tensor weighted(const Tensor& weights, const Tensor& t) {
  Tensor wide = weights;
  for (int64_t d = 1; d < t.dim(); ++d) wide = wide.unsqueeze(-1);
  return wide * t;
}

}  // namespace

CachedMixer::CachedMixer(int64_t width, const Options& options)
    : CachedMixer(make_mixer(width, options.of, "of"), options,
                  "of = " + options.of.dump(-1, ' ', false, Config::error_handler_t::replace)) {}

CachedMixer::CachedMixer(const std::shared_ptr<Mixer>& mixer, const CachingOptions& options, const std::string& where)
    : CausalMixer(mixer->width()), options_(options), inner_(std::dynamic_pointer_cast<CausalMixer>(mixer)) {
  if (!inner_ || !inner_->causal()) {
    misuse("{}: it is not causal, so it has no memory that could be cached; choose a recurrent mixer", where);
  }
  const Memory empty = inner_->empty_memory(1);
  check_fixed_size(empty, where,
                   "so that there is nothing to gain from keeping copies; choose a recurrent mixer, whose memory has a "
                   "fixed size");
  for (const auto& [name, tensor] : empty.flatten()) elements_ += tensor.numel();
  register_module("of", inner_);
  if (options_.has_gates()) u_proj_ = register_module("u_proj", linear(width(), width(), false));
}

Memory CachedMixer::empty_memory(int64_t batch) const {
  Memory memory;
  memory.child("online") = inner_->empty_memory(batch);
  const Tensor parts = memory.child("online").tree_counts(torch::zeros({batch}, state_options()));
  const auto none = [](const Tensor& t) { return t.detach().unsqueeze(1).narrow(1, 0, 0); };
  memory.child("cache") = memory.child("online").map(none);
  memory["cache_tokens"] = none(parts);
  const auto options = state_options();
  memory["context"] = torch::zeros({batch, 0, width()}, options);
  memory["pool"] = torch::zeros({batch, width()}, options);
  memory["count"] = torch::zeros({batch, 0}, options.dtype(torch::kInt64));
  return memory;
}

Tensor CachedMixer::extend_inner(const Tensor& x, const Tensor& real, Memory& memory) {
  Pass pass;
  if (real.defined()) pass.layout = Layout::masked(real);
  return inner_->extend(x, memory, pass);
}

/// Rows whose first token begins a segment restart or go on from the last cache, which is the running memory.
void CachedMixer::begin_segment(const Stretch& s, Memory& memory) const {
  const int64_t batch = s.x.size(0);
  const Tensor begins =
      s.real.defined() ? s.real.select(1, 0) : torch::ones({batch}, s.x.options().dtype(torch::kBool));
  memory["pool"] = rows_of(begins, torch::zeros_like(memory["pool"]), memory["pool"]);
  if (!options_.restarts()) return;
  Memory fresh = inner_->empty_memory(batch);
  if (!begins.all().item<bool>()) fresh = rows_of(begins, fresh, memory.child("online"));
  memory.child("online") = std::move(fresh);
}

Tensor CachedMixer::gates(const Stretch& s, const Tensor& sums, const Memory& memory) {
  const Tensor& context = memory.at("context");
  const int64_t N = context.size(1), B = s.x.size(0), n = s.x.size(1);
  const Tensor visible = options_.visible(memory.at("count"), N, 1);  // [B, 1, N]
  const Tensor seen = torch::cat({visible, torch::ones({B, 1, 1}, visible.options())}, -1).expand({B, n, N + 1});
  Tensor scores = torch::zeros(seen.sizes(), sums.options().requires_grad(false));
  if (u_proj_) {
    const Tensor u = ops::widened(u_proj_(s.x));
    const Tensor online = (options_.pooled(sums, s.count) * u).sum(-1, /*keepdim=*/true);
    scores = torch::cat({torch::matmul(u, context.transpose(1, 2)), online}, -1);
  }
  return memory_weights(options_, scores, seen);
}

/// sum_i gates_i extend(x_t, C_i): x [B, n, D], gates [B, n, N].
Tensor CachedMixer::read_caches(const Tensor& x, const Tensor& gates, const Memory& memory) {
  const Memory& cache = memory.child("cache");
  const int64_t B = x.size(0), n = x.size(1), N = gates.size(2);
  const Tensor& tokens = memory.at("cache_tokens");                                // [B, N, parts]
  const Memory rows = cache.map([](const Tensor& t) { return t.flatten(0, 1); });  // [B N, ...]
  const int64_t step = std::max<int64_t>(1, kCopiedElements / (B * N * elements_));
  std::vector<Tensor> outputs;
  for (int64_t begin = 0; begin < n; begin += step) {
    const int64_t count = std::min(step, n - begin);
    const Tensor part = x.narrow(1, begin, count).unsqueeze(2);  // [B, count, 1, D]
    std::vector<Tensor> reads;                                   // [B, count, .., D] of caches with equal token counts
    for (int64_t i = 0, equal = 0; i < N; i += equal) {
      for (equal = 1; i + equal < N && tokens.select(1, i + equal).equal(tokens.select(1, i));) ++equal;
      const auto options = tokens.options();
      const Tensor index =
          (torch::arange(B, options).view({B, 1, 1}) * N + i + torch::arange(equal, options)).expand({B, count, equal});
      Memory copies = rows.select_rows(index.reshape({-1}));
      copies.set_tree_counts(tokens.flatten(0, 1).index_select(0, index.reshape({-1})));
      const Tensor y = inner_->extend(part.expand({B, count, equal, width()}).reshape({-1, 1, width()}), copies);
      reads.push_back(y.view({B, count, equal, width()}));
    }
    outputs.push_back((torch::cat(reads, 2) * gates.narrow(1, begin, count).unsqueeze(-1)).sum(2));
  }
  return torch::cat(outputs, 1);
}

/// The memories before each of x's R = 2^k tokens, rows [B R], by halving: a call of the mixer for each power of two,
/// which in R / (2 l) runs at a time goes from a memory before a run of 2 l tokens to the one in its middle.
Memory CachedMixer::memories_before(const Tensor& x, const Tensor& real, const Memory& start) {
  const auto copied = [](const Memory& memory, int64_t rows) { return memory.select_rows(torch::arange(rows)); };
  Memory before = copied(start, x.size(0));
  for (int64_t half = x.size(1) / 2; half >= 1; half /= 2) {
    const auto firsts = [&](const Tensor& t) {
      return t.defined() ? t.unflatten(1, {-1, 2 * half}).narrow(2, 0, half).flatten(0, 1) : t;
    };
    const Tensor runs = firsts(x);
    Memory middle = copied(before, runs.size(0));
    extend_inner(runs, firsts(real), middle);
    const auto paired = [](const Tensor& a, const Tensor& b) { return torch::stack({a, b}, 1).flatten(0, 1); };
    Memory both = before.zip(middle, paired);
    both.set_tree_counts(paired(before.tree_counts(runs), middle.tree_counts(runs)));
    before = std::move(both);
  }
  return before;
}

/// Reads x [B, n, D] with memories mixed by gates [B, n, N + 1], in runs of a power of two tokens.
Tensor CachedMixer::read_soup(const Stretch& s, const Tensor& gates, Memory& memory) {
  Memory& online = memory.child("online");
  const int64_t B = s.x.size(0), n = s.x.size(1), N = gates.size(2) - 1;
  const int64_t most = std::max<int64_t>(1, kCopiedElements / (B * elements_));
  std::vector<Tensor> outputs;
  for (int64_t begin = 0, R = 0; begin < n; begin += R) {
    for (R = 1; 2 * R <= std::min(most, n - begin);) R *= 2;
    const Tensor x = s.x.narrow(1, begin, R), real = s.real.defined() ? s.real.narrow(1, begin, R) : Tensor();
    const Tensor g = gates.narrow(1, begin, R), own_gates = g.select(2, N).flatten();
    const Memory before = memories_before(x, real, online);
    Memory mixed = before.zip(memory.child("cache"), [&](const Tensor& own, const Tensor& kept) {
      if (!own.is_floating_point()) return own;
      const Tensor sum = weighted(own_gates, own);
      return N == 0 ? sum : sum + torch::matmul(g.narrow(2, 0, N), kept.flatten(2)).view(own.sizes());
    });
    const Tensor y = extend_inner(x.flatten(0, 1).unsqueeze(1), real.defined() ? real.reshape({-1, 1}) : real, mixed);
    outputs.push_back(y.view(x.sizes()));
    extend_inner(x, real, online);
  }
  return torch::cat(outputs, 1);
}

/// The segment ends: its memory becomes a cache.
void CachedMixer::keep(const Stretch& s, const Tensor& sums, Memory& memory) const {
  const int64_t last = s.x.size(1) - 1;
  Tensor count = s.count.select(1, last);
  if (s.real.defined()) count = count * s.real.select(1, last);  // rows that are not at the end keep nothing
  const auto add = [](const Tensor& kept, const Tensor& fresh) { return torch::cat({kept, fresh.unsqueeze(1)}, 1); };
  memory.child("cache") = memory.child("cache").zip(memory.child("online"), add);
  memory["context"] = add(memory["context"], options_.pooled(sums.select(1, last), count));
  memory["count"] = add(memory["count"], count);
  memory["cache_tokens"] = add(memory["cache_tokens"], memory.child("online").tree_counts(count));
  if (!options_.max_caches) return;
  const auto [first, size] = options_.in_use(memory["count"], 0);
  const auto used = [first = first, size = size](const Tensor& t) { return t.narrow(1, first, size); };
  memory.child("cache") = memory.child("cache").map(used);
  for (const char* name : {"context", "count", "cache_tokens"}) memory[name] = used(memory[name]);
}

Tensor CachedMixer::read_stretch(const Stretch& s, Memory& memory) {
  if (s.begins) begin_segment(s, memory);
  const Tensor sums = memory["pool"].unsqueeze(1) + ops::widened(s.x).cumsum(1);
  const Tensor g = gates(s, sums, memory);
  Tensor y;
  if (options_.aggregate == "soup") {
    y = read_soup(s, g, memory);
  } else {
    const int64_t N = g.size(2) - 1;
    y = extend_inner(s.x, s.real, memory.child("online")) * g.narrow(2, N, 1);
    if (N > 0) y = y + read_caches(s.x, g.narrow(2, 0, N), memory);
  }
  memory["pool"] = sums.select(1, sums.size(1) - 1);
  if (s.ends) keep(s, sums, memory);
  return y;
}

Tensor CachedMixer::read(const Tensor& x, Memory& memory, Pass& pass) {
  const Tensor before = memory.counts(x);
  const Columns columns(pass.layout, x.size(0), x.size(1), before, options_.segment);
  options_.check_segmentation(memory.tokens, columns.real().defined());
  const bool constant = options_.segmentation == "constant";
  const std::vector<int64_t> sizes = options_.cut(columns.size(), columns.phase());
  const auto caches = memory["count"].size(1) + static_cast<int64_t>(sizes.size());
  options_.check_budget(std::min(caches, options_.max_caches.value_or(caches)), x.size(0) * elements_);

  const Tensor real_x = columns.gather(x);
  Tensor counts = before.remainder(options_.segment);  // of the running segment of each row
  std::vector<Tensor> outputs;
  int64_t begin = 0, phase = columns.phase();
  for (const int64_t size : sizes) {
    Stretch s;
    s.x = real_x.narrow(1, begin, size);
    if (columns.real().defined()) s.real = columns.real().narrow(1, begin, size);
    s.begins = phase == 0;
    s.ends = !constant || phase + size == options_.segment;
    s.count =
        s.real.defined() ? s.real.cumsum(1) : torch::arange(1, size + 1, counts.options()).expand({x.size(0), -1});
    s.count = s.count + counts.unsqueeze(1);
    outputs.push_back(read_stretch(s, memory));
    counts = s.ends ? torch::zeros_like(counts) : s.count.select(1, size - 1);
    begin += size;
    phase = 0;
  }
  return columns.scatter(torch::cat(outputs, 1).to(x.scalar_type()));
}

}  // namespace seqloom
