#include "blocks/linear.h"

#include <gtest/gtest.h>

#include "io/expect_error.h"
#include "support/compare.h"

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

TEST(Linear, IsKeptInOtherFormats) {
  torch::manual_seed(4);
  const Tensor x = torch::randn({3, 64}), ids = torch::tensor({{4, 0}, {6, 4}}, torch::kInt64);
  for (const WeightFormat& format : {WeightFormat{"bfloat16", 0}, {"int8", 0}, {"int8", 16}, {"int8", 48}}) {
    const bool int8 = format.type == "int8";
    Linear linear(64, 20);
    Embedding table(7, 64);
    const Tensor y = linear(x).detach(), rows = table->rows(ids).detach(), logits = table(x).detach();
    const double moved = linear->store_as(format);
    table->store_as(format);
    EXPECT_GT(moved, 1e-4);
    EXPECT_LT(moved, 0.02);
    EXPECT_FALSE(linear->weight.requires_grad());
    EXPECT_EQ(linear->named_buffers().contains("scale"), int8);
    EXPECT_EQ(linear->parameters()[0].scalar_type(), int8 ? torch::kInt8 : torch::kBFloat16);
    EXPECT_EQ(linear->weight.numel(), 64 * 20);
    if (int8) {
      EXPECT_EQ(linear->scale.size(1), format.group == 16 ? 4 : 1);  // 48 does not divide 64
    }
    const torch::NoGradGuard no_grad;
    expect_near(linear(x), y, 0.02, "product");
    expect_near(table->rows(ids), rows, 0.02, "rows");
    expect_near(table(x), logits, 0.02, "logits");
    EXPECT_EQ(table->rows(ids).scalar_type(), torch::kFloat32);
    if (int8) {
      EXPECT_THROW(linear->store_as({}), UsageError);
    }
  }
}

TEST(Linear, OneThatIsReadByOthersStaysAsItIs) {
  Linear linear(8, 8);
  linear->keep_float();
  EXPECT_EQ(linear->store_as({"int8", 0}), 0);
  EXPECT_EQ(linear->weight.scalar_type(), torch::kFloat32);
}

TEST(Linear, AnEntryThatIsNotFiniteIsNamed) {
  torch::nn::Module model;
  Linear linear(8, 8);
  model.register_module("proj", linear);
  {
    const torch::NoGradGuard no_grad;
    linear->weight[2][3] = INFINITY;
  }
  EXPECT_ERROR(store_as(model, {"int8", 0}), "proj.weight: int8 weights: an entry is not finite");
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
