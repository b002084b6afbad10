// Titans, OmegaNet and ATLAS beyond the laws: padding anywhere in a stream, broken states, refused options.
#include "mixers/deep_memory.h"

#include <gtest/gtest.h>

#include <limits>

#include "io/toml.h"
#include "support/compare.h"

namespace seqloom {
namespace {

std::shared_ptr<CausalMixer> make(const std::string& kind, const std::string& options) {
  Config table = parse_toml(options, "test");
  table["kind"] = kind;
  return std::dynamic_pointer_cast<CausalMixer>(make_mixer(8, table, "test"));
}

Pass masked(const Tensor& keep) {
  Pass pass;
  pass.layout = Layout::masked(keep);
  return pass;
}

TEST(DeepMemory, PaddingAnywhereInAStreamLeavesNoTrace) {
  torch::manual_seed(5);
  const torch::NoGradGuard no_grad;
  for (const char* kind : {"titans", "omeganet", "atlas"}) {
    const auto mixer = make(kind, "heads = 2\nchunk = 4\nwindow = 3\nconv_kernel = 3");
    const Tensor x = torch::randn({2, 23, 8}), keep = torch::rand({2, 23}) < 0.6;
    Memory stream = mixer->empty_memory(2);
    std::vector<Tensor> outputs;
    int64_t begin = 0;
    for (const int64_t size : {5, 1, 9, 8}) {  // rows come to be at different places in their chunks
      Pass pass = masked(keep.narrow(1, begin, size));
      outputs.push_back(mixer->extend(x.narrow(1, begin, size), stream, pass));
      begin += size;
    }
    const Tensor y = torch::cat(outputs, 1);
    for (int64_t b = 0; b < 2; ++b) {
      const Tensor real = keep[b].nonzero().squeeze(1);
      Memory alone = mixer->empty_memory(1);
      const Tensor want = mixer->extend(x.narrow(0, b, 1).index_select(1, real), alone);
      expect_near(y[b].index_select(0, real), want[0], 1e-4, kind);
      for (const auto& [name, tensor] : alone.flatten()) {
        expect_near(stream.at(name)[b], tensor[0], 1e-4, name);
      }
    }
  }
}

TEST(DeepMemory, AStateThatIsNotFiniteNamesTheToken) {
  const auto mixer = make("titans", "heads = 2\nchunk = 8");
  Tensor x = torch::randn({1, 20, 8});
  Memory memory = mixer->empty_memory(1);
  mixer->extend(x, memory);
  x[0][11].fill_(std::numeric_limits<double>::infinity());
  try {
    mixer->extend(x, memory);
    FAIL() << "not refused";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("token 31:"), std::string::npos) << error.what();
  }
}

TEST(DeepMemory, RefusedOptions) {
  EXPECT_THROW(make("titans", "feature_map = 'full'"), UsageError);  // residual of another width
  EXPECT_THROW(make("titans", "heads = 1\ndim_head = 64\nresidual = false\nfeature_map = 'full'\npoly_degree = 3"),
               UsageError);
  for (const char* option : {"chunk = 0", "window = 0", "poly_degree = 0", "memory_depth = 0", "optimizer = 'adam'"}) {
    EXPECT_THROW(make("atlas", option), UsageError) << option;
  }
}

}  // namespace
}  // namespace seqloom
