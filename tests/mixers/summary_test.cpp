// Summaries beyond the law of combining: positions of one's own, rows that have read different numbers of tokens.
#include <gtest/gtest.h>

#include "io/toml.h"
#include "mixers/mixer.h"
#include "support/compare.h"

namespace seqloom {
namespace {

constexpr int64_t kWidth = 16;

std::shared_ptr<ScannableMixer> make(const std::string& kind, const std::string& options) {
  Config table = parse_toml(options, "test");
  table["kind"] = kind;
  return std::dynamic_pointer_cast<ScannableMixer>(make_mixer(kWidth, table, "test"));
}

Pass standing_at(const Tensor& positions) {
  Pass pass;
  pass.positions = positions;
  return pass;
}

TEST(Summary, OfKeysThatAreTurnedBeforeANonlinearityHasAFixedSize) {
  torch::manual_seed(8);
  const torch::NoGradGuard no_grad;
  const auto mixer = make("lawcat", "heads = 2\nrope = true");
  const Tensor x = torch::randn({2, 40, kWidth});
  const Tensor positions = torch::arange(40).mul(3).add(torch::tensor({{5}, {700}}));  // not consecutive, of each row
  const auto summary = [&](int64_t begin, int64_t end) {
    return mixer->summarize(x.narrow(1, begin, end - begin), standing_at(positions.narrow(1, begin, end - begin)));
  };
  for (const auto& [name, tensor] : summary(0, 5).flatten()) {
    EXPECT_EQ(summary(0, 40).flatten().at(name).sizes(), tensor.sizes()) << name;
  }
  Memory read = mixer->empty_memory(2), applied = mixer->empty_memory(2);
  Pass pass = standing_at(positions);
  mixer->extend(x, read, pass);
  mixer->apply(mixer->combine(summary(0, 2), mixer->combine(summary(2, 4), summary(4, 40))), applied);
  for (const auto& [name, tensor] : read.flatten()) expect_near(applied.at(name), tensor, 1e-5, name);
}

TEST(Summary, AsksForWhatItCannotDoWithout) {
  const Tensor x = torch::randn({2, 6, kWidth});
  const auto lawcat = make("lawcat", "heads = 2\nrope = true");
  EXPECT_THROW(lawcat->summarize(x), UsageError);
  EXPECT_THROW(lawcat->summarize(x, standing_at(torch::arange(6))), UsageError);
  EXPECT_NO_THROW(make("lawcat", "heads = 2")->summarize(x));
  Pass padded;
  padded.layout = Layout::padded(torch::tensor({6, 3}));
  EXPECT_THROW(make("gla", "heads = 2")->summarize(x, padded), UsageError);
}

TEST(Summary, IsAppendedWhereEachRowStands) {
  torch::manual_seed(9);
  const torch::NoGradGuard no_grad;
  for (const auto& [kind, options] : {std::pair<const char*, const char*>{"retnet", "heads = 2"},
                                      {"nalaformer", "heads = 2"},
                                      {"attention", "heads = 2\nposition = 'rope'"},
                                      {"attention", "heads = 2\nposition = 'learned'\nwindow = 4"}}) {
    const auto mixer = make(kind, options);
    const Tensor x = torch::randn({2, 20, kWidth});
    Pass pass;
    pass.layout = Layout::padded(torch::tensor({9, 4}));
    Memory both = mixer->empty_memory(2);
    mixer->extend(x.narrow(1, 0, 9), both, pass);
    mixer->apply(mixer->summarize(x.narrow(1, 9, 7)), both);
    const Tensor y = mixer->extend(x.narrow(1, 16, 4), both);
    for (int64_t row = 0; row < 2; ++row) {
      const Tensor own = x.narrow(0, row, 1);
      const Tensor real = torch::cat({own.narrow(1, 0, row == 0 ? 9 : 4), own.narrow(1, 9, 11)}, 1);
      expect_near(y[row], mixer->forward(real)[0].narrow(0, real.size(1) - 4, 4), 1e-5, kind);
    }
  }
}

}  // namespace
}  // namespace seqloom
