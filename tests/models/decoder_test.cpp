#include "models/decoder.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "io/toml.h"
#include "support/compare.h"

namespace seqloom {
namespace {

std::shared_ptr<Decoder> decoder(const std::string& options) {
  torch::manual_seed(1);
  return std::make_shared<Decoder>(32, parse_toml(options, "test"), "test: model");
}

const std::string kLayers =
    "layers = [{ repeat = 2, mixer = { kind = 'mamba', state = 4 } }, { mixer = { kind = 'attention', heads = 2 }, "
    "channel = { "
    "kind = 'mlp', expand = 2 } }]\n";

Tensor ids(int64_t rows, int64_t tokens) {
  return torch::randint(32, {rows, tokens}, torch::kInt64);
}

TEST(DecoderModel, StreamsAsItTrainsUnderEveryOption) {
  for (const std::string more : {"", "tied = false\n", "position = 'learned'\n", "position = 'sinusoidal'\n",
                                 "norm = 'layer'\n", "residual = 'post'\nnorm = 'layer'\n"}) {
    const auto model = decoder("width = 16\n" + more + kLayers);
    const torch::NoGradGuard no_grad;
    const Tensor tokens = ids(2, 20);
    Pass pass;
    const Tensor whole = model->hidden(tokens, pass);
    Memory memory = model->empty_memory(2);
    const Tensor first = model->extend(tokens.narrow(1, 0, 13), memory),
                 second = model->extend(tokens.narrow(1, 13, 7), memory);
    expect_near(torch::cat({first, second}, 1), whole, 1e-4, more);
    EXPECT_EQ(memory.tokens, 20);
  }
}

TEST(DecoderModel, AConvolutionBeforeAMixerStreamsAndKeepsRowsApart) {
  const auto model = decoder("width = 16\nlayers = [{ conv = 3, mixer = { kind = 'linear_attention', heads = 2 } }]\n");
  const torch::NoGradGuard no_grad;
  const Tensor rows = ids(2, 9);
  Pass pass;
  const Tensor whole = model->hidden(rows, pass);
  Memory memory = model->empty_memory(2);
  std::vector<Tensor> streamed;
  for (int64_t t = 0; t < 9; ++t) streamed.push_back(model->extend(rows.narrow(1, t, 1), memory));
  expect_near(torch::cat(streamed, 1), whole, 1e-5, "streamed");
  Pass packed;
  packed.layout = Layout::packed(torch::tensor({0, 9, 18}, torch::kInt64));
  expect_near(model->hidden(rows.reshape({1, 18}), packed).view({2, 9, 16}), whole, 1e-5, "packed");
}

TEST(DecoderModel, CheckpointedActivationsGiveTheSameGradients) {
  const auto model = decoder("width = 16\n" + kLayers);
  const Tensor tokens = ids(2, 12);
  const auto gradients = [&](bool checkpointing) {
    model->set_checkpointing(checkpointing);
    model->zero_grad();
    Pass pass;
    model->logits(model->hidden(tokens, pass)).square().mean().backward();
    std::vector<Tensor> all;
    for (const auto& parameter : model->parameters()) all.push_back(parameter.grad().clone());
    return all;
  };
  const auto kept = gradients(false), recomputed = gradients(true);
  for (size_t i = 0; i < kept.size(); ++i) expect_near(recomputed[i], kept[i], 1e-6, "gradient " + std::to_string(i));
}

TEST(DecoderModel, CountsLayersAndExemptsVectorsFromDecay) {
  const auto model = decoder("width = 16\n" + kLayers);
  EXPECT_EQ(model->named_children()["layers"]->children().size(), 3U);
  for (const auto& parameter : model->without_weight_decay()) {
    EXPECT_TRUE(parameter.dim() < 2 || parameter.size(1) == 4) << parameter.sizes();  // A_log [E, 4]
  }
}

TEST(DecoderModel, RefusesWhatItCannotDo) {
  EXPECT_THROW(decoder("width = 16\n"), UsageError);
  EXPECT_THROW(decoder("width = 16\nlayers = [{ mixer = { kind = 'none' } }]"), UsageError);
  EXPECT_THROW(decoder("width = 16\nlayers = [{ channel = { kind = 'mlp' } }]"), UsageError);
  const auto model = decoder("width = 16\nposition = 'learned'\nmax_length = 8\n" + kLayers);
  Pass pass;
  EXPECT_THROW(model->hidden(ids(1, 9), pass), UsageError);
  EXPECT_THROW(model->hidden(torch::full({1, 3}, 32, torch::kInt64), pass), UsageError);
  EXPECT_THROW(model->hidden(torch::zeros({1, 0}, torch::kInt64), pass), UsageError);
  const auto bidirectional = decoder("width = 16\nlayers = [{ mixer = { kind = 'attention', causal = false } }]");
  EXPECT_THROW(bidirectional->empty_memory(1), UsageError);
}

}  // namespace
}  // namespace seqloom
