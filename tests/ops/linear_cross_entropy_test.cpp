#include "ops/linear_cross_entropy.h"

#include "base/error.h"
#include "support/fused_op.h"

namespace seqloom {
namespace {

using torch::Tensor;

Tensor targets_of(int64_t count, int64_t vocabulary, double ignored) {
  return torch::randint(vocabulary, {count}, torch::kInt64).masked_fill(torch::rand({count}) < ignored, -100);
}

Tensor whole(const Tensor& hidden, const Tensor& weight, const Tensor& targets) {
  return torch::cross_entropy_loss(torch::linear(hidden, weight).to(torch::kFloat32), targets, {}, at::Reduction::Mean);
}

/// Loss and gradients of hidden and weight, the loss scaled.
std::vector<Tensor> results(const std::function<Tensor(const Tensor&, const Tensor&)>& loss, const Tensor& hidden,
                            const Tensor& weight) {
  const Tensor h = hidden.detach().clone().requires_grad_(true), w = weight.detach().clone().requires_grad_(true);
  const Tensor value = loss(h, w);
  auto all = torch::autograd::grad({3 * value}, {h, w});
  all.push_back(value.detach());
  return all;
}

TEST(LinearCrossEntropy, ChunksOfAnySizeGiveTheWhole) {
  torch::manual_seed(1);
  for (const auto type : {torch::kFloat32, torch::kBFloat16}) {
    const Tensor hidden = torch::randn({37, 12}).to(type), weight = torch::randn({50, 12}).to(type);
    const Tensor targets = targets_of(37, 50, 0.3);
    const auto want = results([&](const Tensor& h, const Tensor& w) { return whole(h, w, targets); }, hidden, weight);
    for (const int64_t rows : {1, 5, 36, 37, 100, 0}) {
      const auto got = results(
          [&](const Tensor& h, const Tensor& w) { return ops::linear_cross_entropy(h, w, targets, -100, rows); },
          hidden, weight);
      for (size_t i = 0; i < want.size(); ++i) {
        EXPECT_EQ(got[i].scalar_type(), want[i].scalar_type());
        expect_near(got[i], want[i], type == torch::kFloat32 ? 1e-6 : 0.01, fmt::format("{} rows, {}", rows, i));
      }
      EXPECT_NEAR(ops::linear_cross_entropy(hidden, weight, targets, -100, rows).item<double>(), want[2].item<double>(),
                  type == torch::kFloat32 ? 1e-5 : 0.01);
    }
  }
}

TEST(LinearCrossEntropy, ManyLogitsAreTakenInChunksUnasked) {
  torch::manual_seed(2);
  const Tensor hidden = torch::randn({700, 8}), weight = torch::randn({5000, 8}), targets = targets_of(700, 5000, 0.1);
  const auto want = results([&](const Tensor& h, const Tensor& w) { return whole(h, w, targets); }, hidden, weight);
  const auto got = results([&](const Tensor& h, const Tensor& w) { return ops::linear_cross_entropy(h, w, targets); },
                           hidden, weight);
  for (size_t i = 0; i < want.size(); ++i) expect_near(got[i], want[i], 1e-6, std::to_string(i));
}

TEST(LinearCrossEntropy, HugeLogitsStayFinite) {
  torch::manual_seed(3);
  const Tensor hidden = torch::randn({9, 4}) * 1e4, weight = torch::randn({20, 4}), targets = targets_of(9, 20, 0);
  const auto want = results([&](const Tensor& h, const Tensor& w) { return whole(h, w, targets); }, hidden, weight);
  const auto got =
      results([&](const Tensor& h, const Tensor& w) { return ops::linear_cross_entropy(h, w, targets, -100, 2); },
              hidden, weight);
  for (size_t i = 0; i < want.size(); ++i) expect_near(got[i], want[i], 1e-6, std::to_string(i));
}

TEST(LinearCrossEntropy, SecondDerivativesAreThoseOfTheWhole) {
  torch::manual_seed(4);
  const Tensor targets = targets_of(6, 7, 0.2), hidden = torch::randn({6, 3}), weight = torch::randn({7, 3});
  const auto second = [&](int64_t rows) {
    const Tensor h = hidden.clone().requires_grad_(true), w = weight.clone().requires_grad_(true);
    const Tensor loss = ops::linear_cross_entropy(h, w, targets, -100, rows);
    const auto first = torch::autograd::grad({loss}, {h, w}, {}, true, true);
    return torch::autograd::grad({first[0].pow(2).sum() + first[1].pow(2).sum()}, {h, w});
  };
  const auto want = second(6), got = second(2);
  for (size_t i = 0; i < want.size(); ++i) expect_near(got[i], want[i], 1e-6, "second derivative");
}

TEST(LinearCrossEntropy, NothingToCountIsNoNumberAndWrongTargetsAreRefused) {
  const Tensor hidden = torch::randn({4, 3}), weight = torch::randn({5, 3});
  const auto loss = [&](const Tensor& targets, int64_t rows) {
    return ops::linear_cross_entropy(hidden, weight, targets, -100, rows);
  };
  for (const int64_t rows : {0, 2}) {
    EXPECT_TRUE(loss(torch::full({4}, -100), rows).isnan().item<bool>());
    EXPECT_THROW(loss(torch::full({4}, 5), rows), UsageError);
    EXPECT_THROW(loss(torch::full({4}, -1), rows), UsageError);
  }
  EXPECT_THROW(loss(torch::zeros({3}, torch::kInt64), 0), UsageError);
  EXPECT_THROW(loss(torch::zeros({4}), 0), UsageError);
  EXPECT_THROW(ops::linear_cross_entropy(hidden, torch::randn({5, 2}), torch::zeros({4}, torch::kInt64)), UsageError);
}

}  // namespace
}  // namespace seqloom
