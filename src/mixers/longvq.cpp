#include "mixers/longvq.h"

#include <cmath>

#include "mixers/heads.h"
#include "ops/precision.h"
#include "ops/vector_quantize.h"

namespace seqloom {
namespace {

/// Brings the real tokens of each row to its front, in order, so that padding is a token nobody has read.
struct Gathered {
  Tensor order, lengths, keep;  // [B, T] int64, [B] int64, [B, T] bool after sorting; undefined: no padding

  explicit Gathered(const Tensor& mask) {
    if (!mask.defined()) return;
    order = mask.logical_not().to(torch::kUInt8).argsort(/*stable=*/true, /*dim=*/1, /*descending=*/false);
    lengths = mask.sum(1);
    keep = mask.gather(1, order);
  }
  Tensor front(const Tensor& x) const {
    if (!order.defined()) return x;
    return torch::where(keep.unsqueeze(-1), rows(x, order), torch::zeros({1}, x.options().requires_grad(false)));
  }
  Tensor back(const Tensor& y) const { return order.defined() ? rows(y, order.argsort(1, /*descending=*/false)) : y; }

 private:
  static Tensor rows(const Tensor& x, const Tensor& index) { return x.gather(1, index.unsqueeze(-1).expand_as(x)); }
};

Tensor random_rows(const Tensor& x, int64_t count) {
  return x.index_select(0, torch::randint(x.size(0), {count}, x.options().dtype(torch::kInt64)));
}

/// k-means++ (Arthur & Vassilvitskii 2007): each next centre is drawn by its squared distance to those before it.
Tensor spread_centres(const Tensor& keys, int64_t count) {
  std::vector<Tensor> centres = {random_rows(keys, 1)};
  Tensor nearest = torch::full({keys.size(0)}, INFINITY, keys.options());
  while (static_cast<int64_t>(centres.size()) < count) {
    nearest = torch::minimum(nearest, (keys - centres.back()).square().sum(-1));
    const bool all_taken = nearest.max().item<double>() <= 0;
    centres.push_back(all_taken ? random_rows(keys, 1) : keys.index_select(0, nearest.multinomial(1)));
  }
  return torch::cat(centres);
}

Tensor normalized(const Tensor& x) {
  constexpr double kEps = 1e-8;  // keys start far below torch's 1e-5
  return torch::layer_norm(x, x.sizes().slice(x.dim() - 1), {}, {}, kEps);
}

}  // namespace

SEQLOOM_REGISTER_MIXER("longvq", LongVq);

LongVq::LongVq(int64_t width, const Options& o)
    : CausalMixer(width), options_(o), value_width_(o.v_dim.value_or(2 * width)) {
  const int64_t z = o.z_dim;
  move_ = register_module("move", std::make_shared<DampedEma>(width, o.ema_ndim));
  mx_proj_ = register_module("mx_proj", linear(width, z + value_width_ + 2 * width, true));
  v_proj_ = register_module("v_proj", linear(width, value_width_, true));
  h_proj_ = register_module("h_proj", linear(value_width_, width, true));
  for (auto& projection : {mx_proj_, v_proj_, h_proj_}) {
    torch::nn::init::normal_(projection->weight, 0, 0.02);
    torch::nn::init::zeros_(projection->bias);
  }
  // normalised, queries and keys start alike: a token looks for its like from the first step on
  gamma_ = register_parameter("gamma", torch::randn({2, z}) * 0.02 + (o.qk_norm ? 1 : 0));
  beta_ = register_parameter("beta", torch::zeros({2, z}));
  rel_bias_ = register_parameter("rel_bias", torch::zeros({o.causal ? o.window : 2 * o.window - 1}));
  c_sum_ = register_buffer("c_sum", torch::randn({o.num_codes, z}));
  c_count_ = register_buffer("c_count", torch::ones({o.num_codes}));
  updates_ = register_buffer("updates", torch::zeros({}, torch::kInt64));
}

Config LongVq::from_case(Config config, const std::map<std::string, std::vector<int64_t>>&) {
  if (!config.contains("qk_norm")) config["qk_norm"] = false;
  return config;
}

std::vector<Tensor> LongVq::without_weight_decay() const {
  std::vector<Tensor> exempt = move_->parameters();
  exempt.push_back(gamma_);
  exempt.push_back(beta_);
  return exempt;
}

Tensor LongVq::codewords() const {
  return ops::codebook(c_sum_, c_count_, options_.count_min);
}

ops::CodedRule LongVq::rule() const {
  return {codewords(), rel_bias_, options_.causal, options_.key_gradient == "all"};
}

Memory LongVq::empty_memory(int64_t batch) const {
  const auto options = state_options();
  Memory memory;
  memory["ema"] = move_->empty_state(batch, options);
  memory["count"] = torch::zeros({batch, options_.num_codes}, options);
  memory["vsum"] = torch::zeros({batch, options_.num_codes, value_width_}, options);
  memory["win_codes"] = torch::zeros({batch, 0}, options.dtype(torch::kInt64));
  memory["win_v"] = torch::zeros({batch, 0, value_width_}, options);
  return memory;
}

LongVq::Projected LongVq::project(const Tensor& x, Tensor& ema, const Tensor& lengths) {
  const Tensor m = move_->forward(x, ema, lengths);
  const auto parts = mx_proj_(m).split_with_sizes({width(), options_.z_dim, value_width_, width()}, -1);
  Projected p;
  p.u = torch::sigmoid(parts[0]);
  p.r = torch::silu(parts[2]);
  p.h = parts[3];
  const Tensor z = torch::silu(ops::widened(parts[1]));
  const auto scaled = [&](int64_t row) { return z * ops::widened(gamma_[row]) + ops::widened(beta_[row]); };
  p.q = options_.qk_norm ? normalized(scaled(0)) : scaled(0);
  p.k = options_.qk_norm ? normalized(scaled(1)) : scaled(1);
  p.q = p.q / std::sqrt(static_cast<double>(options_.z_dim));
  p.v = ops::widened(torch::silu(v_proj_(x)));
  return p;
}

ops::CodedTokens LongVq::quantize(const Projected& p, const Tensor& keep, Pass& pass) {
  const auto mask = keep.defined() ? std::make_optional(keep) : std::nullopt;
  const auto [codes, words, loss] = ops::vector_quantize(p.k.unsqueeze(1), codewords().unsqueeze(0), mask);
  Tensor real = codes.squeeze(1);
  if (keep.defined()) real = real.masked_fill(keep.logical_not(), -1);
  if (is_training() && torch::GradMode::is_enabled()) {
    note(p.k.detach(), real);
    if (options_.commit_weight > 0) pass.losses.push_back(options_.commit_weight * loss);
  }
  if (pass.watch) {
    pass.watch("codes", real);
    pass.watch("commit_loss", loss);
  }
  const Tensor k = words.squeeze(1);
  return {options_.key_gradient == "none" ? k.detach() : k, real, p.v};
}

void LongVq::note(const Tensor& keys, const Tensor& codes) {
  const auto [sums, counts] = ops::sums_by_code(keys, codes, options_.num_codes);
  const bool first = !new_sum_.defined();
  new_sum_ = first ? sums.sum(0) : new_sum_ + sums.sum(0);
  new_count_ = first ? counts.sum(0) : new_count_ + counts.sum(0);
  keys_ = keys.flatten(0, 1).index({codes.flatten() >= 0});
}

void LongVq::after_step() {
  if (!new_sum_.defined() || keys_.size(0) == 0) return;
  const torch::NoGradGuard no_grad;
  if (updates_.item<int64_t>() == 0) {
    c_sum_.copy_(spread_centres(keys_, options_.num_codes));
    c_count_.fill_(1);
  } else {
    c_sum_.lerp_(new_sum_.to(c_sum_.scalar_type()), 1 - options_.gamma);
    c_count_.lerp_(new_count_.to(c_count_.scalar_type()), 1 - options_.gamma);
  }
  if (options_.reseed) {
    const Tensor dead = c_count_ < options_.count_min;
    const Tensor drawn = random_rows(keys_, options_.num_codes);
    c_sum_.copy_(torch::where(dead.unsqueeze(-1), drawn.to(c_sum_.scalar_type()), c_sum_));
    c_count_.masked_fill_(dead, 1);
  }
  updates_.add_(1);
  new_sum_ = new_count_ = keys_ = Tensor();
}

void LongVq::remember(const ops::CodedTokens& tokens, bool ragged, Memory& memory) const {
  Tensor codes = tokens.codes, v = tokens.v;
  if (ragged) {  // the last tokens that are real
    const Tensor order = (codes >= 0).to(torch::kUInt8).argsort(/*stable=*/true, /*dim=*/1, /*descending=*/false);
    codes = codes.gather(1, order);
    v = v.gather(1, order.unsqueeze(-1).expand_as(v));
  }
  const int64_t all = codes.size(1), kept = std::min(options_.window - 1, all), spilled = all - kept;
  memory["win_codes"] = codes.narrow(1, spilled, kept).clone();  // does not hold on to all of them
  memory["win_v"] = v.narrow(1, spilled, kept).clone();
  if (spilled == 0) return;
  const auto [sums, counts] =
      ops::sums_by_code(v.narrow(1, 0, spilled), codes.narrow(1, 0, spilled), options_.num_codes);
  memory["vsum"] = memory["vsum"] + sums;
  memory["count"] = memory["count"] + counts;
}

Tensor LongVq::finish(const Tensor& x, const Projected& p, const Tensor& o) {
  const Tensor h = torch::silu(p.h + h_proj_(o.to(x.scalar_type()) * p.r));
  return x + p.u * (h - x);
}

Tensor LongVq::read(const Tensor& x, Memory& memory, Pass& pass) {
  const Gathered real(pass.layout.keep(x.size(0), x.size(1)));
  const Tensor input = real.front(x);
  const Projected p = project(input, memory["ema"], real.lengths);
  const ops::CodedTokens fresh = quantize(p, real.keep, pass);
  const ops::CodedRule looking = rule();
  const Tensor& window = memory["win_codes"];
  const ops::CodedTokens tokens{torch::cat({looking.codewords.index({window.clamp_min(0)}), fresh.k}, 1),
                                torch::cat({window, fresh.codes}, 1), torch::cat({memory["win_v"], fresh.v}, 1)};
  const Tensor o = ops::coded_attention(p.q, tokens, {memory["count"], memory["vsum"]}, looking);
  remember(tokens, real.keep.defined(), memory);
  return real.back(finish(input, p, o));
}

Tensor LongVq::mix(const Tensor& x, Pass& pass) {
  if (options_.causal) return CausalMixer::mix(x, pass);
  const Gathered real(pass.layout.keep(x.size(0), x.size(1)));
  const Tensor input = real.front(x);
  Memory nothing = empty_memory(x.size(0));
  const Projected p = project(input, nothing["ema"], real.lengths);
  const Tensor o = ops::coded_attention(p.q, quantize(p, real.keep, pass), {nothing["count"], nothing["vsum"]}, rule());
  return real.back(finish(input, p, o));
}

std::optional<MatrixForm> LongVq::matrix(const Tensor& x) {
  Memory nothing = empty_memory(x.size(0));
  Pass pass;
  const Projected p = project(x, nothing["ema"], {});
  const Tensor weights = ops::coded_attention_weights(p.q, quantize(p, {}, pass), rule());
  return MatrixForm{weights.unsqueeze(1), p.v.unsqueeze(1),
                    [this, x, p](const Tensor& o) { return finish(x, p, o.squeeze(1)); }};
}

}  // namespace seqloom
