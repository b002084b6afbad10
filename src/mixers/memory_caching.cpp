#include "mixers/memory_caching.h"

#include <algorithm>

#include "mixers/cached_mixer.h"
#include "mixers/deep_memory.h"
#include "mixers/heads.h"
#include "ops/precision.h"
#include "ops/rms_norm.h"

namespace seqloom {
namespace {

constexpr double kL2Eps = 1e-6;

MixerEntry memory_caching_entry() {
  MixerEntry entry = describe_mixer<MemoryCaching>();
  entry.make = [own = entry.make, wrapper = describe_mixer<CachedMixer>().make](
                   int64_t width, const Config& table, const std::string& where) -> std::shared_ptr<Mixer> {
    return (table.contains("of") ? wrapper : own)(width, table, where);
  };
  return entry;
}

[[maybe_unused]] const bool registered = mixers().add("memory_caching", memory_caching_entry());

/// t [B, H, N, ...] at index [B] of dimension 2.
Tensor entry_of(const Tensor& t, const Tensor& index) {
  auto sizes = t.sizes().vec();
  Tensor wide = index;
  for (int64_t d = 1; d < t.dim(); ++d) wide = wide.unsqueeze(-1);
  sizes[2] = 1;
  return t.gather(2, wide.expand(sizes)).squeeze(2);
}

/// The last entry of each row that has tokens, [B]; 0 where there is none.
Tensor last_filled(const Tensor& count) {
  return (count.gt(0).to(torch::kInt64) * torch::arange(1, count.size(1) + 1, count.options())).argmax(1);
}

}  // namespace

void MemoryCachingOptions::describe(Fields& f) {
  f.add("of", of, "{ kind = ... }: cache the memory of this mixer; of the others, only the options of caching apply");
  CachingOptions::describe(f);
  f.add("memory", memory, "the memory that is cached").one_of({"linear", "swla", "dla", "titans"});
  f.add("heads", heads, "number of heads H").at_least(1).also("num_heads");
  f.add("dim_head", dim_head, "width of a head; none: width / heads").at_least(1);
  f.add("qk_norm", qk_norm, "of q and k").one_of({"none", "l2"});
  f.add("retain", retain, "what a step leaves of the memory").at_least(0).at_most(1);
  f.add("beta", beta, "swla: weight of the token before");
  f.add("lam", lam, "swla: weight of the token itself");
  f.add("memory_depth", memory_depth, "dla, titans: layers of the memory network").at_least(1);
  f.add("memory_hidden", memory_hidden, "dla, titans: its hidden width; none: 4 dim_head").at_least(1);
  f.add("residual", residual, "dla, titans: the memory answers M(z) + z");
  f.add("momentum", momentum, "dla, titans: what a step leaves of the momentum").at_least(0).at_most(1);
  f.add("lr", lr, "dla, titans: step size; lr / (1 - momentum) above 0.1 may diverge").greater_than(0);
  f.add("chunk", chunk, "dla, titans: gradients are taken at the weights before a token's chunk; 1: token by token")
      .at_least(1);
}

Config MemoryCaching::from_case(Config config, const std::map<std::string, std::vector<int64_t>>&) {
  config.erase("dim");
  if (!config.contains("chunk")) config["chunk"] = 1;  // the paper's rule, which cases follow
  return config;
}

MemoryCaching::MemoryCaching(int64_t width, const Options& o)
    : CausalMixer(width), options_(o), head_width_(o.dim_head ? *o.dim_head : head_width(width, 1, o.heads, "model")) {
  const int64_t channels = o.heads * head_width_;
  q_proj_ = register_module("q_proj", linear(width, channels, false));
  k_proj_ = register_module("k_proj", linear(width, channels, false));
  v_proj_ = register_module("v_proj", linear(width, channels, false));
  if (o.has_gates()) u_proj_ = register_module("u_proj", linear(width, channels, false));
  out_proj_ = register_module("out_proj", linear(channels, width, false));
  if (o.memory == "linear" || o.memory == "swla") {
    const bool plain = o.memory == "linear";
    cell_ = std::make_unique<LinearCell>(o.heads, head_width_, o.retain, plain ? 0 : o.beta, plain ? 1 : o.lam);
    return;
  }
  const auto initial = register_memory_network(*this, o.heads, head_width_, o.memory_hidden.value_or(4 * head_width_),
                                               head_width_, o.memory_depth);
  cell_ = std::make_unique<DeepCell>(
      initial, DeepCell::Rule{o.memory == "dla", o.residual, o.retain, o.momentum, o.lr, o.chunk});
}

Memory MemoryCaching::empty_memory(int64_t batch) const {
  Memory memory;
  const auto options = state_options();
  const MemoryState start = cell_->initial(batch, options);
  for (size_t l = 0; l < start.weights.size(); ++l) {
    memory[numbered("cache", l)] = start.weights[l].unsqueeze(2).narrow(2, 0, 0);
  }
  for (size_t l = 0; l < start.extra.size(); ++l) memory[numbered("extra", l)] = start.extra[l];
  memory["context"] = torch::zeros({batch, options_.heads, 0, head_width_}, options);
  memory["pool"] = torch::zeros({batch, options_.heads, head_width_}, options);
  memory["count"] = torch::zeros({batch, 0}, options.dtype(torch::kInt64));
  return memory;
}

int64_t MemoryCaching::memory_elements(int64_t batch) const {
  int64_t elements = 0;
  for (const Tensor& w : cell_->initial(1, state_options()).weights) elements += w.numel();
  return batch * elements;
}

/// Takes the memory apart: the running memory of each row (the initial one where a new segment begins and restarts),
/// and the entries without it. phase [B]: tokens of the running segment.
MemoryCaching::Entries MemoryCaching::closed_entries(const Memory& memory, const Tensor& phase,
                                                     Running& running) const {
  Entries entries;
  const MemoryState start = cell_->initial(phase.size(0), state_options());
  for (size_t l = 0; l < start.weights.size(); ++l) entries.weights.push_back(memory.at(numbered("cache", l)));
  entries.context = memory.at("context");
  entries.count = memory.at("count");
  const Tensor midway = phase.gt(0);
  running.state = start;
  running.pool = rows_of(midway, memory.at("pool"), torch::zeros_like(memory.at("pool")));
  running.count = phase;
  if (entries.count.size(1) == 0) return entries;

  const Tensor last = last_filled(entries.count);
  const Tensor filled = entries.count.gather(1, last.unsqueeze(1)).gt(0).squeeze(1);
  const Tensor goes_on = options_.restarts() ? midway : filled;
  for (size_t l = 0; l < start.weights.size(); ++l) {
    running.state.weights[l] = rows_of(goes_on, entry_of(entries.weights[l], last), start.weights[l]);
  }
  for (size_t l = 0; l < start.extra.size(); ++l) {
    running.state.extra[l] = rows_of(goes_on, memory.at(numbered("extra", l)), start.extra[l]);
  }
  const Tensor is_running = torch::zeros_like(entries.count, torch::kBool).scatter(1, last.unsqueeze(1), true);
  entries.count = entries.count.masked_fill(is_running.logical_and(midway.unsqueeze(1)), 0);
  drop_unused(entries, 0);
  return entries;
}

/// Entries that no row can read any more go: at the end what a running memory left, with max_caches old ones.
void MemoryCaching::drop_unused(Entries& entries, int64_t running) const {
  const auto [first, size] = options_.in_use(entries.count, running);
  if (size == entries.count.size(1)) return;
  for (Tensor& weights : entries.weights) weights = weights.narrow(2, first, size);
  entries.context = entries.context.narrow(2, first, size);
  entries.count = entries.count.narrow(1, first, size);
}

Segments MemoryCaching::project(const Tensor& x, const Tensor& real, int64_t segments, int64_t phase) {
  const auto heads = [&](Linear& projection) {
    return ops::widened(split_heads(projection(x), options_.heads)).transpose(1, 2).unflatten(2, {segments, -1});
  };
  const auto normalized = [&](const Tensor& t) { return options_.qk_norm == "l2" ? ops::l2_norm(t, kL2Eps) : t; };
  Segments s{normalized(heads(q_proj_)), normalized(heads(k_proj_)), heads(v_proj_), {}, !real.defined(), phase};
  const Tensor all = real.defined() ? real : torch::ones({x.size(0), x.size(1)}, x.options().dtype(torch::kBool));
  s.real = all.unflatten(1, {segments, -1});
  return s;
}

/// Where the running memory stands when a new segment begins.
MemoryCaching::Running MemoryCaching::begun(const Running& running) const {
  const auto batch = running.count.size(0);
  return {options_.restarts() ? cell_->initial(batch, state_options()) : running.state, torch::zeros_like(running.pool),
          torch::zeros_like(running.count)};
}

MemoryCaching::Pools MemoryCaching::pools(const Segments& s, const Running& start) const {
  const Tensor place = s.real.cumsum(-1);
  const Tensor is_first = torch::arange(s.count(), place.options()).eq(0).to(torch::kInt64);  // [S]
  const Tensor carried = start.pool.unsqueeze(2) * is_first.to(s.k.scalar_type()).unsqueeze(-1);
  return {place + (start.count.unsqueeze(1) * is_first).unsqueeze(-1), s.k.cumsum(3) + carried.unsqueeze(3)};
}

void MemoryCaching::add_entries(const SegmentReads& reads, const Pools& p, Entries& entries) const {
  for (size_t l = 0; l < entries.weights.size(); ++l) {
    entries.weights[l] = torch::cat({entries.weights[l], reads.ends.weights[l]}, 2);
  }
  const Tensor count = p.tokens.select(-1, -1);
  entries.context = torch::cat({entries.context, options_.pooled(p.sums.select(3, -1), count.unsqueeze(1))}, 2);
  entries.count = torch::cat({entries.count, count}, 1);
}

/// The weights of all entries and the running memory, [B, H, S, c, N + 1].
Tensor MemoryCaching::gates(const Tensor& x, const Pools& p, const Entries& entries) {
  const int64_t N = entries.count.size(1), B = p.sums.size(0), segments = p.sums.size(2), c = p.sums.size(3);
  const Tensor visible = options_.visible(entries.count, N - segments, segments);  // [B, S, N]
  const Tensor seen = torch::cat({visible, torch::ones_like(visible.narrow(-1, 0, 1))}, -1)
                          .view({B, 1, segments, 1, N + 1})
                          .expand({B, options_.heads, segments, c, N + 1});
  Tensor scores = torch::zeros(seen.sizes(), p.sums.options().requires_grad(false));
  if (u_proj_) {
    const Tensor u = ops::widened(split_heads(u_proj_(x), options_.heads)).transpose(1, 2);
    const Tensor cached = torch::matmul(u, entries.context.transpose(-1, -2)).unflatten(2, {segments, c});
    const Tensor online = options_.pooled(p.sums, p.tokens.unsqueeze(1)) * u.unflatten(2, {segments, c});
    scores = torch::cat({cached, online.sum(-1, /*keepdim=*/true)}, -1);
  }
  return memory_weights(options_, scores, seen);
}

/// The running memory of every row that has read something.
void MemoryCaching::move_on(const Segments& s, const SegmentReads& reads, const Pools& p, Running& running) const {
  const Tensor active = s.real.flatten(1).any(1);
  const Tensor newest = last_filled(s.real.sum(-1));
  const auto update = [&](Tensor& present, const Tensor& ends) {
    present = rows_of(active, entry_of(ends, newest), present);
  };
  for (size_t l = 0; l < running.state.weights.size(); ++l) {
    update(running.state.weights[l], reads.ends.weights[l]);
  }
  for (size_t l = 0; l < running.state.extra.size(); ++l) update(running.state.extra[l], reads.ends.extra[l]);
  update(running.pool, p.sums.select(3, -1));
  running.count =
      torch::where(active, p.tokens.select(-1, -1).gather(1, newest.unsqueeze(1)).squeeze(1), running.count);
}

Tensor MemoryCaching::read_segments(const Tensor& x, const Tensor& real, int64_t segments, int64_t phase,
                                    const Running& start, Entries& entries, Running& running) {
  const Segments s = project(x, real, segments, phase);
  const SegmentReads reads = cell_->read(s, start.state, !options_.restarts());
  const Pools p = pools(s, start);
  add_entries(reads, p, entries);
  move_on(s, reads, p, running);
  return mix_reads(s, reads, gates(x, p, entries), entries);
}

/// weights [B, H, S, c, N + 1] -> y [B, H, S c, d].
Tensor MemoryCaching::mix_reads(const Segments& s, const SegmentReads& reads, const Tensor& weights,
                                const Entries& entries) const {
  const int64_t N = entries.count.size(1), before = N - s.count();
  const Tensor cached = weights.narrow(-1, 0, N), own = weights.select(-1, N);
  if (cell_->linear()) {
    const Tensor y = (own.unsqueeze(-1) * reads.online).flatten(2, 3);
    return y + cell_->recall(s.q.flatten(2, 3), entries.weights, cached.flatten(2, 3));
  }
  const bool soup = options_.aggregate == "soup";
  // deep memories are costly to read: each segment reads only what lies before it
  std::vector<Tensor> outputs;
  const auto q = s.q.unbind(2), gates = cached.unbind(2), own_gates = own.unbind(2), online = reads.online.unbind(2);
  for (size_t i = 0; i < q.size(); ++i) {
    const int64_t visible = before + static_cast<int64_t>(i);
    std::vector<Tensor> caches;
    for (const Tensor& w : entries.weights) caches.push_back(w.narrow(2, 0, visible));
    const Tensor g = gates[i].narrow(-1, 0, visible);
    outputs.push_back(soup ? cell_->recall_mixed(q[i], caches, g, reads.running[i], own_gates[i])
                           : own_gates[i].unsqueeze(-1) * online[i] + cell_->recall(q[i], caches, g));
  }
  return torch::cat(outputs, 2);
}

void MemoryCaching::store(const Entries& entries, const Running& running, Memory& memory) const {
  for (size_t l = 0; l < entries.weights.size(); ++l) memory[numbered("cache", l)] = entries.weights[l];
  for (size_t l = 0; l < running.state.extra.size(); ++l) memory[numbered("extra", l)] = running.state.extra[l];
  memory["context"] = entries.context;
  memory["count"] = entries.count;
  memory["pool"] = running.pool;
}

Tensor MemoryCaching::read(const Tensor& x, Memory& memory, Pass& pass) {
  const Tensor before = memory.counts(x);
  const Columns columns(pass.layout, x.size(0), x.size(1), before, options_.segment);
  options_.check_segmentation(memory.tokens, columns.real().defined());
  const std::vector<int64_t> sizes = options_.cut(columns.size(), columns.phase());
  Running running;
  Entries entries = closed_entries(memory, before.remainder(options_.segment), running);
  const auto caches = entries.count.size(1) + static_cast<int64_t>(sizes.size());
  options_.check_budget(std::min(caches, options_.max_caches.value_or(caches)), memory_elements(x.size(0)));

  const Tensor real_x = columns.gather(x);
  std::vector<Tensor> outputs;
  int64_t begin = 0;
  for (size_t i = 0; i < sizes.size();) {
    const int64_t phase = i == 0 ? columns.phase() : 0;
    size_t segments = 1;  // neighbours of one length are read together, but for the rest of a segment
    while (phase == 0 && i + segments < sizes.size() && sizes[i + segments] == sizes[i]) ++segments;
    const int64_t length = static_cast<int64_t>(segments) * sizes[i];
    const Tensor real = columns.real().defined() ? columns.real().narrow(1, begin, length) : Tensor();
    const Running start = i == 0 ? running : begun(running);
    outputs.push_back(read_segments(real_x.narrow(1, begin, length), real, static_cast<int64_t>(segments), phase, start,
                                    entries, running));
    begin += length;
    i += segments;
  }
  drop_unused(entries, 1);
  store(entries, running, memory);
  const Tensor y = merge_heads(torch::cat(outputs, 2).transpose(1, 2)).to(x.scalar_type());
  return columns.scatter(out_proj_(y));
}

}  // namespace seqloom
