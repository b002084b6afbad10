#include "models/decoder.h"

#include <ATen/record_function.h>
#include <gtest/gtest.h>

#include <atomic>
#include <set>

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

/// A decoder of two layers of a mixer, with one of its trial options.
std::shared_ptr<Decoder> two_layers(const std::string& kind, size_t trial = 0) {
  Config table = parse_toml(mixers().get(kind).trials.at(trial), "test");
  table["kind"] = kind;
  torch::manual_seed(3);
  return std::make_shared<Decoder>(
      32, Config({{"width", 24}, {"layers", Config::array({{{"repeat", 2}, {"mixer", table}}})}}), "test: model");
}

/// Rows of several lengths, each with its target at every token.
struct Ragged {
  std::vector<Tensor> ids, targets;  // [1, T] each
  Tensor lengths, offsets;

  explicit Ragged(const std::vector<int64_t>& sizes) : lengths(torch::tensor(sizes)) {
    for (const int64_t size : sizes) {
      ids.push_back(::seqloom::ids(1, size));
      targets.push_back(::seqloom::ids(1, size));
    }
    offsets = torch::cat({torch::zeros({1}, torch::kInt64), lengths.cumsum(0)});
  }
  /// With `padding` behind the rows.
  Tensor padded(const std::vector<Tensor>& rows, int64_t padding) const {
    const int64_t longest = lengths.max().item<int64_t>();
    std::vector<Tensor> filled;
    for (const Tensor& row : rows) filled.push_back(torch::constant_pad_nd(row, {0, longest - row.size(1)}, padding));
    return torch::cat(filled, 0);
  }
};

/// Gradients of the sum of all tokens' losses; an undefined one is zero.
std::vector<Tensor> gradients(Decoder& model, const Tensor& ids, const Tensor& targets, const Layout& layout) {
  Pass pass;
  pass.layout = layout;
  const Tensor logits = model.logits(model.hidden(ids, pass)).flatten(0, 1);
  const Tensor loss = torch::cross_entropy_loss(logits, targets.flatten(), {}, at::Reduction::Sum, -100);
  const auto parameters = model.parameters();
  auto all = torch::autograd::grad({loss}, parameters, {}, false, false, /*allow_unused=*/true);
  for (size_t i = 0; i < all.size(); ++i) {
    if (!all[i].defined()) all[i] = torch::zeros_like(parameters[i]);
  }
  return all;
}

void expect_trains_alike(Decoder& model, const Ragged& rows) {
  const auto padded =
      gradients(model, rows.padded(rows.ids, 0), rows.padded(rows.targets, -100), Layout::padded(rows.lengths));
  const auto packed =
      gradients(model, torch::cat(rows.ids, 1), torch::cat(rows.targets, 1), Layout::packed(rows.offsets));
  std::vector<Tensor> alone = gradients(model, rows.ids[0], rows.targets[0], Layout());
  for (size_t r = 1; r < rows.ids.size(); ++r) {
    const auto more = gradients(model, rows.ids[r], rows.targets[r], Layout());
    for (size_t i = 0; i < alone.size(); ++i) alone[i] += more[i];
  }
  const auto names = model.named_parameters();
  for (size_t i = 0; i < alone.size(); ++i) {
    expect_near(padded[i], alone[i], 1e-4, names[i].key() + ", padded");
    expect_near(packed[i], alone[i], 1e-4, names[i].key() + ", packed");
  }
}

TEST(DecoderModel, ARaggedBatchTrainsTheSamePaddedPackedAndOneByOne) {
  for (const std::string& kind : mixers().names()) {
    for (size_t trial = 0; trial < mixers().get(kind).trials.size(); ++trial) {
      SCOPED_TRACE(kind + " " + std::to_string(trial));
      const auto model = two_layers(kind, trial);
      if (!model->mixer(0).takes().empty()) continue;  // it cannot be the first layer
      expect_trains_alike(*model, Ragged({37, 1, 12, 2, 21}));
    }
  }
}

TEST(DecoderModel, PackedRowsCountTheirPositionsAnew) {
  for (const std::string position : {"learned", "sinusoidal"}) {
    SCOPED_TRACE(position);
    // 20 positions are enough for rows of 20 tokens, however many there are
    expect_trains_alike(*decoder("width = 16\nmax_length = 20\nposition = '" + position + "'\n" + kLayers),
                        Ragged({3, 20, 11}));
  }
}

/// The most numbers of a tensor that any operation reads during `work`.
template <typename Work>
int64_t largest_operand(Work work) {
  static std::atomic<int64_t> largest;
  largest = 0;
  const auto seen = [](const at::RecordFunction& function) -> std::unique_ptr<at::ObserverContext> {
    for (const auto& input : function.inputs()) {
      if (input.isTensor() && input.toTensor().defined()) largest = std::max(largest.load(), input.toTensor().numel());
    }
    return nullptr;
  };
  const auto handle = at::addThreadLocalCallback(at::RecordFunctionCallback(seen).needsInputs(true));
  work();
  at::removeCallback(handle);
  return largest;
}

TEST(DecoderModel, NoPadTokenIsMultipliedWhereAMixerTakesPackedRows) {
  const torch::NoGradGuard no_grad;
  const Ragged rows({300, 1, 1, 2, 1, 1, 3, 1, 1, 1, 1, 1});
  const Tensor packed = torch::cat(rows.ids, 1), padded = rows.padded(rows.ids, 0);
  std::set<std::string> without_padding;
  for (const std::string& kind : mixers().names()) {
    const auto model = two_layers(kind);
    const auto largest = [&](const Tensor& ids, const Layout& layout) {
      return largest_operand([&] {
        Pass pass;
        pass.layout = layout;
        model->hidden(ids, pass);
      });
    };
    const int64_t with = largest(padded, Layout::padded(rows.lengths));
    EXPECT_GE(with, padded.numel() * model->width()) << "padding is seen where it is";
    if (largest(packed, Layout::packed(rows.offsets)) < with / 3) without_padding.insert(kind);
  }
  // chunks and segments of these are counted from a row's first token, in all rows at once
  const std::set<std::string> padded_kinds = {"atlas",  "longvq",     "memory_caching", "omeganet",
                                              "titans", "titans_mac", "titans_mag",     "titans_mal"};
  for (const std::string& kind : mixers().names()) {
    EXPECT_EQ(without_padding.count(kind), 1 - padded_kinds.count(kind)) << kind;
  }
}

TEST(CacheEvery, IsThePlainModelUpToItsFirstCacheAndStreams) {
  const torch::NoGradGuard no_grad;
  int cached = 0;
  for (const std::string& kind : mixers().names()) {
    SCOPED_TRACE(kind);
    const auto plain = two_layers(kind), model = two_layers(kind);
    try {
      model->cache_every(8);
    } catch (const UsageError& error) {
      EXPECT_EQ(std::string(error.what()).rfind("layer 1: ", 0), 0U) << error.what();
      continue;
    }
    ++cached;
    const Tensor tokens = ids(2, 21);
    const auto read = [&](Decoder& decoder, const std::vector<int64_t>& sizes) {
      Memory memory = decoder.empty_memory(2);
      std::vector<Tensor> outputs;
      int64_t begin = 0;
      for (const int64_t size : sizes) {
        outputs.push_back(decoder.extend(tokens.narrow(1, begin, size), memory));
        begin += size;
      }
      return torch::cat(outputs, 1);
    };
    const Tensor without = read(*plain, {21}), with = read(*model, {21});
    expect_near(with.narrow(1, 0, 8), without.narrow(1, 0, 8), 1e-4, "before the first cache");
    EXPECT_GT((with - without).abs().max().item<double>(), 1e-4) << "and not beyond it";
    expect_near(read(*model, {5, 1, 9, 1, 5}), with, 1e-4, "in pieces");
    Pass pass;
    expect_near(model->hidden(tokens, pass), with, 1e-4, "as trained");
  }
  EXPECT_GE(cached, 8);
}

TEST(CacheEvery, RefusesWhatHasNoMemoryOfFixedSizeAndLeavesTheModelAsItWas) {
  const auto model = decoder("width = 16\n" + kLayers);
  const torch::NoGradGuard no_grad;
  const Tensor tokens = ids(1, 9);
  Memory before = model->empty_memory(1), after = model->empty_memory(1);
  const Tensor y = model->extend(tokens, before);
  try {
    model->cache_every(4);
    FAIL() << "attention keeps all tokens";
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("layer 3: its memory grows with the tokens"), std::string::npos)
        << error.what();
  }
  EXPECT_TRUE(torch::equal(model->extend(tokens, after), y));
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
