#include "mixers/extractor.h"

#include <fmt/ostream.h>

#include <algorithm>
#include <cmath>

#include "mixers/heads.h"
#include "ops/causal_conv1d.h"
#include "ops/precision.h"

namespace seqloom {
namespace {

/// The smallest 2^a or 3 2^a that is >= n: lengths for which a Fourier transform is fast.
int64_t transform_length(int64_t n) {
  int64_t power = 1;
  while (power < n) power *= 2;
  return power / 4 * 3 >= n ? power / 4 * 3 : power;
}

/// sum_k taps[:, :, k] inputs[:, t + k] by Fourier transforms: inputs [B, L-1+T, D], taps [D, D, L], [D, 1, L] or
/// [1, 1, L] -> [B, T, D]. In blocks that overlap by L-1 tokens: products wrap round only behind a block's end, and the
/// outputs there belong to the next one. O(T log L) for each channel, and with matrices about L/4 times fewer products
/// than the sum itself.
Tensor correlated(const Tensor& inputs, const Tensor& taps) {
  const int64_t lags = taps.size(2), tokens = inputs.size(1) - lags + 1;
  const int64_t length = transform_length(std::min(2 * lags, inputs.size(1))), step = length - lags + 1;
  const int64_t blocks = (tokens + step - 1) / step, filling = (blocks - 1) * step + length - inputs.size(1);
  const Tensor filled = torch::constant_pad_nd(ops::widened(inputs), {0, 0, 0, filling});
  const Tensor spectrum = torch::fft_rfft(filled.unfold(1, length, step));     // [B, N, D, F]
  const Tensor response = torch::fft_rfft(ops::widened(taps), length).conj();  // [D or 1, D or 1, F]
  const bool matrices = taps.size(1) > 1;
  const Tensor product =
      matrices ? torch::einsum("bnif,oif->bnof", {spectrum, response}) : spectrum * response.squeeze(1);
  const Tensor y = torch::fft_irfft(product, length).narrow(-1, 0, step);  // [B, N, D, step]
  return y.transpose(2, 3).flatten(1, 2).narrow(1, 0, tokens).to(inputs.scalar_type());
}

}  // namespace

SEQLOOM_REGISTER_MIXER("extractor_she", ExtractorShe);
SEQLOOM_REGISTER_MIXER("extractor_he", ExtractorHe);
SEQLOOM_REGISTER_MIXER("extractor_we", ExtractorWe);
SEQLOOM_REGISTER_MIXER("extractor_me", ExtractorMe);

Extractor::Extractor(int64_t width, const ExtractorOptions& options)
    : WindowMixer(width, options.context_length - 1, "hist"), options_(options) {
  const int64_t lags = options.context_length;
  const int64_t outputs = options.extract == "scalar" ? 1 : width, inputs = options.extract == "full" ? width : 1;
  auto extract = register_module("extract", std::make_shared<torch::nn::Module>());
  const double deviation = 1 / std::sqrt(static_cast<double>(lags * inputs));  // e has about the variance of x
  taps_ = extract->register_parameter("weight", torch::randn({outputs, inputs, lags}) * deviation);
  if (options.length_bias) length_bias_ = register_parameter("length_bias", torch::zeros({lags, width}));
  add_adjustment();
  if (options.out_proj) out_proj_ = register_module("out_proj", linear(width, width, true));
}

void Extractor::add_adjustment() {
  if (options_.adjust == "input" || options_.adjust == "none") return;
  const bool full = options_.adjust == "linear";
  auto adjust = register_module("adjust", std::make_shared<torch::nn::Module>());
  const Tensor weight = full ? linear(width(), width(), false)->weight.detach() : torch::ones({width()});
  adjust_weight_ = adjust->register_parameter("weight", weight);
  adjust_bias_ = adjust->register_parameter("bias", torch::ones({width()}));  // the factor starts about 1
}

int64_t Extractor::current_tap() const {
  return options_.causal ? window() : window() / 2;
}

Memory Extractor::empty_memory(int64_t batch) const {
  Memory memory = WindowMixer::empty_memory(batch);
  memory["n"] = torch::zeros({batch}, state_options().dtype(torch::kInt64));
  return memory;
}

Tensor Extractor::extracted(const Tensor& before, const Tensor& x, const Layout& layout) const {
  const bool matrices = options_.extract == "full";
  const int64_t longest = matrices ? 8 : 64;  // up to here the sum itself is faster than transforms
  if (layout.is_packed() && (matrices || options_.context_length > longest)) {
    // one row in which zeros keep the windows apart
    const auto rows = Columns(layout, x).spread(x, window());
    return extracted(before.narrow(0, 0, 1), rows.x, Layout()).index_select(1, rows.place);
  }
  if (x.size(1) > 1 && options_.context_length > longest) return correlated(torch::cat({before, x}, 1), taps_);
  if (matrices) {
    const Tensor inputs = torch::cat({before, x}, 1).transpose(1, 2);
    if (x.size(1) == 1) return torch::linear(inputs.flatten(1), taps_.flatten(1)).unsqueeze(1);
    return torch::conv1d(inputs, taps_).transpose(1, 2);
  }
  const Tensor taps = taps_.squeeze(1);  // [D or 1, L]
  if (x.size(1) == 1 && before.size(0) == x.size(0))
    return (torch::cat({before, x}, 1) * taps.t()).sum(1, /*keepdim=*/true);
  return std::get<0>(ops::causal_conv1d(x.transpose(1, 2), taps.expand({width(), -1}), {}, before.transpose(1, 2),
                                        /*silu=*/false, layout.cu_seqlens()))
      .transpose(1, 2);
}

Tensor Extractor::with_length_bias(const Tensor& e, const Tensor& seen) const {
  return options_.length_bias ? e + torch::embedding(length_bias_, seen - 1) : e;
}

Tensor Extractor::finish(const Tensor& e, const Tensor& x) {
  Tensor y = e;
  if (options_.adjust == "linear") y = e * torch::linear(x, adjust_weight_, adjust_bias_);
  if (options_.adjust == "diag") y = e * (x * adjust_weight_ + adjust_bias_);
  if (options_.adjust == "input") y = e * x;
  return options_.out_proj ? out_proj_(y) : y;
}

Tensor Extractor::read(const Tensor& x, Memory& memory, Pass& pass) {
  const int64_t batch = pass.layout.sequences(x.size(0));
  const Tensor& count = memory.at("n");
  if (count.dim() > 1 || (count.dim() == 1 && count.size(0) != batch)) {
    misuse("the memory has n {}, expected [{}], the tokens that each row has read", fmt::streamed(count.sizes()),
           batch);
  }
  const Columns columns(pass.layout, x);
  const Tensor inputs = columns.gather(x), n = count.expand({batch});
  const Tensor place = columns.place() + 1;
  const Tensor all = pass.layout.is_packed() ? place : n.unsqueeze(1) + place;  // packed rows have none before them
  const Tensor seen = all.clamp_max(options_.context_length);
  const Tensor e = with_length_bias(extracted(before(x, pass.layout, memory), inputs, pass.layout), seen);
  remember(inputs, columns, memory);
  memory["n"] = n + columns.counts();
  return finish(columns.scatter(e), x);
}

Tensor Extractor::seen_around(const Columns& columns) const {
  const int64_t left = current_tap(), right = window() - left;
  const Tensor place = columns.place(), &counts = columns.counts();
  const bool packed = columns.cu_seqlens().has_value();
  const Tensor tokens = packed ? counts.repeat_interleave(counts).unsqueeze(0) : counts.unsqueeze(1);
  const Tensor behind = (tokens - 1 - place).clamp(0, right);
  return place.clamp_max(left) + 1 + behind;
}

Tensor Extractor::mix(const Tensor& x, Pass& pass) {
  if (options_.causal) return WindowMixer::mix(x, pass);
  // A window that ends `right` tokens behind its own is the causal window of that later token.
  const int64_t right = window() - current_tap();
  const Columns columns(pass.layout, x);
  const Tensor e = columns.ahead(columns.gather(x), right, [&](const Tensor& longer, const Layout& layout) {
    const std::vector<int64_t> before = {layout.sequences(x.size(0)), window(), width()};
    return extracted(torch::zeros(before, x.options().requires_grad(false)), longer, layout);
  });
  return finish(columns.scatter(with_length_bias(e, seen_around(columns))), x);
}

void Extractor::apply_element(const Memory& element, Memory& memory) {
  WindowMixer::apply_element(element, memory);
  memory["n"] = memory.at("n") + element.tokens;
}

std::optional<MatrixForm> Extractor::matrix(const Tensor& x) {
  if (options_.extract == "full") return std::nullopt;
  const Tensor taps = taps_.squeeze(1);
  const int64_t heads = taps.size(0), count = x.size(1);
  const Columns columns(Layout(), x);
  const Tensor place = torch::arange(1, count + 1, columns.counts().options()).unsqueeze(0);
  const Tensor seen = options_.causal ? place.clamp_max(options_.context_length) : seen_around(columns);
  return MatrixForm{toeplitz_matrix(taps, count, current_tap()).expand({x.size(0), -1, -1, -1}),
                    split_heads(x, heads).transpose(1, 2), [this, x, seen](const Tensor& o) {
                      return finish(with_length_bias(merge_heads(o.transpose(1, 2)), seen), x);
                    }};
}

}  // namespace seqloom
