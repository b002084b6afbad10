#include "mixers/longvq.h"

#include <gtest/gtest.h>

#include "support/compare.h"

namespace seqloom {
namespace {

LongVqOptions small() {
  LongVqOptions o;
  o.z_dim = 4;
  o.v_dim = 5;
  o.ema_ndim = 2;
  o.num_codes = 7;
  o.window = 6;
  return o;
}

/// A mixer whose attention matters: at the usual start its weights are all but equal.
std::shared_ptr<LongVq> make(const LongVqOptions& options, int64_t width = 6) {
  torch::manual_seed(3);
  auto mixer = std::make_shared<LongVq>(width, options);
  const torch::NoGradGuard no_grad;
  for (auto& parameter : mixer->named_parameters()) {
    if (parameter.key().rfind("move.", 0) != 0) parameter.value().normal_(0, 0.7);
  }
  mixer->to(torch::kFloat64);
  return mixer;
}

/// y and its gradients by x and all parameters.
std::vector<Tensor> results(LongVq& mixer, const Tensor& x, const Tensor& cotangent, bool quadratic) {
  Tensor y;
  if (quadratic) {
    const auto form = mixer.matrix(x);
    y = form->finish(torch::matmul(form->matrix, form->values));
  } else {
    y = mixer.forward(x);
  }
  std::vector<Tensor> leaves = mixer.parameters();
  leaves.push_back(x);
  std::vector<Tensor> all = torch::autograd::grad({(y * cotangent).sum()}, leaves);
  all.push_back(y.detach());
  return all;
}

TEST(LongVq, LinearTimeEqualsQuadraticWithItsGradients) {
  // lengths: one block of queries; near keys only; far ones taken singly; those gathered by code
  for (const bool causal : {true, false}) {
    for (const int64_t tokens : {20, 64, 300, 1700}) {
      LongVqOptions options = small();
      options.causal = causal;
      const auto mixer = make(options);
      const Tensor x = torch::randn({2, tokens, 6}, torch::kFloat64).requires_grad_(true);
      const Tensor cotangent = torch::randn_like(x);
      const auto got = results(*mixer, x, cotangent, false), want = results(*mixer, x, cotangent, true);
      for (size_t i = 0; i < want.size(); ++i) {
        expect_near(got[i], want[i], 1e-10, fmt::format("T = {}, causal = {}, result {}", tokens, causal, i));
      }
    }
  }
}

TEST(LongVq, KeysLearnFromAllQueriesFromNearOnesOrFromNone) {
  const Tensor x = torch::randn({1, 300, 6}, torch::kFloat64), cotangent = torch::randn_like(x);
  std::map<std::string, Tensor> of_keys;
  for (const char* kind : {"all", "near", "none"}) {
    LongVqOptions options = small();
    options.key_gradient = kind;
    const auto mixer = make(options);
    const Tensor gamma = *mixer->named_parameters().find("gamma");
    of_keys[kind] = torch::autograd::grad({(mixer->forward(x) * cotangent).sum()}, {gamma})[0][1];
  }
  EXPECT_EQ(of_keys["none"].abs().max().item<double>(), 0);
  EXPECT_GT(of_keys["near"].abs().max().item<double>(), 0);
  EXPECT_FALSE(of_keys["near"].allclose(of_keys["all"]));
}

TEST(LongVq, PaddingAnywhereIsNotRead) {
  const torch::NoGradGuard no_grad;
  const auto mixer = make(small());
  Tensor x = torch::randn({2, 90, 6}, torch::kFloat64);
  const Tensor keep = torch::rand({2, 90}) > 0.3;
  x.masked_fill_(keep.logical_not().unsqueeze(-1), NAN);
  Memory memory = mixer->empty_memory(2);
  std::vector<Tensor> outputs;
  for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 40}, {40, 43}, {43, 90}}) {
    Pass pass;
    pass.layout = Layout::masked(keep.narrow(1, begin, end - begin));
    outputs.push_back(mixer->extend(x.narrow(1, begin, end - begin), memory, pass));
  }
  const Tensor y = torch::cat(outputs, 1);
  for (int64_t row = 0; row < 2; ++row) {
    Memory alone = mixer->empty_memory(1);
    const Tensor want = mixer->extend(x[row].index({keep[row]}).unsqueeze(0), alone);
    expect_near(y[row].index({keep[row]}), want[0], 1e-10, "outputs");
    for (const auto& [name, tensor] : alone.tensors()) {
      expect_near(memory.at(name).narrow(0, row, 1), tensor, 1e-10, name);
    }
  }
}

TEST(LongVq, TheCodebookChangesBetweenStepsOnly) {
  const auto mixer = make(small());
  const Tensor c_sum = *mixer->named_buffers().find("c_sum"), c_count = *mixer->named_buffers().find("c_count");
  const Tensor x = torch::randn({4, 50, 6}, torch::kFloat64), before = c_sum.clone();
  Pass pass;
  mixer->forward(x, pass);
  ASSERT_EQ(pass.losses.size(), 1U);
  EXPECT_TRUE(c_sum.equal(before));

  mixer->after_step();  // starts from the keys
  EXPECT_FALSE(c_sum.equal(before));
  EXPECT_EQ(c_count.min().item<double>(), 1);
  Pass better;
  mixer->forward(x, better);
  EXPECT_LT(better.losses[0].item<double>(), pass.losses[0].item<double>());

  mixer->after_step();  // moves
  EXPECT_NEAR(c_count.sum().item<double>(), 0.99 * 7 + 0.01 * 200, 1e-9);
  const Tensor after = c_sum.clone();
  mixer->after_step();  // nothing new
  mixer->eval();
  Pass evaluation;
  mixer->forward(x, evaluation);
  mixer->after_step();
  EXPECT_TRUE(evaluation.losses.empty());
  EXPECT_TRUE(c_sum.equal(after));
}

TEST(LongVq, DeadCodesStartAgainAtKeys) {
  for (const bool reseed : {true, false}) {
    LongVqOptions options = small();
    options.reseed = reseed;
    const auto mixer = make(options);
    Tensor c_sum = *mixer->named_buffers().find("c_sum"), c_count = *mixer->named_buffers().find("c_count");
    const Tensor x = torch::randn({2, 50, 6}, torch::kFloat64);
    mixer->forward(x);
    mixer->after_step();
    c_sum[3].fill_(100);  // far from all keys
    c_count[3].fill_(0.01);
    mixer->forward(x);
    mixer->after_step();
    EXPECT_EQ(c_count[3].item<double>() == 1, reseed);
    EXPECT_EQ(c_sum[3].abs().max().item<double>() < 50, reseed);
  }
}

TEST(LongVq, MoreCodesThanKeys) {
  LongVqOptions options = small();
  options.num_codes = 40;
  const auto mixer = make(options);
  mixer->forward(torch::randn({1, 5, 6}, torch::kFloat64));
  mixer->after_step();
  EXPECT_TRUE(mixer->forward(torch::randn({1, 5, 6}, torch::kFloat64)).isfinite().all().item<bool>());
}

}  // namespace
}  // namespace seqloom
