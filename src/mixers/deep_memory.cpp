#include "mixers/deep_memory.h"

#include <cmath>

#include "mixers/heads.h"
#include "ops/causal_conv1d.h"
#include "ops/polynomial_features.h"
#include "ops/precision.h"
#include "ops/rms_norm.h"

namespace seqloom {
namespace {

constexpr double kL2Eps = 1e-6, kNormEps = 1e-6;

/// A parameter with a name of its own: `memory.0.weight`, `poly.coeff`.
class Holder : public torch::nn::Module {
 public:
  Holder(const std::string& name, const Tensor& value) : tensor(register_parameter(name, value)) {}
  Tensor tensor;
};

Tensor register_held(torch::nn::Module& owner, const std::string& module, const std::string& name,
                     const Tensor& value) {
  return owner.register_module(module, std::make_shared<Holder>(name, value))->tensor;
}

/// A gate per head whose sigmoid begins at sigmoid(bias).
Linear head_gate(int64_t width, int64_t heads, double bias) {
  auto gate = linear(width, heads, true);
  const torch::NoGradGuard no_grad;
  gate->bias.fill_(bias);
  return gate;
}

ops::DeepMemoryRule rule_of(const DeepMemoryOptions& o) {
  using Optimizer = ops::DeepMemoryRule::Optimizer;
  ops::DeepMemoryRule rule;
  rule.optimizer = o.optimizer == "gd"     ? Optimizer::kDescent
                   : o.optimizer == "muon" ? Optimizer::kMuon
                                           : Optimizer::kMomentum;
  rule.residual = o.residual;
  rule.hebbian = o.objective == "dot";
  rule.mean_loss = o.loss_reduction == "mean";
  rule.chunk = o.chunk;
  rule.window = o.window;
  rule.ns_steps = o.ns_steps;
  return rule;
}

/// The tensors, shared; for a state to go back to.
Memory same_tensors(const Memory& memory) {
  return memory.map([](const Tensor& t) { return t; });
}

}  // namespace

SEQLOOM_REGISTER_MIXER("titans", Titans);
SEQLOOM_REGISTER_MIXER("omeganet", OmegaNet);
SEQLOOM_REGISTER_MIXER("atlas", Atlas);

std::vector<Tensor> register_memory_network(torch::nn::Module& owner, int64_t heads, int64_t in, int64_t hidden,
                                            int64_t out, int64_t layers) {
  auto network = owner.register_module("memory", std::make_shared<torch::nn::Module>());
  std::vector<Tensor> weights;
  for (int64_t l = 0; l < layers; ++l) {
    const int64_t rows = l + 1 < layers ? hidden : out, columns = l > 0 ? hidden : in;
    const double bound = std::sqrt(6.0 / static_cast<double>(rows + columns));  // Xavier; zeros would never learn
    weights.push_back(register_held(*network, std::to_string(l), "weight",
                                    torch::empty({heads, rows, columns}).uniform_(-bound, bound)));
  }
  return weights;
}

void DeepMemoryOptions::describe(Fields& f) {
  f.add("heads", heads, "number of heads H, each with a memory of its own").at_least(1).also("num_heads");
  f.add("dim_head", dim_head, "width of a head; none: width / heads").at_least(1);
  f.add("memory_depth", memory_depth, "layers of the memory network; 1 is a matrix").at_least(1);
  f.add("memory_hidden", memory_hidden, "its hidden width; none: 4 dim_head").at_least(1);
  f.add("residual", residual, "the memory answers M(z) + z");
  f.add("objective", objective, "loss of a token: |M(k) - v|^2 or -<M(k), v>").one_of({"l2", "dot"});
  f.add("loss_reduction", loss_reduction, "over the channels of v").one_of({"sum", "mean"});
  f.add("optimizer", optimizer, "how the memory follows the gradient").one_of({"gd", "momentum", "muon"});
  f.add("chunk", chunk, "gradients are taken at the weights before a token's chunk; 1 is the exact online rule")
      .at_least(1);
  f.add("window", window, "tokens, the last one included, whose losses a step goes down (Omega rule)").at_least(1);
  f.add("omega_gate", omega_gate, "a gate weighs each token's loss");
  f.add("feature_map", feature_map, "polynomial features of q and k: of each channel, or all monomials")
      .one_of({"none", "elementwise", "full"});
  f.add("poly_degree", poly_degree, "their degree").at_least(1);
  f.add("ns_steps", ns_steps, "muon: Newton-Schulz steps").at_least(0).at_most(12);
  f.add("max_lr", max_lr, "largest step; above 0.1 with unit keys a deep memory may diverge").greater_than(0);
  f.add("conv_kernel", conv_kernel, "short convolution of q, k and v; 0: none").at_least(0);
  f.add("qkv_activation", qkv_activation, "after it").one_of({"none", "silu"});
  f.add("qk_norm", qk_norm, "of q and k, before the features").one_of({"none", "l2"});
  f.add("out_norm", out_norm, "RMSNorm of what a head answers");
  f.add("out_gate", out_gate, "a sigmoid gate on it").one_of({"none", "head"});
}

Config DeepMemory::from_case(Config config, const std::map<std::string, std::vector<int64_t>>&) {
  config.erase("dim");
  return config;
}

DeepMemory::DeepMemory(int64_t width, const DeepMemoryOptions& o)
    : CausalMixer(width),
      options_(o),
      rule_(rule_of(o)),
      head_width_(o.dim_head ? *o.dim_head : head_width(width, 1, o.heads, "model")) {
  add_features();
  add_projections();
  initial_ = register_memory_network(*this, o.heads, feature_width_, o.memory_hidden.value_or(4 * head_width_),
                                     head_width_, o.memory_depth);
}

void DeepMemory::add_features() {
  feature_width_ = head_width_;
  if (options_.feature_map != "none") {
    if (options_.feature_map == "full") feature_width_ = ops::polynomial_width(head_width_, options_.poly_degree);
    Tensor coeff = torch::ones({options_.poly_degree + 1});
    double factorial = 1;
    for (int64_t j = 1; j <= options_.poly_degree; ++j) {
      factorial *= static_cast<double>(j);
      coeff[j] = std::sqrt(1 / factorial);  // of all monomials this makes the Taylor series of exp(q . k)
    }
    coeff_ = register_held(*this, "poly", "coeff", coeff);
  }
  if (options_.residual && feature_width_ != head_width_) {
    misuse("residual = true adds the {} features to {} output channels; set residual = false or another feature_map",
           feature_width_, head_width_);
  }
}

void DeepMemory::add_projections() {
  const int64_t heads = options_.heads, channels = heads * head_width_;
  q_proj_ = register_module("q_proj", linear(width(), channels, false));
  k_proj_ = register_module("k_proj", linear(width(), channels, false));
  v_proj_ = register_module("v_proj", linear(width(), channels, false));
  if (options_.conv_kernel > 0) {
    const double bound = 1 / std::sqrt(static_cast<double>(options_.conv_kernel));
    for (const char* name : {"q_conv", "k_conv", "v_conv"}) {
      taps_[name] =
          register_held(*this, name, "weight", torch::empty({channels, options_.conv_kernel}).uniform_(-bound, bound));
    }
  }
  retain_proj_ = register_module("retain_proj", head_gate(width(), heads, 3));
  lr_proj_ = register_module("lr_proj", head_gate(width(), heads, -2));
  if (rule_.has_momentum()) momentum_proj_ = register_module("momentum_proj", head_gate(width(), heads, 0));
  if (options_.omega_gate) omega_proj_ = register_module("omega_proj", head_gate(width(), heads, 0));
  if (options_.out_norm) out_norm_ = register_module("out_norm", std::make_shared<RmsNorm>(head_width_, kNormEps));
  if (options_.out_gate == "head") gate_proj_ = register_module("gate_proj", linear(width(), heads, false));
  out_proj_ = register_module("out_proj", linear(channels, width(), false));
}

std::vector<DeepMemory::WeightGroup> DeepMemory::groups() const {
  std::vector<WeightGroup> all = {{"memory", &State::memory}, {"chunk_start", &State::chunk_start}};
  if (rule_.has_momentum()) all.push_back({"momentum", &State::momentum});
  return all;
}

Memory DeepMemory::empty_memory(int64_t batch) const {
  Memory memory;
  const auto options = state_options();
  for (size_t l = 0; l < initial_.size(); ++l) {
    const Tensor start = ops::widened(initial_[l]).unsqueeze(0).repeat({batch, 1, 1, 1});
    memory[numbered("memory", l)] = start;
    memory[numbered("chunk_start", l)] = start;
    if (rule_.has_momentum()) memory[numbered("momentum", l)] = torch::zeros(start.sizes(), options);
  }
  if (rule_.window > 1) {
    const int64_t earlier = rule_.window - 1;
    memory["window_k"] = torch::zeros({batch, earlier, options_.heads, feature_width_}, options);
    memory["window_v"] = torch::zeros({batch, earlier, options_.heads, head_width_}, options);
    memory["window_omega"] = torch::zeros({batch, earlier, options_.heads}, options);
  }
  for (const auto& [name, taps] : taps_) {
    if (options_.conv_kernel > 1) {
      memory[name] = torch::zeros({batch, options_.conv_kernel - 1, taps.size(0)}, options);
    }
  }
  return memory;
}

Tensor DeepMemory::features(const Tensor& x) const {
  const Tensor z = options_.qk_norm == "l2" ? ops::l2_norm(x, kL2Eps) : x;
  if (options_.feature_map == "elementwise") return ops::elementwise_polynomial(z, coeff_);
  return options_.feature_map == "full" ? ops::polynomial_features(z, coeff_) : z;
}

/// fresh [B, C, ...] behind what the memory holds under `name`, which moves on; fresh itself where it holds nothing.
Tensor DeepMemory::with_window(const char* name, const Tensor& fresh, Memory& memory, const Columns& columns) const {
  if (!memory.contains(name)) return fresh;
  Tensor& earlier = memory[name];
  const Tensor joined = columns.behind(earlier, fresh);
  earlier = columns.last(joined, earlier.size(1)).to(earlier.scalar_type());
  return joined;
}

/// [B, C, D] -> [B, C, H, V] through the projection, the short convolution called `name` and the activation.
Tensor DeepMemory::heads_of(const char* name, Linear& projection, const Tensor& x, Memory& memory,
                            const Columns& columns) {
  const bool silu = options_.qkv_activation == "silu";
  Tensor y = projection(x);
  if (const auto taps = taps_.find(name); taps != taps_.end()) {
    const int64_t tokens = y.size(1);
    const Tensor joined = with_window(name, y, memory, columns);
    y = std::get<0>(ops::causal_conv1d(joined.transpose(1, 2), taps->second, {}, {}, silu)).transpose(1, 2);
    y = y.narrow(1, y.size(1) - tokens, tokens);
  } else if (silu) {
    y = torch::silu(y);
  }
  return ops::widened(split_heads(y, options_.heads));
}

ops::DeepMemoryTokens DeepMemory::project(const Tensor& x, Memory& memory, const Columns& columns) {
  const auto by_head = [](const Tensor& t) { return t.transpose(1, 2); };
  const auto gate = [&](Linear& projection) { return ops::widened(projection(x)); };
  const Tensor k = features(heads_of("k_conv", k_proj_, x, memory, columns));
  const Tensor v = heads_of("v_conv", v_proj_, x, memory, columns);
  Tensor omega = options_.omega_gate ? torch::sigmoid(gate(omega_proj_)) : torch::ones_like(v.select(-1, 0));
  if (columns.real().defined()) omega = omega * columns.real().unsqueeze(-1);
  ops::DeepMemoryTokens t;
  t.q = by_head(features(heads_of("q_conv", q_proj_, x, memory, columns)));
  t.k = by_head(with_window("window_k", k, memory, columns));
  t.v = by_head(with_window("window_v", v, memory, columns));
  t.omega = by_head(with_window("window_omega", omega, memory, columns));
  t.log_retain = by_head(torch::log_sigmoid(gate(retain_proj_)));
  if (rule_.has_momentum()) t.log_momentum = by_head(torch::log_sigmoid(gate(momentum_proj_)));
  t.lr = by_head(options_.max_lr * torch::sigmoid(gate(lr_proj_)));
  t.real = columns.real();
  return t;
}

Tensor DeepMemory::finish(const Tensor& o, const Tensor& x) {
  Tensor y = o.transpose(1, 2).to(x.scalar_type());
  if (out_norm_) y = out_norm_->forward(y);
  if (gate_proj_) y = y * torch::sigmoid(gate_proj_(x)).unsqueeze(-1);
  return out_proj_(merge_heads(y));
}

DeepMemory::State DeepMemory::load(const Memory& memory) const {
  State state;
  for (const auto& [name, weights] : groups()) {
    for (size_t l = 0; l < initial_.size(); ++l) (state.*weights).push_back(memory.at(numbered(name, l)));
  }
  return state;
}

bool DeepMemory::store(const State& state, Memory& memory) const {
  bool finite = true;
  for (const auto& [name, weights] : groups()) {
    for (size_t l = 0; l < initial_.size(); ++l) {
      const Tensor& value = memory[numbered(name, l)] = (state.*weights)[l];
      finite = finite && value.detach().isfinite().all().item<bool>();
    }
  }
  return finite;
}

Tensor DeepMemory::read(const Tensor& x, Memory& memory, Pass& pass) {
  const Memory before = same_tensors(memory);
  const Columns columns(pass.layout, x.size(0), x.size(1), memory.counts(x), rule_.chunk);
  const Tensor real_x = columns.gather(x);
  const ops::DeepMemoryTokens tokens = project(real_x, memory, columns);
  State state = load(memory);
  const Tensor o = ops::deep_memory(rule_, tokens, columns.phase(), state);
  if (!store(state, memory)) name_the_token(x, before, pass);
  return columns.scatter(finish(o, real_x));
}

/// Reads again token by token; the one that breaks the state reports itself.
void DeepMemory::name_the_token(const Tensor& x, const Memory& before, const Pass& pass) {
  const int64_t tokens = x.size(1);
  const torch::NoGradGuard no_grad;
  const Tensor keep = pass.layout.keep(x.size(0), tokens);
  Memory memory = same_tensors(before);
  for (int64_t t = 0; tokens > 1 && t < tokens; ++t) {
    Pass one;
    if (keep.defined()) one.layout = Layout::masked(keep.narrow(1, t, 1));
    extend(x.narrow(1, t, 1), memory, one);
  }
  fail(
      "the deep memory is no longer finite after token {}: lower max_lr = {:g} (with qk_norm = \"l2\" keep it at most "
      "0.1), or the input itself is not finite",
      before.tokens + tokens - 1, options_.max_lr);
}

}  // namespace seqloom
