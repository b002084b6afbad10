#include "train/study_series.h"

#include <algorithm>

namespace seqloom {
namespace {

constexpr size_t kPointsOfCurve = 100;

/// Means of neighbouring losses: single steps are noise.
std::vector<std::pair<double, double>> smoothed(const std::vector<std::pair<int64_t, double>>& losses) {
  const size_t width = std::max<size_t>(1, (losses.size() + kPointsOfCurve - 1) / kPointsOfCurve);
  std::vector<std::pair<double, double>> points;
  for (size_t i = 0; i < losses.size(); i += width) {
    const size_t end = std::min(i + width, losses.size());
    double sum = 0;
    for (size_t j = i; j < end; ++j) sum += losses[j].second;
    points.emplace_back(losses[end - 1].first, sum / static_cast<double>(end - i));
  }
  return points;
}

}  // namespace

std::set<std::string> metric_names(const StudyResult& result) {
  std::set<std::string> names;
  for (const auto& variant : result.variants) {
    for (const auto& [name, value] : variant.metrics) names.insert(name);
  }
  return names;
}

std::optional<double> size_of_metric(const std::string& name) {
  const size_t at = name.find('@');
  if (at == std::string::npos) return std::nullopt;
  const std::string number = name.substr(at + 1);
  const bool plain = number.find_first_not_of("0123456789.") == std::string::npos && number.size() <= 15 &&
                     std::count(number.begin(), number.end(), '.') <= 1;
  if (!plain || number.find_first_of("0123456789") == std::string::npos) return std::nullopt;
  return std::stod(number);
}

std::string stem_of_metric(const std::string& name) {
  return size_of_metric(name) ? name.substr(0, name.find('@')) : name;
}

std::vector<std::string> sorted_metrics(const StudyResult& result) {
  const auto names = metric_names(result);
  std::vector<std::string> sorted(names.begin(), names.end());
  std::stable_sort(sorted.begin(), sorted.end(), [](const std::string& a, const std::string& b) {
    const auto key = [](const std::string& name) {
      return std::pair(stem_of_metric(name), size_of_metric(name).value_or(-1));
    };
    return key(a) < key(b);
  });
  return sorted;
}

std::vector<Series> loss_curves(const StudyResult& result) {
  return series_of(result, [](const VariantResult& variant, auto& points) { points = smoothed(variant.losses); });
}

std::map<std::string, std::vector<Series>> metric_curves(const StudyResult& result) {
  std::map<std::string, std::vector<Series>> all;
  for (const auto& name : metric_names(result)) {
    if (size_of_metric(name)) all.try_emplace(stem_of_metric(name));
  }
  for (auto& [stem, curves] : all) {
    curves = series_of(result, [&stem = stem](const VariantResult& variant, auto& points) {
      for (const auto& [name, value] : variant.metrics) {
        const auto size = size_of_metric(name);
        if (size && stem_of_metric(name) == stem) points.emplace_back(*size, value);
      }
      std::sort(points.begin(), points.end());
    });
  }
  return all;
}

}  // namespace seqloom
