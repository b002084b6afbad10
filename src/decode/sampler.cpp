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

/// Tokens by falling score, ties to the lower id, so that greedy decoding is well defined. Sorts only as far as asked:
/// a vocabulary has many tokens, and a draw mostly ends among the first.
class Ranking {
 public:
  explicit Ranking(const std::vector<double>& scores) : scores_(scores), order_(scores.size()) {
    std::iota(order_.begin(), order_.end(), 0);
  }

  int64_t at(size_t rank) {
    if (rank >= sorted_) sort_to(std::max<size_t>(64, 8 * rank));
    return order_[rank];
  }

 private:
  void sort_to(size_t count) {
    const auto end = order_.begin() + static_cast<int64_t>(std::min(count, order_.size()));
    std::partial_sort(order_.begin() + static_cast<int64_t>(sorted_), end, order_.end(), [&](int64_t a, int64_t b) {
      const double left = scores_[static_cast<size_t>(a)], right = scores_[static_cast<size_t>(b)];
      return left > right || (left == right && a < b);
    });
    sorted_ = static_cast<size_t>(end - order_.begin());
  }

  const std::vector<double>& scores_;
  std::vector<int64_t> order_;
  size_t sorted_ = 0;
};

/// Softmax of the scores at a temperature.
std::vector<double> probabilities_of(const std::vector<double>& scores, double temperature) {
  const double largest = *std::max_element(scores.begin(), scores.end());
  std::vector<double> probabilities(scores.size());
  double total = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    probabilities[i] = std::exp((scores[i] - largest) / temperature);
    total += probabilities[i];
  }
  for (double& p : probabilities) p /= total;
  return probabilities;
}

/// The likeliest tokens that may be drawn: how many, and the probability that they hold.
struct Allowed {
  size_t count;
  double held;
};

Allowed allowed(const std::vector<double>& probabilities, Ranking& ranking, const SamplerOptions& options) {
  size_t count = probabilities.size();
  if (options.top_k > 0) count = std::min(count, static_cast<size_t>(options.top_k));
  if (options.min_p > 0) {
    const double least = options.min_p * probabilities[static_cast<size_t>(ranking.at(0))];
    const auto enough = std::count_if(probabilities.begin(), probabilities.end(), [&](double p) { return p >= least; });
    count = std::min(count, static_cast<size_t>(enough));
  }
  count = std::max<size_t>(1, count);
  if (count == probabilities.size() && options.top_p >= 1) return {count, 1};
  double held = 0;
  size_t needed = 0;
  while (needed < count && (needed == 0 || held < options.top_p)) {
    held += probabilities[static_cast<size_t>(ranking.at(needed++))];
  }
  return {needed, held};
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
  if (options.temperature == 0) return std::max_element(scores.begin(), scores.end()) - scores.begin();

  const std::vector<double> probabilities = probabilities_of(scores, options.temperature);
  Ranking ranking(scores);
  const auto [count, held] = allowed(probabilities, ranking, options);
  double rest = Random(mixed(options.seed, position)).uniform() * held;
  for (size_t rank = 0; rank < count; ++rank) {
    const int64_t token = ranking.at(rank);
    rest -= probabilities[static_cast<size_t>(token)];
    if (rest < 0) return token;
  }
  return ranking.at(count - 1);
}

}  // namespace seqloom
