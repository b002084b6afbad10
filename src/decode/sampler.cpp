#include "decode/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/random.h"

namespace seqloom {
namespace {

void penalize(std::vector<double>& logits, std::vector<int64_t> recent, double penalty) {
  std::sort(recent.begin(), recent.end());
  recent.erase(std::unique(recent.begin(), recent.end()), recent.end());
  for (const int64_t token : recent) {
    double& logit = logits.at(static_cast<size_t>(token));
    logit = logit > 0 ? logit / penalty : logit * penalty;
  }
}

/// How many of the likeliest tokens (probabilities falling, summing to 1) may be drawn.
size_t allowed(const std::vector<double>& probabilities, const SamplerOptions& options) {
  size_t count = probabilities.size();
  if (options.top_k > 0) count = std::min(count, static_cast<size_t>(options.top_k));
  if (options.min_p > 0) {
    const double least = options.min_p * probabilities.front();
    const auto below = std::find_if(probabilities.begin(), probabilities.end(), [&](double p) { return p < least; });
    count = std::min(count, static_cast<size_t>(below - probabilities.begin()));
  }
  if (options.top_p < 1) {
    double held = 0;
    size_t needed = 0;
    while (needed < count && held < options.top_p) held += probabilities[needed++];
    count = needed;
  }
  return std::max<size_t>(1, count);
}

}  // namespace

int64_t sample(const torch::Tensor& logits, const std::vector<int64_t>& recent, const SamplerOptions& options,
               int64_t position) {
  const torch::Tensor flat = logits.detach().to(torch::kCPU, torch::kFloat64).flatten().contiguous();
  std::vector<double> scores(flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel());
  if (!std::all_of(scores.begin(), scores.end(), [](double s) { return std::isfinite(s); })) {
    fail("the model's logits are not finite at position {}; the checkpoint or the state is damaged", position);
  }
  if (options.repetition_penalty != 1) penalize(scores, recent, options.repetition_penalty);
  std::vector<int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  // ties go to the lower id, so that greedy decoding is well defined
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
  if (options.temperature == 0) return order.front();

  std::vector<double> probabilities(scores.size());
  double total = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    probabilities[i] = std::exp((scores[order[i]] - scores[order.front()]) / options.temperature);
    total += probabilities[i];
  }
  for (double& p : probabilities) p /= total;
  const size_t count = allowed(probabilities, options);
  const double held = std::accumulate(probabilities.begin(), probabilities.begin() + static_cast<int64_t>(count), 0.0);
  double rest = Random(mixed(options.seed, position)).uniform() * held;
  for (size_t i = 0; i < count; ++i) {
    rest -= probabilities[i];
    if (rest < 0) return order[i];
  }
  return order[count - 1];
}

}  // namespace seqloom
