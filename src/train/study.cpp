#include "train/study.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include <fmt/ranges.h>

#include "base/error.h"
#include "io/toml.h"

namespace seqloom {
namespace {

struct StudyOptions {
  std::string title, paper, about;
  void describe(Fields& f) {
    f.add("title", title, "what is compared");
    f.add("paper", paper, "whose claim it is");
    f.add("about", about, "the idea in plain words");
  }
};

std::vector<ClaimCheck> parse_checks(const Config& claim, const std::set<std::string>& variants,
                                     const std::string& where) {
  if (!claim.is_object() || claim.size() != 1 || !claim.contains("checks") || !claim["checks"].is_array()) {
    misuse("{}: expected checks = [ {{ metric = ..., variant = ..., at_least = ... }} ]", where);
  }
  std::vector<ClaimCheck> checks;
  for (size_t i = 0; i < claim["checks"].size(); ++i) {
    const std::string here = fmt::format("{}.checks.{}", where, i);
    auto check = read_options<ClaimCheck>(claim["checks"][i], here);
    if (check.metric.empty()) misuse("{}: it names no metric", here);
    if (check.variant.empty()) misuse("{}: it names no variant", here);
    for (const auto& name : {check.variant, check.beats}) {
      if (!name.empty() && variants.count(name) == 0) misuse("{}: there is no variant '{}'", here, name);
    }
    if (int(check.at_least.has_value()) + int(check.at_most.has_value()) + int(!check.beats.empty()) != 1) {
      misuse("{}: expected exactly one of at_least, at_most and beats", here);
    }
    checks.push_back(std::move(check));
  }
  return checks;
}

VariantResult train_variant(const StudyVariant& variant, const std::string& study, const std::string& out,
                            int64_t steps, const StudyObserver& observer, bool& less_is_better) {
  Config recipe = variant.recipe;
  if (steps > 0) recipe["train"]["steps"] = steps;
  Trainer trainer(recipe, study + ": " + variant.name, (std::filesystem::path(out) / variant.name).string(), false);
  less_is_better = trainer.task().less_is_better();
  VariantResult result;
  result.name = variant.name;
  for (const auto& parameter : trainer.task().model().parameters()) result.parameters += parameter.numel();
  double tokens = 0;
  TrainObserver watch;
  watch.on_step = [&](const StepReport& report) {
    result.losses.emplace_back(report.step, report.loss);
    result.seconds += report.seconds;
    tokens += report.seconds * report.tokens_per_second;
    observer.on_step(variant.name, report);
  };
  result.metrics = trainer.run(watch);
  result.tokens_per_second = tokens / result.seconds;
  return result;
}

double metric_of(const StudyResult& result, const std::string& variant, const std::string& metric) {
  for (const auto& one : result.variants) {
    if (one.name != variant) continue;
    const auto found = one.metrics.find(metric);
    if (found != one.metrics.end()) return found->second;
  }
  misuse("the claim asks for the metric '{}', which this task does not give", metric);
}

CheckResult judge(const ClaimCheck& check, const StudyResult& result) {
  CheckResult judged;
  judged.check = check;
  judged.value = metric_of(result, check.variant, check.metric);
  if (check.at_least) judged.holds = judged.value >= *check.at_least;
  if (check.at_most) judged.holds = judged.value <= *check.at_most;
  if (!check.beats.empty()) {
    judged.other = metric_of(result, check.beats, check.metric);
    const double lead = result.less_is_better ? *judged.other - judged.value : judged.value - *judged.other;
    judged.holds = lead >= check.by;
  }
  return judged;
}

}  // namespace

std::string ClaimCheck::text() const {
  if (at_least) return fmt::format("{} of {} is at least {:g}", metric, variant, *at_least);
  if (at_most) return fmt::format("{} of {} is at most {:g}", metric, variant, *at_most);
  return fmt::format("{} of {} beats {} by at least {:g}", metric, variant, beats, by);
}

Study parse_study(const Config& config, const std::string& name) {
  static const std::set<std::string> known = {"study", "variant", "claim", "task", "model", "train"};
  for (const auto& [key, value] : config.items()) {
    if (known.count(key) == 0)
      misuse("{}: there is no such key '{}'; a study has {}", name, key, fmt::join(known, ", "));
  }
  const auto options = read_options<StudyOptions>(config.value("study", Config::object()), name + ": study");
  Study study{name, options.title, options.paper, options.about, {}, {}};
  if (!config.contains("variant") || !config["variant"].is_array() || config["variant"].empty()) {
    misuse("{}: it has no [[variant]]; name at least one", name);
  }
  Config base = Config::object();
  for (const char* part : {"task", "model", "train"}) {
    if (config.contains(part)) base[part] = config[part];
  }
  std::set<std::string> names;
  for (size_t i = 0; i < config["variant"].size(); ++i) {
    Config overrides = config["variant"][i];
    const std::string where = fmt::format("{}: variant.{}", name, i);
    if (!overrides.is_object() || !overrides.contains("name") || !overrides["name"].is_string())
      misuse("{}: it has no name", where);
    const auto variant = overrides["name"].get<std::string>();
    const bool plain = !variant.empty() && std::all_of(variant.begin(), variant.end(), [](char c) {
      return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-';
    });
    if (!plain) misuse("{}: the name \"{}\" becomes a folder: use letters, digits, _ and -", where, variant);
    if (!names.insert(variant).second) misuse("{}: the name '{}' is taken", where, variant);
    overrides.erase("name");
    study.variants.push_back({variant, merge(base, overrides)});
  }
  if (config.contains("claim")) study.checks = parse_checks(config["claim"], names, name + ": claim");
  return study;
}

bool StudyResult::holds() const {
  return std::all_of(checks.begin(), checks.end(), [](const CheckResult& check) { return check.holds; });
}

Config StudyResult::to_json(const Study& study) const {
  Config all = Config::array(), judged_checks = Config::array();
  for (const auto& v : variants) {
    all.push_back({{"name", v.name},
                   {"parameters", v.parameters},
                   {"seconds", v.seconds},
                   {"tokens_per_second", v.tokens_per_second},
                   {"metrics", v.metrics}});
  }
  for (const auto& c : checks) {
    judged_checks.push_back({{"text", c.check.text()}, {"value", c.value}, {"holds", c.holds}});
    if (c.other) judged_checks.back()["other"] = *c.other;
  }
  return {{"study", study.name}, {"title", study.title},
          {"judged", judged},    {"holds", judged ? Config(holds()) : Config()},
          {"variants", all},     {"checks", judged_checks}};
}

StudyResult run_study(const Study& study, const std::string& out, int64_t steps, const StudyObserver& observer) {
  StudyResult result;
  result.judged = steps == 0;
  for (const auto& variant : study.variants) {
    result.variants.push_back(train_variant(variant, study.name, out, steps, observer, result.less_is_better));
    observer.on_variant(result.variants.back());
  }
  for (const auto& check : study.checks) result.checks.push_back(judge(check, result));
  return result;
}

}  // namespace seqloom
