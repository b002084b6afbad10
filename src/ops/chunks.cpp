#include "ops/chunks.h"

namespace seqloom::ops {

torch::Tensor to_chunks(const torch::Tensor& x, int64_t chunk) {
  const int64_t tokens = x.size(1), chunks = (tokens + chunk - 1) / chunk;
  torch::Tensor filled = x;
  if (chunks * chunk != tokens) {
    auto sizes = x.sizes().vec();
    sizes[1] = chunks * chunk - tokens;
    filled = torch::cat({x, torch::zeros(sizes, x.options())}, 1);
  }
  return filled.unflatten(1, {chunks, chunk}).movedim(3, 1);
}

torch::Tensor from_chunks(const torch::Tensor& o, int64_t tokens) {
  return o.flatten(2, 3).narrow(2, 0, tokens).transpose(1, 2);
}

std::pair<torch::Tensor, torch::Tensor> scan_chunk_states(const torch::Tensor& decay, const torch::Tensor& added,
                                                          const torch::Tensor& initial) {
  // unbind, not select: the backward of a select fills a tensor of the full size for every chunk
  const auto decays = decay.unbind(2), additions = added.unbind(2);
  std::vector<torch::Tensor> before;
  before.reserve(additions.size());
  torch::Tensor state = initial;
  for (size_t c = 0; c < additions.size(); ++c) {
    before.push_back(state);
    state = torch::addcmul(additions[c], decays[c], state);
  }
  return {torch::stack(before, 2), state};
}

}  // namespace seqloom::ops
