#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "train/chart.h"
#include "train/study.h"

namespace seqloom {

/// The names of all metrics that some variant has.
std::set<std::string> metric_names(const StudyResult& result);
/// The same in the order of a reader: by name, NAME@4 before NAME@16.
std::vector<std::string> sorted_metrics(const StudyResult& result);

/// N of a metric NAME@N, nothing for other names.
std::optional<double> size_of_metric(const std::string& name);

/// NAME of a metric NAME@N, and any other name as it is.
std::string stem_of_metric(const std::string& name);

/// A series for each variant, of the points that `add` gives it.
template <typename Add>
std::vector<Series> series_of(const StudyResult& result, Add add) {
  std::vector<Series> all;
  for (const auto& variant : result.variants) {
    all.push_back({variant.name, {}});
    add(variant, all.back().points);
  }
  return all;
}

/// Training losses over steps, smoothed.
std::vector<Series> loss_curves(const StudyResult& result);

/// For each NAME of metrics NAME@N, the curves over N.
std::map<std::string, std::vector<Series>> metric_curves(const StudyResult& result);

}  // namespace seqloom
