#include "tasks/sharpness.h"

#include <algorithm>
#include <random>

#include "base/error.h"
#include "base/random.h"
#include "tasks/measurement.h"

namespace seqloom {
namespace {

using torch::Tensor;

constexpr uint64_t kSeed = 0x7368617270;

Tensor gaussian(int64_t rows, int64_t width, uint64_t seed) {
  Tensor x = torch::empty({rows, width}, torch::kFloat64);
  Random random(seed);
  std::normal_distribution<double> normal;
  for (int64_t i = 0; i < x.numel(); ++i) x.data_ptr<double>()[i] = normal(random);
  return x;
}

/// Whether longer queries look at fewer keys: entropies of the rows of a mixer's matrix, for unit queries times several
/// scales over Gaussian keys. All of the mixer's maps of the input become identities, so that a token is its own query
/// and its own key; a query's weights on the keys are its row of the matrix, of which its entries for other queries are
/// left out.
class SharpnessTask final : public Measurement {
 public:
  SharpnessTask(const Config& recipe, const std::string& name)
      : Measurement(recipe, name, "sharpness"),
        options_(read_options<SharpnessOptions>(recipe["task"], name + ": task", {"kind"})) {
    if (options_.scales.size() < 2) misuse("{}: task.scales: expected at least two, to compare them", name);
    mixer().to(torch::kFloat64);
    make_identities();
    if (!mixer().matrix(tokens(1)))
      misuse("{}: model.mixer: this mixer has no matrix of which rows could be taken", name);
  }

  std::string main_metric() const override { return "entropy"; }

  std::map<std::string, double> evaluate() override {
    std::map<std::string, double> metrics;
    std::vector<double> entropies;
    for (const double scale : options_.scales) {
      const Tensor matrix = mixer().matrix(tokens(scale))->matrix;  // [1, H, T, T], the queries are the last tokens
      entropies.push_back(
          mean_entropy(matrix.narrow(2, options_.keys, options_.eval_rows).narrow(3, 0, options_.keys)));
      metrics[fmt::format("entropy@{:g}", scale)] = entropies.back();
    }
    const auto [least, most] = std::minmax_element(entropies.begin(), entropies.end());
    metrics["change"] = *most - *least;
    metrics["drop"] = entropies.front() - entropies.back();
    metrics["least_drop"] = std::numeric_limits<double>::infinity();
    for (size_t i = 1; i < entropies.size(); ++i) {
      metrics["least_drop"] = std::min(metrics["least_drop"], entropies[i - 1] - entropies[i]);
    }
    return metrics;
  }

 private:
  void make_identities() {
    const torch::NoGradGuard no_grad;
    const int64_t width = mixer().width();
    for (auto& parameter : mixer().named_parameters()) {
      Tensor& p = parameter.value();
      if (p.dim() == 2 && p.size(1) == width && p.size(0) % width == 0) {
        p.copy_(torch::eye(width, p.options()).repeat({p.size(0) / width, 1}));
      } else if (parameter.key().ends_with("bias")) {
        p.zero_();
      }
    }
  }

  Tensor tokens(double scale) const {
    const Tensor keys = gaussian(options_.keys, mixer().width(), mixed(kSeed, 0));
    const Tensor queries = gaussian(options_.eval_rows, mixer().width(), mixed(kSeed, 1));
    const Tensor norms = torch::linalg_vector_norm(queries, 2, torch::IntArrayRef{-1}, /*keepdim=*/true);
    return torch::cat({keys, queries / norms * scale}, 0).unsqueeze(0);
  }

  SharpnessOptions options_;
};

const bool registered = tasks().add(
    "sharpness",
    {"entropies of a mixer's weights for queries of several lengths, without training; metrics: entropy@SCALE, change",
     [](const Config& recipe, const std::string& name) { return std::make_unique<SharpnessTask>(recipe, name); }});

}  // namespace

double mean_entropy(const Tensor& weights) {
  if (weights.lt(0).any().item<bool>()) fail("a weight is negative: such rows have no entropy");
  const Tensor p = weights / weights.sum(-1, /*keepdim=*/true);
  return -torch::xlogy(p, p).sum(-1).mean().item<double>();
}

}  // namespace seqloom
