// The laws of design.md for every registered mixer and each of its trial options. A mixer's author writes none of this:
// a mixer declares what it is by its class and its methods, and the tests read that.
#include <gtest/gtest.h>

#include <filesystem>

#include "io/toml.h"
#include "mixers/mixer.h"
#include "ops/fused.h"
#include "ops/linear.h"
#include "support/mixer_trials.h"

namespace seqloom {
namespace {

constexpr int64_t kBatch = 2, kTokens = 37;

class Laws : public testing::TestWithParam<Trial> {
 protected:
  void SetUp() override {
    torch::manual_seed(7);
    mixer = make_trial(GetParam());
    causal = dynamic_cast<CausalMixer*>(mixer.get());
    if (causal != nullptr && !causal->causal()) causal = nullptr;
    scannable = causal != nullptr ? dynamic_cast<ScannableMixer*>(mixer.get()) : nullptr;
    x = torch::randn({kBatch, kTokens, kTrialWidth});
  }

  Tensor part(int64_t begin, int64_t end) const { return x.narrow(1, begin, end - begin); }

  /// What a mixer takes from a layer before it: some function of the tokens.
  Pass beside(const Tensor& tokens) const {
    Pass pass;
    for (const auto& name : mixer->takes()) pass.values[name] = tokens.sin();
    return pass;
  }
  Tensor forward(const Tensor& tokens) {
    Pass pass = beside(tokens);
    return mixer->forward(tokens, pass);
  }
  Tensor extend(const Tensor& tokens, Memory& memory) {
    Pass pass = beside(tokens);
    return causal->extend(tokens, memory, pass);
  }
  Memory read_all(const Tensor& tokens) {
    Memory memory = causal->empty_memory(tokens.size(0));
    extend(tokens, memory);
    return memory;
  }
  /// Of tokens begin .. end of x, which stand there.
  Summary summarize(int64_t begin, int64_t end) {
    Pass pass = beside(part(begin, end));
    pass.positions = torch::arange(begin, end).expand({kBatch, end - begin});
    return scannable->summarize(part(begin, end), pass);
  }

  std::shared_ptr<Mixer> mixer;
  CausalMixer* causal = nullptr;
  ScannableMixer* scannable = nullptr;
  Tensor x;
};

/// Within float32 rounding of sums of this size.
void expect_close(const Tensor& got, const Tensor& want, const char* what, double tolerance = 1e-4) {
  ASSERT_EQ(got.sizes(), want.sizes()) << what;
  if (want.numel() == 0) return;
  const double scale = 1 + want.abs().max().item<double>();
  const double error = (got.to(torch::kFloat64) - want.to(torch::kFloat64)).abs().max().item<double>();
  EXPECT_LE(error, tolerance * scale) << what;
}

void expect_same_memory(const Memory& got, const Memory& want, double tolerance = 1e-4) {
  EXPECT_EQ(got.tokens, want.tokens);
  const TensorMap a = got.flatten(), b = want.flatten();
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, tensor] : b) expect_close(a.at(name), tensor, name.c_str(), tolerance);
}

TEST_P(Laws, Split) {
  if (causal == nullptr) GTEST_SKIP() << "bidirectional: declared";
  const torch::NoGradGuard no_grad;
  const Tensor whole = forward(x);
  const Memory at_once = read_all(x);
  for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{17, 1, 2, 17}, {1, 1, 1, 34}, {36, 1}, {5, 32}}) {
    Memory memory = causal->empty_memory(kBatch);
    std::vector<Tensor> outputs;
    int64_t begin = 0;
    for (const int64_t size : sizes) {
      outputs.push_back(extend(part(begin, begin + size), memory));
      begin += size;
    }
    expect_close(torch::cat(outputs, 1), whole, "split outputs");
    expect_same_memory(memory, at_once);
  }
}

TEST_P(Laws, TokenByToken) {
  if (causal == nullptr) GTEST_SKIP() << "bidirectional: declared";
  const torch::NoGradGuard no_grad;
  Memory memory = causal->empty_memory(kBatch);
  std::vector<Tensor> outputs;
  for (int64_t t = 0; t < kTokens; ++t) outputs.push_back(extend(part(t, t + 1), memory));
  expect_close(torch::cat(outputs, 1), forward(x), "streamed outputs");
}

TEST_P(Laws, Causality) {
  if (causal == nullptr) GTEST_SKIP() << "bidirectional: declared";
  const torch::NoGradGuard no_grad;
  Tensor other = x.clone();
  other.narrow(1, 20, kTokens - 20).normal_();
  // equal up to the order of summation, which may follow the values' strength of decay
  expect_close(forward(other).narrow(1, 0, 20), forward(x).narrow(1, 0, 20), "outputs before the change", 1e-5);
}

TEST_P(Laws, Combine) {
  if (scannable == nullptr) GTEST_SKIP() << "has no monoid: declared";
  const torch::NoGradGuard no_grad;
  // pieces shorter than a convolution's window as well
  for (const auto& [i, j] : {std::pair<int64_t, int64_t>{15, 26}, {1, 2}, {2, 3}, {20, 21}, {35, 36}}) {
    const Summary a = summarize(0, i), b = summarize(i, j), c = summarize(j, kTokens), whole = summarize(0, kTokens);
    const Summary left = scannable->combine(scannable->combine(a, b), c);
    const Summary right = scannable->combine(a, scannable->combine(b, c));
    expect_same_memory(left, right);
    expect_same_memory(left, whole);
    expect_same_memory(scannable->combine(scannable->identity(kBatch), b), b, 0);
    expect_same_memory(scannable->combine(b, scannable->identity(kBatch)), b, 0);

    Memory memory = read_all(part(0, i));
    scannable->apply(b, memory);
    scannable->apply(c, memory);
    expect_same_memory(memory, read_all(x));
    Memory from_nothing = causal->empty_memory(kBatch);
    scannable->apply(whole, from_nothing);
    expect_same_memory(from_nothing, read_all(x));
  }
}

TEST_P(Laws, AStateOfFixedSizeHoldsNoMoreThanItself) {
  if (causal == nullptr) GTEST_SKIP() << "bidirectional: declared";
  const torch::NoGradGuard no_grad;
  const Memory memory = read_all(x);
  const TensorMap empty = causal->empty_memory(kBatch).flatten();
  for (const auto& [name, tensor] : memory.flatten()) {
    const auto first = empty.find(name);
    if (first == empty.end() || first->second.sizes() != tensor.sizes()) continue;  // it grows
    EXPECT_LE(tensor.storage().nbytes(), 2 * tensor.numel() * tensor.element_size()) << name;
  }
}

TEST_P(Laws, Snapshot) {
  if (causal == nullptr) GTEST_SKIP() << "bidirectional: declared";
  const torch::NoGradGuard no_grad;
  const std::string path =
      (std::filesystem::temp_directory_path() / fmt::format("seqloom_laws_{}.safetensors", getpid())).string();
  Memory memory = read_all(part(0, 20));
  save_memory(path, memory, {});
  Memory loaded = load_memory(path, causal->empty_memory(kBatch));
  std::filesystem::remove(path);
  Memory forked = memory.clone();
  const Tensor expected = extend(part(20, kTokens), memory);
  EXPECT_TRUE(extend(part(20, kTokens), loaded).equal(expected)) << "restored stream differs";
  EXPECT_TRUE(extend(part(20, kTokens), forked).equal(expected)) << "forked stream differs";
}

TEST_P(Laws, Rows) {
  if (causal == nullptr) GTEST_SKIP() << "bidirectional: declared";
  const torch::NoGradGuard no_grad;
  Memory both = read_all(part(0, 20));
  Memory swapped = both.select_rows(torch::tensor({1, 0, 1}));
  const Tensor y = extend(part(20, kTokens), both);
  const Tensor rows = torch::tensor({1, 0, 1});
  expect_close(extend(part(20, kTokens).index_select(0, rows), swapped), y.index_select(0, rows), "selected rows",
               1e-5);
}

TEST_P(Laws, GradientOfReference) {
  // In float64, where every op takes its plain reference: analytic against central differences along random directions.
  mixer->to(torch::kFloat64);
  Tensor input = torch::randn({kBatch, 9, kTrialWidth}, torch::kFloat64).requires_grad_(true);
  const Tensor cotangent = torch::randn({kBatch, 9, kTrialWidth}, torch::kFloat64);
  const auto value = [&] { return (forward(input) * cotangent).sum(); };
  std::vector<Tensor> leaves = mixer->parameters();
  leaves.push_back(input);
  const auto gradients = torch::autograd::grad({value()}, leaves, {}, false, false, /*allow_unused=*/true);
  const torch::NoGradGuard no_grad;
  for (size_t i = 0; i < leaves.size(); ++i) {
    const Tensor direction = torch::randn_like(leaves[i]);
    const double step = 1e-6;
    leaves[i].add_(direction, step);
    const double above = value().item<double>();
    leaves[i].sub_(direction, 2 * step);
    const double below = value().item<double>();
    leaves[i].add_(direction, step);
    const double numeric = (above - below) / (2 * step);
    const double analytic = gradients[i].defined() ? (gradients[i] * direction).sum().item<double>() : 0;
    EXPECT_NEAR(analytic, numeric, 1e-5 * (1 + std::abs(numeric))) << "leaf " << i << " " << leaves[i].sizes();
  }
}

TEST_P(Laws, GradientOfFusedKernels) {
  Tensor input = x.clone().requires_grad_(true);
  const Tensor cotangent = torch::randn_like(x);
  std::vector<Tensor> leaves = mixer->parameters();
  leaves.push_back(input);
  const auto gradients = [&](bool fused) {
    ops::set_fused_enabled(fused);
    const auto result = torch::autograd::grad({(forward(input) * cotangent).sum()}, leaves, {}, false, false, true);
    ops::set_fused_enabled(true);
    return result;
  };
  const auto fused = gradients(true), plain = gradients(false);
  for (size_t i = 0; i < leaves.size(); ++i) {
    if (plain[i].defined()) expect_close(fused[i], plain[i], "gradient", 2e-4);
  }
}

TEST_P(Laws, GradientThroughSplit) {
  if (causal == nullptr) GTEST_SKIP() << "bidirectional: declared";
  Tensor input = x.clone().requires_grad_(true);
  const Tensor cotangent = torch::randn_like(x);
  const Tensor whole = torch::autograd::grad({(forward(input) * cotangent).sum()}, {input})[0];
  Memory memory = causal->empty_memory(kBatch);
  const Tensor first = extend(input.narrow(1, 0, 14), memory);
  const Tensor second = extend(input.narrow(1, 14, kTokens - 14), memory);
  const Tensor split = torch::autograd::grad({(torch::cat({first, second}, 1) * cotangent).sum()}, {input})[0];
  expect_close(split, whole, "gradient through the memory", 2e-4);
}

TEST_P(Laws, Layout) {
  const torch::NoGradGuard no_grad;
  const std::vector<int64_t> lengths = {kTokens, 11, 1, 24};
  std::vector<Tensor> rows;
  for (const int64_t length : lengths) rows.push_back(torch::randn({1, length, kTrialWidth}));
  std::vector<Tensor> alone;
  for (const auto& row : rows) alone.push_back(forward(row));

  Tensor padded = torch::randn({4, kTokens, kTrialWidth});  // padding holds rubbish
  for (size_t r = 0; r < rows.size(); ++r) padded[static_cast<int64_t>(r)].narrow(0, 0, lengths[r]).copy_(rows[r][0]);
  Pass pass = beside(padded), packed_pass = beside(torch::cat(rows, 1));
  pass.layout = Layout::padded(torch::tensor(lengths));
  const Tensor y = mixer->forward(padded, pass);

  Tensor offsets = torch::zeros({5}, torch::kInt64);
  offsets.narrow(0, 1, 4).copy_(torch::tensor(lengths).cumsum(0));
  packed_pass.layout = Layout::packed(offsets);
  const Tensor packed = mixer->forward(torch::cat(rows, 1), packed_pass);
  for (size_t r = 0; r < rows.size(); ++r) {
    const auto row = static_cast<int64_t>(r);
    expect_close(y[row].narrow(0, 0, lengths[r]), alone[r][0], "padded row");
    expect_close(packed[0].narrow(0, offsets[row].item<int64_t>(), lengths[r]), alone[r][0], "packed row");
  }
}

/// Each row reads its real tokens as if it stood alone, wherever padding stands among them and in whatever chunks they
/// come: a batch of prompts of several lengths goes on as its rows would, told where its tokens stand or not.
TEST_P(Laws, PaddingLeavesNoTrace) {
  if (causal == nullptr) GTEST_SKIP() << "bidirectional: declared";
  const torch::NoGradGuard no_grad;
  for (const bool told : {false, true}) {
    SCOPED_TRACE(told ? "positions given" : "positions counted");
    Tensor keep = torch::rand({kBatch, kTokens}) < 0.6;
    keep.index_put_({0, torch::indexing::Slice(9, 12)}, false);   // a row without a token in one chunk
    keep.index_put_({1, torch::indexing::Slice(0, 8)}, false);    // padding on the left,
    keep.index_put_({1, torch::indexing::Slice(20, 28)}, false);  // on the right of a chunk,
    keep.narrow(1, 28, kTokens - 28).fill_(true);                 // and none at all
    Memory memory = causal->empty_memory(kBatch);
    std::vector<Memory> alone;
    for (int64_t row = 0; row < kBatch; ++row) alone.push_back(causal->empty_memory(1));
    int64_t begin = 0;
    for (const int64_t end : {9, 10, 12, 28, 29, 37}) {
      Pass pass = beside(part(begin, end));
      if (told) pass.positions = (keep.cumsum(1) - 1).narrow(1, begin, end - begin).clamp_min(0);
      const Tensor kept = keep.narrow(1, begin, end - begin);
      if (begin < 28) pass.layout = Layout::masked(kept);
      const Tensor y = causal->extend(part(begin, end), memory, pass);
      for (int64_t row = 0; row < kBatch; ++row) {
        const Tensor real = part(begin, end)[row].index({kept[row]}).unsqueeze(0);
        if (real.size(1) == 0) continue;
        const Tensor want = extend(real, alone[static_cast<size_t>(row)]);
        expect_close(y[row].index({kept[row]}), want[0], "real tokens among padding");
      }
      begin = end;
    }
    EXPECT_TRUE(memory.counts(x).equal(keep.sum(1))) << "tokens that each row has read";
  }
}

/// One step of many streams, each at a position of its own, is one more token of each alone. What a stream gets is the
/// same, to the bit, whoever stands beside it; a memory that stands in neighbouring places reads its tokens in order.
TEST_P(Laws, Step) {
  if (causal == nullptr) GTEST_SKIP() << "bidirectional: declared";
  const torch::NoGradGuard no_grad;
  const std::vector<int64_t> read = {0, 1, 11, 4, 20};
  std::vector<Memory> alone, together, single;
  for (const int64_t count : read) {
    alone.push_back(causal->empty_memory(1));
    if (count > 0) {
      const Tensor before = torch::randn({1, count, kTrialWidth});
      extend(before, alone.back());
    }
    together.push_back(alone.back().clone());
    single.push_back(alone.back().clone());
  }
  // the last place twice: its memory reads two tokens
  std::vector<Memory*> streams;
  for (Memory& memory : together) streams.push_back(&memory);
  streams.push_back(&together.back());
  const auto places = static_cast<int64_t>(streams.size());
  const auto step = [&](const Tensor& tokens, at::ArrayRef<Memory*> memories) {
    Pass pass = beside(tokens.unsqueeze(1));
    return causal->step(tokens, memories, pass);
  };
  for (int turn = 0; turn < 9; ++turn) {
    const Tensor tokens = torch::randn({places, kTrialWidth});
    const Tensor y = step(tokens, streams);
    for (int64_t i = 0; i < places; ++i) {
      const auto at = static_cast<size_t>(std::min<int64_t>(i, places - 2));
      const Tensor own = tokens.narrow(0, i, 1);
      expect_close(y[i], extend(own.unsqueeze(1), alone[at])[0][0], "step against extend");
      Memory* memory = &single[at];
      EXPECT_TRUE(step(own, memory)[0].equal(y[i])) << "a stream's output depends on the others";
    }
  }
  for (size_t i = 0; i < alone.size(); ++i) {
    expect_same_memory(together[i], alone[i]);
    for (const auto& [name, tensor] : together[i].flatten()) {
      EXPECT_TRUE(tensor.equal(single[i].flatten().at(name))) << name << " depends on the others";
    }
  }
}

TEST_P(Laws, Matrix) {
  const torch::NoGradGuard no_grad;
  const auto form = mixer->matrix(x);
  if (!form) GTEST_SKIP() << "has no matrix form: declared";
  ASSERT_EQ(form->matrix.dim(), 4);
  EXPECT_EQ(form->matrix.size(2), kTokens);
  EXPECT_EQ(form->matrix.size(3), kTokens);
  expect_close(form->finish(torch::matmul(form->matrix, form->values)), forward(x), "matrix @ values");
  if (causal != nullptr) {
    EXPECT_EQ(form->matrix.triu(1).abs().max().item<double>(), 0) << "a causal mixer's matrix is lower triangular";
  }
}

TEST_P(Laws, Types) {
  const torch::NoGradGuard no_grad;
  const Tensor exact = forward(x);
  mixer->to(torch::kBFloat16);
  const Tensor rough = forward(x.to(torch::kBFloat16));
  EXPECT_EQ(rough.scalar_type(), torch::kBFloat16);
  // The stated distance: 5 % of the outputs' root mean square (8 bits of mantissa through a few products).
  const double distance = (rough.to(torch::kFloat32) - exact).square().mean().sqrt().item<double>();
  EXPECT_LE(distance, 0.05 * exact.square().mean().sqrt().item<double>() + 1e-3);
  if (causal == nullptr) return;
  Memory memory = causal->empty_memory(kBatch);
  extend(x.to(torch::kBFloat16), memory);
  for (const auto& [name, tensor] : memory.flatten()) {
    if (tensor.is_floating_point()) {
      EXPECT_EQ(tensor.scalar_type(), torch::kFloat32) << name;
    }
  }
}

/// A mixer whose matrices are kept in fewer bytes is the mixer of those matrices in float32. How far they are from what
/// they were made of is for LinearImpl's tests: a norm of small sums may turn any difference into a large one.
TEST_P(Laws, WeightFormats) {
  const torch::NoGradGuard no_grad;
  for (const WeightFormat& format : {WeightFormat{"int8", 0}, {"int8", 8}, {"bfloat16", 0}}) {
    SetUp();
    store_as(*mixer, format);
    const Tensor whole = forward(x);
    EXPECT_EQ(whole.scalar_type(), torch::kFloat32);
    Tensor streamed;
    if (causal != nullptr) {
      Memory memory = causal->empty_memory(kBatch);
      std::vector<Tensor> outputs;
      for (int64_t t = 0; t < kTokens; ++t) outputs.push_back(extend(part(t, t + 1), memory));
      streamed = torch::cat(outputs, 1);
    }
    std::map<std::string, Tensor> kept;
    for (const auto& module : mixer->named_modules()) {
      const auto* linear = dynamic_cast<LinearImpl*>(module.value().get());
      if (linear) kept[module.key()] = ops::dense_weight(linear->weight, linear->scale, torch::kFloat32);
    }
    SetUp();  // the same mixer anew, with those matrices
    for (const auto& module : mixer->named_modules()) {
      auto* linear = dynamic_cast<LinearImpl*>(module.value().get());
      if (linear) linear->weight.copy_(kept.at(module.key()));
    }
    const Tensor dense = forward(x);
    if (format.type == "int8") {
      expect_close(whole, dense, "int8");
      if (streamed.defined()) expect_close(streamed, dense, "int8, streamed");
      continue;
    }
    // where many rows are multiplied, which some mixers do in a stream too, these are rounded to bfloat16 before
    const double bound = 0.05 * dense.square().mean().sqrt().item<double>() + 1e-3;
    for (const Tensor& y : {whole, streamed.defined() ? streamed : whole}) {
      EXPECT_LE((y - dense).square().mean().sqrt().item<double>(), bound);
    }
  }
}

TEST_P(Laws, WrongShapesAreRefused) {
  EXPECT_THROW(mixer->forward(torch::randn({kBatch, 0, kTrialWidth})), UsageError);
  EXPECT_THROW(mixer->forward(torch::randn({kBatch, 3, kTrialWidth + 1})), UsageError);
}

INSTANTIATE_TEST_SUITE_P(Registry, Laws, testing::ValuesIn(all_trials()),
                         [](const testing::TestParamInfo<Trial>& info) { return info.param.test_name(); });

}  // namespace
}  // namespace seqloom
