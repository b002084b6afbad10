#include "mixers/titans_layers.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "blocks/positions.h"
#include "mixers/caching.h"
#include "mixers/heads.h"
#include "ops/attention.h"
#include "ops/precision.h"

namespace seqloom {
namespace {

struct WindowOptions : PrefixAttentionOptions {
  int64_t window = 64;

  void describe(Fields& f) {
    PrefixAttentionOptions::describe(f);
    f.add("window", window, "tokens a token sees, its own included, beside the persistent ones")
        .at_least(1)
        .at_most(1 << 20);
  }
};

WindowOptions window_options(const TitansLayerOptions& o) {
  return read_options<WindowOptions>(o.attention, "attention");
}

/// Blocks of `queries` queries and the keys that any of them may see: t [B, n + M queries, H, d] -> [B M, H, n +
/// queries, d].
Tensor blocks_of_keys(const Tensor& t, int64_t keys, int64_t queries) {
  return t.unfold(1, keys, queries).transpose(-1, -2).flatten(0, 1);
}

Layout layout_of(const Tensor& real) {
  return real.defined() ? Layout::masked(real) : Layout();
}

ops::AttentionRule rule_of(double scale, std::optional<int64_t> window) {
  ops::AttentionRule rule;
  rule.scale = scale;
  rule.causal = window.has_value();
  rule.window = window;
  return rule;
}

/// The rows in which nothing was read, [B] bool; undefined: none.
Tensor unread_rows(const Memory& memory, const Tensor& like) {
  if (memory.even() && memory.tokens > 0) return {};
  const Tensor unread = memory.counts(like).eq(0);
  return unread.any().item<bool>() ? unread : Tensor();
}

}  // namespace

SEQLOOM_REGISTER_MIXER("titans_mag", TitansMag);
SEQLOOM_REGISTER_MIXER("titans_mal", TitansMal);
SEQLOOM_REGISTER_MIXER("titans_mac", TitansMac);

void PrefixAttentionOptions::describe(Fields& f) {
  f.add("heads", heads, "number of heads H, which divides the width").at_least(1).also("num_heads");
  f.add("position", position, "how positions enter").one_of({"none", "rope"});
  f.add("rope_base", rope_base, "rope: frequencies fall from 1 to about 1 / base").greater_than(0);
}

void TitansLayerOptions::describe(Fields& f) {
  f.add("memory", memory, "{ kind = ... }: the long-term memory, any causal mixer");
  f.add("attention", attention, "{ heads = 4, window = 64, position = \"none\" | \"rope\", rope_base = 10000 }");
  f.add("persistent", persistent, "learned tokens before the sequence, which all tokens see").at_least(1);
}

PrefixAttention::PrefixAttention(int64_t width, const PrefixAttentionOptions& o, int64_t window)
    : heads_(o.heads), head_width_(head_width(width, 1, o.heads, "model")), window_(window) {
  q_proj_ = register_module("q_proj", linear(width, width, false));
  k_proj_ = register_module("k_proj", linear(width, width, false));
  v_proj_ = register_module("v_proj", linear(width, width, false));
  o_proj_ = register_module("o_proj", linear(width, width, false));
  RopeOptions rope;
  rope.base = o.rope_base;
  if (o.position == "rope") frequencies_ = rope_frequencies(head_width_, rope);
}

Tensor PrefixAttention::heads_of(Linear& projection, const Tensor& x) const {
  return ops::widened(split_heads(projection(x), heads_));
}

Tensor PrefixAttention::turned(const Tensor& heads, const Tensor& positions) const {
  if (!frequencies_.defined()) return heads;
  return rotate(heads.transpose(1, 2), rope_angles(positions, frequencies_).unsqueeze(1), "half").transpose(1, 2);
}

Memory PrefixAttention::empty_memory(int64_t batch, int64_t prefix, const torch::TensorOptions& options) const {
  Memory memory;
  for (const char* name : {"k", "v"}) {
    memory[name] = torch::zeros({batch, window_ - 1, heads_, head_width_}, options);
    memory[std::string("prefix_") + name] = torch::zeros({batch, prefix, heads_, head_width_}, options);
  }
  return memory;
}

void PrefixAttention::begin(const Tensor& prefix, const Tensor& rows, Memory& memory) {
  const Tensor places = torch::arange(prefix.size(1), prefix.options().dtype(torch::kInt64).requires_grad(false));
  memory["prefix_k"] = rows_of(rows, turned(heads_of(k_proj_, prefix), places.unsqueeze(0)), memory["prefix_k"]);
  memory["prefix_v"] = rows_of(rows, heads_of(v_proj_, prefix), memory["prefix_v"]);
}

Tensor PrefixAttention::extend(const Tensor& x, const Tensor& positions, const Tensor& known, const Columns& columns,
                               Memory& memory) {
  const Tensor places = positions + memory["prefix_k"].size(1);
  const auto joined = [&](const char* name, const Tensor& fresh) {
    Tensor all = columns.behind(memory[name], fresh);
    memory[name] = columns.last(all, window_ - 1);
    return all;
  };
  const Tensor k = joined("k", turned(heads_of(k_proj_, x), places));
  const Tensor v = joined("v", heads_of(v_proj_, x));
  const Tensor o = attend(turned(heads_of(q_proj_, x), places), k, v, known, memory);
  return o_proj_(merge_heads(o).to(x.scalar_type()));
}

/// In blocks of queries, so that the work is O(T window): the softmax over prefix and window is the merge of two.
Tensor PrefixAttention::attend(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& known,
                               const Memory& memory) const {
  const int64_t tokens = q.size(1), rows = std::min<int64_t>(tokens, std::clamp<int64_t>(window_, 16, 128));
  const int64_t blocks = (tokens + rows - 1) / rows;
  // one block, a streamed token or a segment, leaves out what it does not see; several are cut to one size
  const int64_t earlier = blocks == 1 ? std::min(window_ - 1, known.max().item<int64_t>()) : window_ - 1;
  const int64_t keys = earlier + rows;
  const auto filled = [&](const Tensor& t) {
    return torch::constant_pad_nd(t, {0, 0, 0, 0, 0, blocks * rows - tokens});
  };
  const auto of_blocks = [&](const Tensor& t) {
    return blocks_of_keys(filled(t.narrow(1, window_ - 1 - earlier, earlier + tokens)), keys, rows);
  };
  const auto prefix = [&](const char* name) { return memory.at(name).transpose(1, 2).repeat_interleave(blocks, 0); };

  const double scale = 1 / std::sqrt(static_cast<double>(head_width_));
  ops::AttentionRule near = rule_of(scale, window_);
  if (known.min().item<int64_t>() < earlier) {
    const Tensor seen = torch::arange(earlier + blocks * rows, known.options()).ge((earlier - known).unsqueeze(1));
    near.keep = seen.unfold(1, keys, rows).flatten(0, 1);
  }
  const Tensor queries = filled(q).unflatten(1, {blocks, rows}).transpose(2, 3).flatten(0, 1);  // [B M, H, rows, d]
  const auto of_window = ops::attention_partial(queries, of_blocks(k), of_blocks(v), near, earlier);
  const auto of_prefix = ops::attention_partial(queries, prefix("prefix_k"), prefix("prefix_v"), rule_of(scale, {}), 0);
  const Tensor o = ops::value(ops::merge(of_prefix, of_window));
  return o.unflatten(0, {q.size(0), blocks}).transpose(2, 3).flatten(1, 2).narrow(1, 0, tokens);
}

TitansLayer::TitansLayer(int64_t width, const TitansLayerOptions& o, const PrefixAttentionOptions& attention,
                         int64_t window)
    : CausalMixer(width) {
  inner_ = std::dynamic_pointer_cast<CausalMixer>(make_mixer(width, o.memory, "memory"));
  if (!inner_ || !inner_->causal()) {
    misuse("memory: {} is not causal, so that it has no memory to read; choose a causal mixer, such as titans",
           o.memory["kind"].get<std::string>());
  }
  register_module("memory", inner_);
  attention_ = register_module("attention", std::make_shared<PrefixAttention>(width, attention, window));
  persistent_ = register_parameter("persistent", torch::randn({o.persistent, width}) * 0.02);
}

std::vector<Tensor> TitansLayer::without_weight_decay() const {
  std::vector<Tensor> all = inner_->without_weight_decay();
  all.push_back(persistent_);
  return all;
}

Memory TitansLayer::empty_memory(int64_t batch) const {
  Memory memory;
  memory.child("memory") = inner_->empty_memory(batch);
  memory.child("attention") = attention_->empty_memory(batch, persistent_.size(0), state_options());
  return memory;
}

Tensor TitansLayer::recall_persistent(const Tensor& rows, Memory& memory) const {
  const Tensor prefix = persistent(rows.size(0));
  Pass pass;  // to the other rows P is padding
  if (!rows.all().item<bool>()) pass.layout = Layout::masked(rows.unsqueeze(1).expand({-1, prefix.size(1)}));
  return inner_->extend(prefix, memory.child("memory"), pass);
}

Tensor TitansLayer::recall(const Tensor& x, Memory& memory, Pass& pass) const {
  const Tensor positions = pass.positions;
  if (positions.defined()) pass.positions = positions + persistent_.size(0);
  const Tensor y = inner_->extend(x, memory.child("memory"), pass);
  pass.positions = positions;
  return y;
}

Tensor TitansLayer::attend(const Tensor& x, Memory& memory, const Pass& pass) const {
  const Columns columns(pass.layout, x);
  const Tensor before = memory.counts(x);
  const Tensor positions = pass.positions.defined()
                               ? columns.gather(pass.positions)
                               : before.unsqueeze(1) + torch::arange(columns.size(), before.options());
  return columns.scatter(attention_->extend(columns.gather(x), positions, before, columns, memory.child("attention")));
}

TitansMag::TitansMag(int64_t width, const Options& o)
    : TitansLayer(width, o, window_options(o), window_options(o).window) {
  norm_ = register_module("norm", std::make_shared<RmsNorm>(width));
}

Tensor TitansMag::read(const Tensor& x, Memory& memory, Pass& pass) {
  if (const Tensor rows = unread_rows(memory.child("memory"), x); rows.defined()) {
    recall_persistent(rows, memory);
    attention_->begin(persistent(x.size(0)), rows, memory.child("attention"));
  }
  const Tensor gate = torch::sigmoid(norm_->forward(recall(x, memory, pass)));
  return attend(x, memory, pass) * gate;
}

TitansMal::TitansMal(int64_t width, const Options& o)
    : TitansLayer(width, o, window_options(o), window_options(o).window) {}

Tensor TitansMal::read(const Tensor& x, Memory& memory, Pass& pass) {
  if (const Tensor rows = unread_rows(memory.child("memory"), x); rows.defined()) {
    attention_->begin(recall_persistent(rows, memory), rows, memory.child("attention"));
  }
  return attend(recall(x, memory, pass), memory, pass);
}

TitansMac::TitansMac(int64_t width, const Options& o)
    : TitansLayer(width, o, read_options<PrefixAttentionOptions>(o.attention, "attention"), 2 * o.segment),
      segment_(o.segment) {
  check_fixed_size(inner_->empty_memory(1), "memory = " + o.memory["kind"].get<std::string>(),
                   "but titans_mac copies it at every segment; choose a recurrent mixer, or titans_mag or titans_mal");
}

Memory TitansMac::empty_memory(int64_t batch) const {
  Memory memory = TitansLayer::empty_memory(batch);
  memory.child("copy") = inner_->empty_memory(batch);
  return memory;
}

/// Rows whose first token begins a segment get a fresh copy.
void TitansMac::renew_copy(const Stretch& s, Memory& memory) const {
  Memory fresh = memory.child("memory").map([](const Tensor& t) { return t.clone(); });
  if (s.real.defined()) fresh = rows_of(s.real.select(1, 0), fresh, memory.child("copy"));
  memory.child("copy") = std::move(fresh);
}

/// x [B, n, D] attends to P and, of its segment, to the tokens and h up to itself.
Tensor TitansMac::attend_with_memory(const Stretch& s, const Tensor& h, Memory& memory) const {
  const Tensor pairs = torch::stack({h, s.x}, 2).flatten(1, 2);
  const Tensor real = s.real.defined() ? s.real.repeat_interleave(2, 1) : s.real;
  const Columns columns(layout_of(real), pairs);
  const Tensor places = s.before.unsqueeze(1) + torch::arange(columns.size(), s.before.options()).floor_divide(2);
  const Tensor y = attention_->extend(columns.gather(pairs), places, 2 * s.before, columns, memory.child("attention"));
  return columns.scatter(y).unflatten(1, {s.x.size(1), 2}).select(2, 1);
}

Tensor TitansMac::recall_stretch(const char* name, const Tensor& x, const Stretch& s, Memory& memory,
                                 Pass& pass) const {
  Pass inner;
  inner.layout = layout_of(s.real);
  inner.positions = s.positions;
  const Tensor y = inner_->extend(x, memory.child(name), inner);
  pass.losses.insert(pass.losses.end(), inner.losses.begin(), inner.losses.end());
  return y;
}

Tensor TitansMac::read_stretch(const Stretch& s, Memory& memory, Pass& pass) const {
  if (s.begins) renew_copy(s, memory);
  const Tensor y = attend_with_memory(s, recall_stretch("copy", s.x, s, memory, pass), memory);
  return y * recall_stretch("memory", y, s, memory, pass);
}

Tensor TitansMac::read(const Tensor& x, Memory& memory, Pass& pass) {
  const Tensor read_before = memory.counts(x);
  if (const Tensor rows = unread_rows(memory, x); rows.defined()) {
    attention_->begin(persistent(x.size(0)), rows, memory.child("attention"));
  }
  const Columns columns(pass.layout, x.size(0), x.size(1), read_before, segment_);
  Tensor before = read_before.remainder(segment_);
  const Tensor real_x = columns.gather(x);
  // in every row a column stands at the same place of a segment
  const Tensor positions = pass.positions.defined() ? columns.gather(pass.positions)
                                                    : (read_before - before).unsqueeze(1) + columns.phase() +
                                                          torch::arange(columns.size(), before.options());
  std::vector<Tensor> outputs;
  int64_t place = columns.phase();
  for (int64_t begin = 0, size = 0; begin < columns.size(); begin += size) {
    size = std::min(columns.size() - begin, segment_ - place);
    Stretch s{real_x.narrow(1, begin, size), {}, positions.narrow(1, begin, size), before, place == 0};
    if (columns.real().defined()) s.real = columns.real().narrow(1, begin, size);
    outputs.push_back(read_stretch(s, memory, pass));
    before = torch::zeros_like(before);
    place = 0;
  }
  return columns.scatter(torch::cat(outputs, 1));
}

}  // namespace seqloom
