#include "blocks/linear.h"

#include <gtest/gtest.h>

namespace seqloom {
namespace {

using torch::Tensor;

TEST(Linear, StartsAsTorchsDoesFromTheSameDraws) {
  for (const bool bias : {true, false}) {
    torch::manual_seed(1);
    torch::nn::Linear torchs(torch::nn::LinearOptions(24, 10).bias(bias));
    const Tensor next = torch::randn({3});
    torch::manual_seed(1);
    Linear ours(24, 10, bias);
    EXPECT_TRUE(ours->weight.equal(torchs->weight));
    EXPECT_EQ(ours->bias.defined(), bias);
    EXPECT_TRUE(!bias || ours->bias.equal(torchs->bias));
    EXPECT_TRUE(torch::randn({3}).equal(next));
    EXPECT_EQ(ours->named_parameters().keys(), torchs->named_parameters().keys());
    const Tensor x = torch::randn({2, 5, 24});
    EXPECT_TRUE(ours(x).equal(torchs(x)));
  }
  torch::manual_seed(2);
  torch::nn::Embedding torchs(7, 12);
  torch::manual_seed(2);
  Embedding ours(7, 12);
  const Tensor ids = torch::randint(7, {2, 4}, torch::kInt64);
  EXPECT_TRUE(ours->rows(ids).equal(torchs(ids)));
  EXPECT_EQ(ours->named_parameters().keys(), torchs->named_parameters().keys());
}

TEST(Linear, TakesNoDrawsWhereItIsAboutToBeRead) {
  torch::manual_seed(3);
  const Tensor next = torch::randn({3});
  torch::manual_seed(3);
  {
    const WithoutInitialisation guard;
    Linear linear(64, 64);
    Embedding embedding(64, 64);
  }
  EXPECT_FALSE(WithoutInitialisation::on());
  EXPECT_TRUE(torch::randn({3}).equal(next));
}

}  // namespace
}  // namespace seqloom
