#include "mixers/caching.h"

#include <algorithm>
#include <limits>

namespace seqloom {

using torch::Tensor;

namespace {

/// The rank of each entry [.., N] bool among those that are filled, 1 for the last.
Tensor newest_first(const Tensor& filled) {
  return filled.flip({-1}).cumsum(-1).flip({-1});
}

}  // namespace

void CachingOptions::describe(Fields& f) {
  f.add("aggregate", aggregate,
        "what is mixed: plain sum, mean or gated sum of reads, the memories themselves, the best few reads")
      .one_of({"residual", "mean", "grm", "soup", "ssc"});
  f.add("segmentation", segmentation, "segments of one length, or powers of two that add up to T (not in a stream)")
      .one_of({"constant", "logarithmic"});
  f.add("segment", segment, "tokens of a segment").at_least(1);
  f.add("segment_init", segment_init, "a segment begins with the initial memory or with the last cache")
      .one_of({"restart", "checkpoint"});
  f.add("context", context, "what a segment is known by: the mean or the sum of its keys")
      .one_of({"mean_key", "sum_key"});
  f.add("top_k", top_k, "ssc: cached memories that a token reads").at_least(1);
  f.add("temperature", temperature, "divides the scores").greater_than(0);
  f.add("max_caches", max_caches, "older caches are dropped; none: never").at_least(1);
  f.add("max_cache_mib", max_cache_mib, "refuse to cache more than this").at_least(1);
}

Tensor CachingOptions::pooled(const Tensor& sums, const Tensor& counts) const {
  return context == "sum_key" ? sums : sums / counts.clamp_min(1).unsqueeze(-1).to(sums.scalar_type());
}

std::vector<int64_t> CachingOptions::cut(int64_t tokens, int64_t phase) const {
  std::vector<int64_t> sizes;
  if (segmentation == "logarithmic") {
    for (int64_t power = int64_t{1} << 62; power > 0; power /= 2) {
      if ((tokens & power) != 0) sizes.push_back(power);
    }
    return sizes;
  }
  for (int64_t left = tokens, size = segment - phase; left > 0; size = segment) {
    sizes.push_back(std::min(left, size));
    left -= sizes.back();
  }
  return sizes;
}

void CachingOptions::check_segmentation(int64_t read, bool ragged) const {
  if (segmentation != "logarithmic") return;
  if (read > 0) {
    misuse(
        "memory_caching: segmentation = \"logarithmic\" depends on the length of the whole sequence, which a stream "
        "does not know; use segmentation = \"constant\" to go on after {} tokens",
        read);
  }
  if (ragged) {
    misuse(
        "memory_caching: segmentation = \"logarithmic\" cuts rows of different lengths in different places; give "
        "rows of one length, without padding, or use segmentation = \"constant\"");
  }
}

Tensor CachingOptions::visible(const Tensor& count, int64_t before, int64_t segments) const {
  const Tensor limit = torch::arange(segments, count.options()).unsqueeze(1) + before;          // [S, 1]
  const Tensor earlier = torch::arange(count.size(1), count.options()).unsqueeze(0).lt(limit);  // [S, N]
  const Tensor filled = count.gt(0).unsqueeze(1).logical_and(earlier.unsqueeze(0));
  if (!max_caches) return filled;
  return filled.logical_and(newest_first(filled).le(*max_caches));
}

std::pair<int64_t, int64_t> CachingOptions::in_use(const Tensor& count, int64_t running) const {
  Tensor used = count.gt(0);
  if (max_caches) used = used.logical_and(newest_first(used).le(*max_caches + running));
  const Tensor places = used.any(0).nonzero().squeeze(1);
  if (places.numel() == 0) return {0, 0};
  const auto first = places[0].item<int64_t>();
  return {first, places[-1].item<int64_t>() + 1 - first};
}

void CachingOptions::check_budget(int64_t caches, int64_t elements) const {
  const double mib = static_cast<double>(caches) * static_cast<double>(elements) * 4 / (1 << 20);
  if (mib > static_cast<double>(max_cache_mib)) {
    misuse(
        "memory_caching: {} caches would take {:.0f} MiB, above max_cache_mib = {}: choose a larger segment = {}, "
        "max_caches, or a larger budget",
        caches, mib, max_cache_mib, segment);
  }
}

Tensor memory_weights(const CachingOptions& options, const Tensor& scores, const Tensor& seen) {
  if (!options.has_gates()) {
    const Tensor each = seen.to(scores.scalar_type());
    return options.aggregate == "mean" ? each / each.sum(-1, /*keepdim=*/true) : each;
  }
  const auto hidden = [](const Tensor& s, const Tensor& shown) {
    return s.masked_fill(shown.logical_not(), -std::numeric_limits<double>::infinity());
  };
  Tensor masked = hidden(scores / options.temperature, seen);
  const int64_t caches = scores.size(-1) - 1;
  if (options.aggregate == "ssc" && caches > options.top_k) {
    const Tensor best = std::get<1>(masked.detach().narrow(-1, 0, caches).topk(options.top_k, -1));
    const Tensor kept = torch::zeros_like(masked, torch::kBool).scatter(-1, best, true);
    masked = hidden(masked, torch::cat({kept.narrow(-1, 0, caches), torch::ones_like(kept.narrow(-1, caches, 1))}, -1));
  }
  return masked.softmax(-1);
}

}  // namespace seqloom
