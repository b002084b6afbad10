#include "blocks/nalaformer.h"
#include "conformance/module.h"
#include "mixers/nalaformer.h"

namespace seqloom::conformance {
namespace {

TensorMap block_case(Case& c) {
  const int64_t width = c.input("x").size(-1);
  Config table = c.config;
  NalaformerBlockOptions options;
  options.width = table.at("width").get<int64_t>();
  options.ffn_dim = table.at("ffn_dim").get<int64_t>();
  options.norm_eps = table.value("norm_eps", options.norm_eps);
  if (c.param.count("gamma_1") > 0) options.layerscale = 1;
  for (const char* of_the_block : {"d_model", "ffn_dim", "norm_eps", "layerscale"}) table.erase(of_the_block);
  const auto attention = mixers().get("nalaformer").make(width, Nalaformer::from_case(table, {}), "block.nalaformer");
  NalaformerBlock block(width, options, attention);
  fill_module(c, block);
  Pass pass;
  return {{"y", block.forward(c.input("x"), pass)}};
}

[[maybe_unused]] const bool registered = adapters().add("block.nalaformer", block_case);

}  // namespace
}  // namespace seqloom::conformance
