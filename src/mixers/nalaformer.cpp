#include "mixers/nalaformer.h"

#include "blocks/positions.h"
#include "mixers/heads.h"
#include "mixers/token_positions.h"
#include "mixers/whole_sequences.h"
#include "ops/affine_scan.h"
#include "ops/gated_linear_attention.h"
#include "ops/precision.h"

namespace seqloom {
namespace {

constexpr double kTiny = 1e-12;

/// magnitude where x > 0 and where x < 0, side by side: [..., K] -> [..., 2K].
Tensor split_by_sign(const Tensor& magnitude, const Tensor& x) {
  return torch::cat({magnitude * (x > 0), magnitude * (x < 0)}, -1);
}

/// Both halves of features [B, T, H, 2K] by the same angles [..., T, K/2].
Tensor turned(const Tensor& features, const Tensor& angles) {
  return rotate(features.unflatten(-1, {2, -1}), angles.unsqueeze(-2).unsqueeze(-2), "interleaved").flatten(-2);
}

/// `before` and the sums of x up to each token, with it; and the last ones. x [B, T, ...], before [B or S, ...].
std::pair<Tensor, Tensor> running_sums(const Tensor& x, const Tensor& before, const std::optional<Tensor>& cu_seqlens) {
  if (cu_seqlens) {
    const auto [sums, last] = ops::affine_scan(torch::ones_like(x), x, before, cu_seqlens);
    return {sums, last};
  }
  const Tensor sums = before.unsqueeze(1) + x.cumsum(1);
  return {sums, sums.select(1, sums.size(1) - 1)};
}

/// Real tokens that each token's row has read up to it, with it: [B, T].
Tensor tokens_seen(const Tensor& x, const Layout& layout, const Memory& memory) {
  if (layout.is_packed()) return counted_positions(x, layout) + 1;
  const Tensor keep = layout.keep(x.size(0), x.size(1));
  const auto counts = torch::TensorOptions(torch::kInt64).device(x.device());
  const Tensor real = keep.defined() ? keep.to(torch::kInt64) : torch::ones({x.size(0), x.size(1)}, counts);
  return memory.counts(x).unsqueeze(1) + real.cumsum(1);
}

}  // namespace

SEQLOOM_REGISTER_MIXER("nalaformer", Nalaformer);

Nalaformer::Nalaformer(int64_t width, const Options& o)
    : ScannableMixer(width), options_(o), head_width_(head_width(width, 1, o.heads, "model")) {
  const bool image = o.layout == "2d";
  const int64_t kernel = o.lepe_kernel, turning = image ? 4 : 2;
  if (head_width_ % turning != 0) {
    misuse("heads = {} gives heads of width {}; layout = \"{}\" needs a multiple of {}", o.heads, head_width_, o.layout,
           turning);
  }
  if (image && o.causal) misuse("layout = \"2d\" has no earlier and later tokens; set causal = false");
  if (image && !o.width) misuse("layout = \"2d\" needs width, the pixels of a row");
  if (!image && (o.width || o.height)) misuse("height and width are those of layout = \"2d\"");
  if (!o.causal && kernel > 0 && kernel % 2 == 0) misuse("lepe_kernel = {} must be odd unless causal", kernel);

  qkvg_ = register_module("qkvg", linear(width, 4 * width, true));
  out_proj_ = register_module("out_proj", linear(width, width, true));
  ln_ = register_module("ln", std::make_shared<Norm>("layer", width, o.ln_eps));
  if (kernel > 0 && image) {
    conv2d_ = register_module("lepe", std::make_shared<GridConv>(width, kernel));
  } else if (kernel > 0) {
    conv1d_ = register_module("lepe", std::make_shared<ShortConv>(width, kernel, /*bias=*/true, /*silu=*/false));
  }
  frequencies_ = image ? torch::pow(10000, -torch::linspace(0, 1, head_width_ / 4, torch::kFloat64))
                       : rope_frequencies(head_width_, RopeOptions());
  if (!o.rope) frequencies_.zero_();
}

Config Nalaformer::from_case(Config config, const std::map<std::string, std::vector<int64_t>>&) {
  if (config.value("kernel", "") == "relu_split") config.erase("kernel");  // the features, of which there is one kind
  return config;
}

std::vector<std::string> Nalaformer::context() const {
  if (!conv1d_) return {};
  return {"lepe"};
}

Memory Nalaformer::empty_memory(int64_t batch) const {
  Memory memory = identity_element(batch);
  if (conv1d_) memory["lepe"] = conv1d_->empty_window(batch, state_options());
  return memory;
}

Tensor Nalaformer::query_features(const Tensor& q) const {
  const Tensor norm = torch::linalg_vector_norm(q, 2, torch::IntArrayRef{-1}, /*keepdim=*/true).clamp_min(kTiny);
  const Tensor exponent = options_.power * (options_.power_offset + torch::tanh(norm));
  // a power by its logarithm costs half of pow's derivatives; at 0 the clamp makes them 0 for any exponent
  const Tensor log_direction = (q.abs() / norm).clamp_min(kTiny).log();
  return split_by_sign((exponent * log_direction).exp(), q);
}

Tensor Nalaformer::key_features(const Tensor& k) const {
  return split_by_sign(k.abs().pow(options_.power), k);
}

Tensor Nalaformer::grid_angles(int64_t tokens) const {
  const int64_t columns = *options_.width, rows = options_.height.value_or(tokens / columns);
  if (rows * columns != tokens) {
    misuse("x has T = {} tokens, expected height x width = {}{} x {}", tokens, options_.height ? "" : "any ",
           options_.height ? std::to_string(rows) : "height", columns);
  }
  const Tensor at = torch::arange(tokens, frequencies_.options().dtype(torch::kInt64));
  return torch::cat({rope_angles(at.floor_divide(columns), frequencies_), rope_angles(at % columns, frequencies_)}, -1);
}

Tensor Nalaformer::angles(const Tensor& x, const Tensor& positions) const {
  return options_.layout == "2d" ? grid_angles(x.size(1)).to(x.device()) : rope_angles(positions, frequencies_);
}

Nalaformer::Projected Nalaformer::project(const Tensor& x, const Tensor& keep, const Tensor& angles) {
  const auto parts = qkvg_(x).chunk(4, -1);
  const auto heads = [&](const Tensor& t) { return split_heads(ops::widened(t), options_.heads); };
  Projected p;
  p.q = query_features(heads(parts[0]));
  p.k = key_features(heads(parts[1]));
  p.v = parts[2];
  p.gate = parts[3];
  if (keep.defined()) {  // padding adds nothing to S, z and the convolution
    p.k = p.k * keep.unsqueeze(-1).unsqueeze(-1);
    p.v = p.v * keep.unsqueeze(-1);
  }
  p.q_turned = turned(p.q, angles);
  p.k_turned = turned(p.k, angles);
  return p;
}

Tensor Nalaformer::lepe(const Tensor& v, const Columns& columns) {
  if (options_.lepe_kernel == 0) return {};
  if (conv1d_) {  // the causal convolution of a sequence that goes on, seen half a kernel later
    const auto convolved = [&](const Tensor& longer, const Layout& layout) {
      Tensor window = conv1d_->empty_window(layout.sequences(v.size(0)), v.options().requires_grad(false));
      return conv1d_->forward(longer, window, Columns(layout, longer));
    };
    return columns.scatter(columns.ahead(columns.gather(v), options_.lepe_kernel / 2, convolved));
  }
  return conv2d_->forward(v, *options_.width);
}

Tensor Nalaformer::finish(const Tensor& o, const Tensor& lepe, const Tensor& gate) {
  Tensor y = merge_heads(o).to(gate.scalar_type());
  if (lepe.defined()) y = y + lepe;
  return out_proj_(ln_->forward(y) * torch::silu(gate));
}

Tensor Nalaformer::read(const Tensor& x, Memory& memory, Pass& pass) {
  const Tensor keep = pass.layout.keep(x.size(0), x.size(1));
  const Projected p = project(x, keep, angles(x, token_positions(x, pass, memory)));
  const auto cu_seqlens = pass.layout.cu_seqlens();
  const auto [numerator, S] =
      ops::gated_linear_attention(p.q_turned, p.k_turned, split_heads(ops::widened(p.v), options_.heads), {}, 1,
                                  pass.layout.start(memory["S"]), cu_seqlens);
  const auto [z, last_z] = running_sums(p.k, memory["z"], cu_seqlens);
  // padding before the first token has seen none: a 0 would make its unused output NaN, and so the gradients
  const Tensor seen = tokens_seen(x, pass.layout, memory).clamp_min(1);
  const Tensor normaliser = (p.q * z).sum(-1) + options_.eps * seen.unsqueeze(-1);

  memory["S"] = S;
  memory["z"] = last_z;
  const Tensor lepe = conv1d_ ? conv1d_->forward(p.v, memory["lepe"], Columns(pass.layout, x)) : Tensor();
  return finish(numerator / normaliser.unsqueeze(-1), lepe, p.gate);
}

Tensor Nalaformer::mix(const Tensor& x, Pass& pass) {
  if (options_.causal) return ScannableMixer::mix(x, pass);
  const Tensor keep = pass.layout.keep(x.size(0), x.size(1));
  const Projected p = project(x, keep, angles(x, token_positions(x, pass)));
  const Columns columns(pass.layout, x);
  const Tensor S = sequence_products(p.k_turned, split_heads(ops::widened(p.v), options_.heads), pass.layout);
  const Tensor z = sequence_sums(p.k, pass.layout).unsqueeze(-1);
  const Tensor tokens = at_tokens(columns.counts().clamp_min(1).view({-1, 1, 1}), pass.layout);
  const Tensor normaliser = read_by_sequence(p.q, z, pass.layout) + options_.eps * tokens;
  return finish(read_by_sequence(p.q_turned, S, pass.layout) / normaliser, lepe(p.v, columns), p.gate);
}

std::optional<MatrixForm> Nalaformer::matrix(const Tensor& x) {
  const Projected p = project(x, {}, angles(x, token_positions(x, Pass())));
  const auto products = [](const Tensor& q, const Tensor& k) { return torch::einsum("bihk,bjhk->bhij", {q, k}); };
  Tensor weights = products(p.q_turned, p.k_turned), normaliser = products(p.q, p.k), local;
  Tensor tokens = torch::full({1}, x.size(1), weights.options().requires_grad(false));
  if (options_.causal) {
    weights = weights.tril();
    normaliser = normaliser.tril();
    tokens = torch::arange(1, x.size(1) + 1, tokens.options()).unsqueeze(-1);
    Tensor window = conv1d_ ? conv1d_->empty_window(x.size(0), state_options()) : Tensor();
    if (conv1d_) local = conv1d_->forward(p.v, window);
  } else {
    local = lepe(p.v, Columns(Layout(), x));
  }
  weights = weights / (normaliser.sum(-1, /*keepdim=*/true) + options_.eps * tokens);
  return MatrixForm{weights, split_heads(ops::widened(p.v), options_.heads).transpose(1, 2),
                    [this, local, gate = p.gate](const Tensor& o) { return finish(o.transpose(1, 2), local, gate); }};
}

Tensor Nalaformer::moved(const Tensor& S, const Tensor& tokens) const {
  const Tensor by_channel = S.unflatten(2, {2, head_width_}).transpose(-1, -2);  // [B, H, 2, K of v, K of k]
  const Tensor angles = rope_angles(tokens, frequencies_).to(S.device());
  return rotate(by_channel, angles.view({-1, 1, 1, 1, angles.size(-1)}), "interleaved").transpose(-1, -2).flatten(2, 3);
}

Memory Nalaformer::identity_element(int64_t batch) const {
  Memory element;
  element["S"] = torch::zeros({batch, options_.heads, 2 * head_width_, head_width_}, state_options());
  element["z"] = torch::zeros({batch, options_.heads, 2 * head_width_}, state_options());
  return element;
}

Memory Nalaformer::element(const Tensor& x, Memory& memory, Pass& pass) {
  const Projected p = project(x, {}, angles(x, token_positions(x, Pass())));
  if (conv1d_) conv1d_->forward(p.v, memory["lepe"]);
  Memory element;
  element["S"] = torch::einsum("bthk,bthv->bhkv", {p.k_turned, split_heads(ops::widened(p.v), options_.heads)});
  element["z"] = p.k.sum(1);
  return element;
}

Memory Nalaformer::combine_elements(const Memory& left, const Memory& right) const {
  Memory both;
  both["S"] = left.at("S") + moved(right.at("S"), torch::tensor({left.tokens}));
  both["z"] = left.at("z") + right.at("z");
  return both;
}

void Nalaformer::apply_element(const Memory& element, Memory& memory) {
  memory["S"] = memory["S"] + moved(element.at("S"), memory.counts(element.at("S")));
  memory["z"] = memory["z"] + element.at("z");
}

}  // namespace seqloom
