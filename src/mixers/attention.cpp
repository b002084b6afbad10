#include "mixers/attention.h"

#include <fmt/ostream.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "mixers/heads.h"
#include "mixers/token_positions.h"
#include "mixers/whole_sequences.h"
#include "ops/precision.h"
#include "ops/varlen_attention.h"

namespace seqloom {
namespace {

struct CaropeOptions {
  bool bias = true;
  int64_t first_exponent = 0;
  double base = 10000;
  std::string source = "layer_input", init = "rope";

  void describe(Fields& f) {
    f.add("bias", bias, "a bias in the frequency's projection");
    f.add("first_exponent", first_exponent, "exponent of the first pair").at_least(0).at_most(1);
    f.add("base", base, "the rope base that the bias starts at").greater_than(1);
    f.add("source", source, "what frequencies are computed from").one_of({"layer_input"});
    f.add("init", init, "rope: start as rope; normal: random").one_of({"rope", "normal"});
  }
};

/// Hugging Face's spelling of rope_scaling.
struct ScalingOptions {
  std::string rope_type = "none";
  double factor = 1, low_freq_factor = 1, high_freq_factor = 4, original_max_position_embeddings = 8192;

  void describe(Fields& f) {
    f.add("rope_type", rope_type, "the rule").one_of({"none", "default", "linear", "llama3"}).also("type");
    f.add("factor", factor, "how much longer").greater_than(0);
    f.add("low_freq_factor", low_freq_factor, "llama3").greater_than(0);
    f.add("high_freq_factor", high_freq_factor, "llama3").greater_than(0);
    f.add("original_max_position_embeddings", original_max_position_embeddings, "llama3").greater_than(0);
  }
};

RopeOptions rope_options(const AttentionOptions& o) {
  const auto scaling = read_options<ScalingOptions>(o.rope_scaling, "rope_scaling");
  RopeOptions rope;
  rope.base = o.rope_base;
  rope.layout = o.rope_layout;
  rope.rotary_dim = o.rotary_dim.value_or(0);
  rope.scaling = scaling.rope_type == "default" ? "none" : scaling.rope_type;
  rope.factor = scaling.factor;
  rope.low_freq_factor = scaling.low_freq_factor;
  rope.high_freq_factor = scaling.high_freq_factor;
  rope.original_max_position = scaling.original_max_position_embeddings;
  return rope;
}

/// The last `limit` entries along `dim`, all when limit < 0.
Tensor last(const Tensor& x, int64_t dim, int64_t limit) {
  const int64_t stay = limit < 0 ? x.size(dim) : std::min(limit, x.size(dim));
  return x.narrow(dim, x.size(dim) - stay, stay);
}

/// The same for a cache: what a long chunk made room for is given back.
Tensor last_of_cache(const Tensor& cache, int64_t dim, int64_t limit) {
  const Tensor kept = last(cache, dim, limit);
  const bool roomy = kept.storage().nbytes() > 4 * kept.nbytes();
  return roomy && !kept.requires_grad() ? kept.contiguous().clone() : kept;
}

/// f of tokens along dimension 1 for x [B, H, T, d].
template <typename F>
Tensor along_tokens(const Tensor& x, F f) {
  return f(x.transpose(1, 2)).transpose(1, 2);
}

/// Whether padding stands before all real tokens of its row, where it comes between none. keep [B, T].
bool only_in_front(const Tensor& keep) {
  return keep.narrow(1, 1, keep.size(1) - 1)
      .logical_or(keep.narrow(1, 0, keep.size(1) - 1).logical_not())
      .all()
      .item<bool>();
}

/// A phase without its whole turns once it is so large that float32 would lose digits of the rest.
Tensor unwound(const Tensor& phase) {
  constexpr double kLarge = 256;
  return torch::where(phase.abs() < kLarge, phase, phase.fmod(2 * std::numbers::pi));
}

}  // namespace

SEQLOOM_REGISTER_MIXER("attention", Attention);

Attention::Attention(int64_t width, const Options& o)
    : ScannableMixer(width), options_(o), kv_heads_(o.kv_heads.value_or(o.heads)) {
  if (!o.head_dim && width % o.heads != 0) {
    misuse("heads = {} does not divide the width {}; choose another, or set head_dim", o.heads, width);
  }
  head_dim_ = o.head_dim.value_or(width / o.heads);
  if (o.heads % kv_heads_ != 0) misuse("kv_heads = {} does not divide heads = {}", kv_heads_, o.heads);
  if (o.window && !o.causal) misuse("window = {} needs causal = true", *o.window);
  q_proj_ = register_module("q_proj", linear(width, o.heads * head_dim_, o.qkv_bias));
  k_proj_ = register_module("k_proj", linear(width, kv_heads_ * head_dim_, o.qkv_bias));
  v_proj_ = register_module("v_proj", linear(width, kv_heads_ * head_dim_, o.qkv_bias));
  o_proj_ = register_module("o_proj", linear(o.heads * head_dim_, width, o.o_bias));
  if (o.qk_norm) {
    q_norm_ = register_module("q_norm", std::make_shared<RmsNorm>(head_dim_, o.qk_norm_eps));
    k_norm_ = register_module("k_norm", std::make_shared<RmsNorm>(head_dim_, o.qk_norm_eps));
  }
  add_position_parameters();
}

void Attention::add_position_parameters() {
  const auto& o = options_;
  const RopeOptions rope = rope_options(o);  // also read, and so checked, where it is not used
  if (is("rope")) frequencies_ = rope_frequencies(head_dim_, rope);
  if (is("alibi")) slopes_ = alibi_slopes(o.heads);
  if (is("sinusoidal")) sinusoidal_at(torch::zeros({1}), width());  // refuses an odd width here and now
  if (is("carope")) add_carope();
  if (is("learned")) {
    position_ = register_module("position", torch::nn::Embedding(o.max_positions, width()));
    torch::nn::init::normal_(position_->weight, 0, 0.02);
  }
  if (is("t5_bias") || (is("urpe") && o.bias == "t5")) {
    t5_bucket(torch::zeros({1}, torch::kInt64), !o.causal, o.num_buckets, o.max_distance);  // refuses a wrong cut
    t5_table_ = register_module("relative_attention_bias", torch::nn::Embedding(o.num_buckets, o.heads));
    torch::nn::init::normal_(t5_table_->weight, 0, 0.02);
  }
  if (!is("urpe")) return;
  const std::vector<int64_t> toeplitz_shape = {o.heads, 2 * o.max_positions - 1};
  urpe_c_ = register_parameter("urpe_c", torch::ones(toeplitz_shape));  // starts as the plain softmax
  if (o.bias == "unique") rel_bias_ = register_parameter("rel_bias", torch::randn(toeplitz_shape) * 0.02);
}

void Attention::add_carope() {
  if (!options_.rope_scaling.empty()) misuse("position = \"carope\" cannot be combined with rope_scaling");
  const auto carope = read_options<CaropeOptions>(options_.carope, "carope");
  if (head_dim_ % 2 != 0) misuse("position = \"carope\" needs an even head_dim, not {}", head_dim_);
  first_exponent_ = carope.first_exponent;
  carope_ = register_module("carope", float_linear(width(), kv_heads_, carope.bias));
  if (carope.init == "normal") return;
  const torch::NoGradGuard no_grad;
  carope_->weight.zero_();
  // softplus of this is 1 / theta - 1, so that f = theta, rope's first frequency: it starts as rope at positions 1..T
  const double inverse = std::pow(carope.base, 2.0 / static_cast<double>(head_dim_));
  if (carope.bias) carope_->bias.fill_(std::log(std::expm1(inverse - 1)));
}

Config Attention::from_case(Config config, const std::map<std::string, std::vector<int64_t>>& shapes) {
  const auto size = [&](const char* name, size_t dim) {
    const auto found = shapes.find(name);
    return found != shapes.end() && dim < found->second.size() ? found->second[dim] : int64_t{0};
  };
  const Config heads = config.value("heads", Config(AttentionOptions().heads));
  if (heads.is_number_integer() && heads > 0) config["head_dim"] = size("q_proj.weight", 0) / heads.get<int64_t>();
  config["qkv_bias"] = shapes.count("q_proj.bias") > 0;
  config["o_bias"] = shapes.count("o_proj.bias") > 0;
  if (shapes.count("urpe_c") > 0) config["max_positions"] = (size("urpe_c", 1) + 1) / 2;
  if (shapes.count("position.weight") > 0) config["max_positions"] = size("position.weight", 0);
  config.erase("cross");
  return config;
}

std::vector<Tensor> Attention::without_weight_decay() const {
  std::vector<Tensor> tables;
  for (const auto& item : named_parameters()) {
    for (const char* name : {"position.weight", "relative_attention_bias.weight", "urpe_c", "rel_bias"}) {
      if (item.key() == name) tables.push_back(item.value());
    }
  }
  return tables;
}

Memory Attention::empty_memory(int64_t batch) const {
  Memory memory;
  memory["k"] = torch::zeros({batch, kv_heads_, 0, head_dim_}, state_options());
  memory["v"] = torch::zeros({batch, kv_heads_, 0, head_dim_}, state_options());
  memory["keep"] = torch::ones({batch, 0}, state_options().dtype(torch::kBool));
  if (is("carope")) memory["phase"] = torch::zeros({batch, kv_heads_, head_dim_ / 2}, state_options());
  return memory;
}

Attention::Placed Attention::place(const Tensor& x, const Tensor& positions, const Tensor& keep, const Tensor& phase,
                                   const Layout& layout) const {
  if (is("sinusoidal")) return {x + sinusoidal_at(positions, width()).to(x.scalar_type()), {}, {}};
  if (is("learned")) return {x + learned_at(position_->weight, positions).to(x.scalar_type()), {}, {}};
  if (is("rope")) {
    const Tensor angles = rope_angles(positions, frequencies_);
    return {x, angles.dim() == 3 ? angles.unsqueeze(1) : angles, {}};
  }
  if (!is("carope")) return {x, {}, {}};
  const auto bias = carope_->bias.defined() ? std::make_optional(carope_->bias) : std::nullopt;
  Tensor increments = carope_increments(x, carope_->weight, bias, head_dim_, first_exponent_);
  if (keep.defined()) increments = increments * keep.unsqueeze(1).unsqueeze(-1);  // padding does not advance the phase
  const auto sums = [](const std::vector<Tensor>& own) { return own[0].cumsum(1); };
  Tensor phases = layout.is_packed() ? by_sequence(layout, {increments.transpose(1, 2)}, 1, sums).transpose(1, 2)
                                     : increments.cumsum(2);
  if (phase.defined()) phases = phases + phase.to(torch::kFloat64).unsqueeze(2);
  return {x, phases, unwound(phases.select(2, phases.size(2) - 1)).to(state_options().dtype())};
}

void Attention::check_context(int64_t rows, const Tensor& context) const {
  if (options_.causal) misuse("attention to a context, another sequence, needs causal = false");
  if (context.dim() != 3 || context.size(0) != rows || context.size(2) != width()) {
    misuse("the context is {}, expected [{}, S, {}]", fmt::streamed(context.sizes()), rows, width());
  }
}

Tensor Attention::queries(const Placed& tokens) {
  Tensor q = split_heads(q_proj_(tokens.x), options_.heads).transpose(1, 2);
  if (q_norm_) q = q_norm_->forward(q);
  if (!tokens.angles.defined()) return q;
  // carope's phases are those of a key head: the query heads of its group share them
  const int64_t group = is("carope") ? options_.heads / kv_heads_ : 1;
  return rotate(q, group > 1 ? tokens.angles.repeat_interleave(group, 1) : tokens.angles, options_.rope_layout);
}

std::pair<Tensor, Tensor> Attention::keys_values(const Placed& tokens) {
  Tensor k = split_heads(k_proj_(tokens.x), kv_heads_).transpose(1, 2);
  if (k_norm_) k = k_norm_->forward(k);
  if (tokens.angles.defined()) k = rotate(k, tokens.angles, options_.rope_layout);
  return {k, split_heads(v_proj_(tokens.x), kv_heads_).transpose(1, 2)};
}

Tensor Attention::bias(int64_t farthest) const {
  if (rel_bias_.defined()) return rel_bias_;
  if (!is("alibi") && t5_table_.is_empty()) return {};
  const int64_t reach = is("alibi") ? farthest : std::min(farthest, options_.max_distance);  // one bucket behind it
  const Tensor relative = torch::arange(-reach, reach + 1, state_options().dtype(torch::kInt64));
  if (is("alibi")) return alibi_bias(slopes_, relative.unsqueeze(0)).squeeze(1);
  const Tensor bucket = t5_bucket(relative, !options_.causal, options_.num_buckets, options_.max_distance);
  return ops::widened(t5_table_->weight).index_select(0, bucket).t();
}

double Attention::scale() const {
  return options_.scale.value_or(1 / std::sqrt(static_cast<double>(head_dim_)));
}

ops::AttentionRule Attention::rule_for(int64_t queries, int64_t keys, const Tensor& keep) const {
  ops::AttentionRule rule;
  rule.scale = scale();
  rule.causal = options_.causal;
  rule.window = options_.window;
  rule.softcap = options_.logit_softcap;
  rule.keep = keep;
  const int64_t farthest = std::min(std::max(queries, keys), options_.window.value_or(keys + queries)) - 1;
  if (is("urpe") && farthest >= options_.max_positions) {
    misuse("position = \"urpe\": keys at a distance of {}, but max_positions = {}; raise it or set a window", farthest,
           options_.max_positions);
  }
  rule.bias = bias(farthest);
  if (is("urpe")) rule.multiplier = urpe_c_;
  return rule;
}

Tensor Attention::finish(const Tensor& o) {
  return o_proj_(merge_heads(o.transpose(1, 2)));
}

bool Attention::takes_packed() const {
  return !is("urpe");
}

Tensor Attention::mix_packed(const Tensor& x, const Pass& pass) {
  const Tensor &context = pass.context, &offsets = pass.layout.offsets();
  const Placed tokens = place(x, token_positions(x, pass), {}, {}, pass.layout);
  Placed source = tokens;
  Tensor source_offsets = offsets;
  std::optional<Tensor> keep;
  if (context.defined()) {
    const bool packed = pass.context_layout.is_packed();
    if (packed) pass.context_layout.check_packed(context);
    check_context(packed ? 1 : offsets.size(0) - 1, context);
    source_offsets =
        packed ? pass.context_layout.offsets() : torch::arange(offsets.size(0), offsets.options()) * context.size(1);
    const Tensor real = packed ? Tensor() : pass.context_layout.keep(context.size(0), context.size(1));
    if (real.defined()) keep = real.flatten();
    const Tensor rows = context.flatten(0, 1).unsqueeze(0);
    const Layout layout = Layout::packed(source_offsets);
    source = place(rows, counted_positions(rows, layout), real.defined() ? real.view({1, -1}) : real, {}, layout);
  }
  const auto rows = [](const Tensor& heads) { return heads.squeeze(0).transpose(0, 1); };  // [1, H, N, d] -> [N, H, d]
  const auto [k, v] = keys_values(source);
  const auto longest = [](const Tensor& cuts) { return cuts.diff().max().item<int64_t>(); };
  const ops::AttentionRule rule = rule_for(longest(offsets), longest(source_offsets), {});
  const auto bias = rule.bias.defined() ? std::make_optional(rule.bias) : std::nullopt;
  const Tensor o = std::get<0>(ops::varlen_attention(rows(queries(tokens)), rows(k), rows(v), offsets, source_offsets,
                                                     rule.causal, rule.window, rule.scale, keep, bias, rule.softcap));
  return o_proj_(merge_heads(o.unsqueeze(0)));
}

Tensor Attention::mix(const Tensor& x, Pass& pass) {
  if (pass.layout.is_packed()) return mix_packed(x, pass);
  const Tensor& context = pass.context;
  if (context.defined()) check_context(x.size(0), context);
  Tensor keep = pass.layout.keep(x.size(0), x.size(1));
  const Placed tokens = place(x, token_positions(x, pass), keep, {});
  Placed source = tokens;
  if (context.defined()) {
    keep = pass.context_layout.keep(context.size(0), context.size(1));
    source = place(context, token_positions(context, Pass()), keep, {});
  }
  const auto [k, v] = keys_values(source);
  return finish(ops::attention(queries(tokens), k, v, rule_for(x.size(1), k.size(2), keep)));
}

void Attention::check_memory(const Memory& memory, int64_t batch) const {
  const Tensor &k = memory.at("k"), &v = memory.at("v"), &keep = memory.at("keep");
  const std::vector<int64_t> expected = {batch, kv_heads_, k.size(2), head_dim_};
  if (k.sizes() != expected || v.sizes() != expected) {
    misuse("the memory has k {} and v {}, expected [{}, {}, n, {}] for both", fmt::streamed(k.sizes()),
           fmt::streamed(v.sizes()), batch, kv_heads_, head_dim_);
  }
  if (keep.size(0) != batch || (keep.size(1) != 0 && keep.size(1) != k.size(2))) {
    misuse("the memory has keep {}, expected [{}, 0 or {}]", fmt::streamed(keep.sizes()), batch, k.size(2));
  }
}

void Attention::remember(const Tensor& k, const Tensor& v, const Tensor& keep, Memory& memory, int64_t limit) const {
  const int64_t before = memory["k"].size(2);
  if (keep.defined() || memory["keep"].size(1) > 0) {
    Tensor known = memory["keep"];
    if (known.size(1) == 0) known = torch::ones({k.size(0), before}, known.options());
    const Tensor fresh = keep.defined() ? keep : torch::ones({k.size(0), k.size(2)}, known.options());
    memory["keep"] = append(known, fresh, 1, limit);
  }
  memory["k"] = append(memory["k"], k, 2, limit);
  memory["v"] = append(memory["v"], v, 2, limit);
}

Tensor Attention::read(const Tensor& x, Memory& memory, Pass& pass) {
  if (pass.context.defined()) check_context(x.size(0), pass.context);
  check_memory(memory, x.size(0));
  const int64_t window = options_.window.value_or(0);
  const Tensor keep = pass.layout.keep(x.size(0), x.size(1));
  const Placed tokens = place(x, token_positions(x, pass, memory), keep, is("carope") ? memory["phase"] : Tensor());
  if (is("carope")) memory["phase"] = tokens.phase;
  // real tokens side by side, here and in the cache: distances between them do not count padding
  const bool stay = memory["k"].size(2) == 0 && keep.defined() && only_in_front(keep);
  const Columns columns(stay ? Layout() : pass.layout, x);
  const auto gathered = [&](const Tensor& t) {
    return along_tokens(t, [&](const Tensor& y) { return columns.gather(y); });
  };
  const auto [k, v] = keys_values(tokens);
  ops::AttentionRule rule = rule_for(columns.size(), memory["k"].size(2) + columns.size(), {});
  // first all keys that some of these queries see, afterwards those that later ones can see
  remember(gathered(k), gathered(v), stay ? keep : columns.real(), memory,
           window > 0 ? window - 1 + columns.size() : -1);
  if (memory["keep"].size(1) > 0) rule.keep = memory["keep"];
  const Tensor q = gathered(queries(tokens)).to(memory["k"].scalar_type());
  const Tensor o = ops::attention(q, memory["k"], memory["v"], rule).to(x.scalar_type());
  forget(columns, memory);
  return finish(along_tokens(o, [&](const Tensor& y) { return columns.scatter(y); }));
}

void Attention::forget(const Columns& columns, Memory& memory) const {
  if (columns.real().defined()) {
    for (const char* name : {"k", "v"}) {
      memory[name] = along_tokens(memory[name], [&](const Tensor& y) { return columns.ended(y); }).contiguous();
    }
    memory["keep"] = columns.ended(memory["keep"]);
  }
  trim(memory);
}

void Attention::trim(Memory& memory) const {
  if (!options_.window) return;
  const int64_t kept = *options_.window - 1;
  for (const char* name : {"k", "v"}) memory[name] = last_of_cache(memory[name], 2, kept);
  memory["keep"] = last_of_cache(memory["keep"], 1, kept);
}

std::optional<MatrixForm> Attention::matrix(const Tensor& x) {
  const int64_t count = x.size(1);
  const Placed tokens = place(x, token_positions(x, Pass()), {}, {});
  const auto [k, v] = keys_values(tokens);
  const Tensor weights = ops::attention_weights(queries(tokens), k, rule_for(count, count, {}));
  return MatrixForm{weights, v.repeat_interleave(options_.heads / kv_heads_, 1),
                    [this](const Tensor& o) { return finish(o); }};
}

int64_t Attention::element_limit() const {
  // carope's phase depends on every token, so none may be dropped
  return options_.window && !is("carope") ? *options_.window - 1 : -1;
}

Memory Attention::identity_element(int64_t batch) const {
  Memory element;
  element["x"] = torch::zeros({batch, 0, width()}, state_options());
  return element;
}

Memory Attention::element(const Tensor& x, Memory& memory, Pass& pass) {
  Memory element;
  element["x"] = last(x, 1, element_limit()).clone();  // does not hold on to the tokens that were dropped
  return element;
}

Memory Attention::combine_elements(const Memory& left, const Memory& right) const {
  Memory element;
  element["x"] = last(torch::cat({left.at("x"), right.at("x")}, 1), 1, element_limit());
  return element;
}

void Attention::apply_element(const Memory& element, Memory& memory) {
  const Tensor& x = element.at("x");
  const int64_t dropped = element.tokens - x.size(1);
  if (dropped > 0) {  // at least window - 1 tokens follow: nothing older stays visible
    const Memory empty = empty_memory(x.size(0));
    for (const char* name : {"k", "v", "keep"}) memory[name] = empty.at(name);
  }
  if (x.size(1) == 0) return;
  const Placed tokens =
      place(x, token_positions(x, Pass(), memory) + dropped, {}, is("carope") ? memory["phase"] : Tensor());
  if (is("carope")) memory["phase"] = tokens.phase;
  const auto [k, v] = keys_values(tokens);
  remember(k, v, {}, memory, options_.window ? *options_.window - 1 : -1);
}

}  // namespace seqloom
