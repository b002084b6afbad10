#include "train/study.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "base/error.h"
#include "io/json.h"
#include "io/toml.h"
#include "train/anatomy.h"
#include "train/distill.h"
#include "train/example.h"

namespace seqloom {
namespace {

constexpr const char* kRecipeParts[] = {"task", "model", "train", "distill"};
constexpr size_t kLongestName = 64;  // of a variant, which becomes a folder

struct StudyOptions {
  std::string title, paper, about;
  void describe(Fields& f) {
    f.add("title", title, "what is compared");
    f.add("paper", paper, "whose claim it is");
    f.add("about", about, "the idea in plain words");
  }
};

bool names_a_folder(const std::string& name) {
  return !name.empty() && name.size() <= kLongestName && std::all_of(name.begin(), name.end(), [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-';
  });
}

StudyVariant parse_variant(const Config& base, Config overrides, const std::string& where) {
  if (!overrides.is_object() || !overrides.contains("name") || !overrides["name"].is_string()) {
    misuse("{}.name is missing; expected a text", where);
  }
  const auto name = overrides["name"].get<std::string>();
  if (!names_a_folder(name)) {
    misuse("{}.name = \"{}\" becomes a folder: expected 1 to {} letters, digits, _ and -", where, printable(name),
           kLongestName);
  }
  overrides.erase("name");
  for (const auto& [key, value] : overrides.items()) {
    if (std::find(std::begin(kRecipeParts), std::end(kRecipeParts), key) == std::end(kRecipeParts)) {
      misuse("{}.{}: there is no such key; a variant has a name and keys of {}", where, printable(key),
             fmt::join(kRecipeParts, ", "));
    }
    if (!value.is_object()) misuse("{}.{}: expected a table", where, key);
  }
  return {name, merge(base, overrides)};
}

ClaimCheck parse_check(const Config& table, const std::set<std::string>& variants, const std::string& where) {
  auto check = read_options<ClaimCheck>(table, where);
  if (check.metric.empty()) misuse("{}.metric is missing", where);
  if (check.variant.empty()) misuse("{}.variant is missing", where);
  for (const auto& [key, name] : {std::pair{"variant", check.variant}, std::pair{"beats", check.beats}}) {
    if (!name.empty() && variants.count(name) == 0) {
      misuse("{}.{} = \"{}\": there is no such variant; there are {}", where, key, printable(name),
             fmt::join(variants, ", "));
    }
  }
  const int ways = static_cast<int>(check.at_least.has_value()) + static_cast<int>(check.at_most.has_value()) +
                   static_cast<int>(!check.beats.empty());
  if (ways != 1) misuse("{}: expected exactly one of at_least, at_most and beats", where);
  for (const char* more : {"by", "factor"}) {
    if (table.contains(more) && check.beats.empty()) misuse("{}.{}: it goes with beats", where, more);
  }
  return check;
}

std::vector<ClaimCheck> parse_claim(const Config& claim, const std::set<std::string>& variants,
                                    const std::string& where) {
  if (!claim.is_object() || claim.size() != 1 || !claim.contains("checks") || !claim["checks"].is_array()) {
    misuse("{}: expected checks = [ {{ metric = ..., variant = ..., at_least = ... }} ] and nothing else", where);
  }
  std::vector<ClaimCheck> checks;
  for (size_t i = 0; i < claim["checks"].size(); ++i) {
    checks.push_back(parse_check(claim["checks"][i], variants, fmt::format("{}.checks.{}", where, i)));
  }
  return checks;
}

/// Whether less of a metric is better. A task says so of its main metric alone.
bool less_is_better(const std::string& metric, const Task& task, const std::string& where) {
  const std::string main = task.main_metric();
  if (metric == main || metric.rfind(main + "@", 0) == 0) return task.less_is_better();
  if (metric == "loss" || metric == "perplexity" || metric == kTransferError) return true;
  misuse("{}.beats: nothing says whether less {} is better; use at_least or at_most, or the metric {}", where, metric,
         main);
}

/// Whether the teacher of variant `i` is an earlier variant of the study.
bool taught_by_variant(const Study& study, size_t i) {
  const Config teacher = study.variants[i].recipe.value("distill", Config::object()).value("teacher", Config());
  return std::any_of(study.variants.begin(), study.variants.begin() + static_cast<std::ptrdiff_t>(i),
                     [&](const StudyVariant& one) { return teacher == one.name; });
}

/// Variant `i` as it is trained: where an earlier one is its teacher, that one's run.
StudyVariant with_teacher(const Study& study, size_t i, const std::string& out) {
  StudyVariant variant = study.variants[i];
  if (taught_by_variant(study, i)) {
    Config& teacher = variant.recipe["distill"]["teacher"];
    teacher = (std::filesystem::path(out) / teacher.get<std::string>()).string();
  }
  return variant;
}

/// The recipe for a rehearsal, when no variant has been trained yet that could teach.
Config without_teacher(const Study& study, size_t i) {
  Config recipe = study.variants[i].recipe;
  if (taught_by_variant(study, i)) recipe.erase("distill");
  return recipe;
}

/// Builds and evaluates what `run_study` will train, so that no wrong recipe and no unknown metric comes to light only
/// after hours of training. Returns whether less is better, for each check.
std::vector<bool> rehearse(const Study& study) {
  std::vector<bool> less(study.checks.size());
  std::map<std::string, std::map<std::string, double>> metrics_of;  // by the task's table
  for (size_t k = 0; k < study.variants.size(); ++k) {
    const StudyVariant& variant = study.variants[k];
    const auto task = make_task(without_teacher(study, k), study.name + ": " + variant.name);
    read_options<TrainOptions>(variant.recipe.value("train", Config::object()),
                               study.name + ": " + variant.name + ": train");
    for (size_t i = 0; i < study.checks.size(); ++i) {
      const ClaimCheck& check = study.checks[i];
      if (check.variant != variant.name && check.beats != variant.name) continue;
      const std::string where = fmt::format("{}: claim.checks.{}", study.name, i);
      auto& of_task = metrics_of[variant.recipe["task"].dump()];
      if (of_task.empty()) {
        const torch::NoGradGuard no_grad;
        of_task = task->evaluate();
      }
      auto metrics = of_task;
      if (variant.recipe.contains("distill")) metrics[kTransferError] = 0;
      if (metrics.count(check.metric) == 0) {
        std::vector<std::string> names;
        for (const auto& [name, value] : metrics) names.push_back(name);
        misuse("{}.metric = \"{}\": {} gives no such metric; it gives {}", where, printable(check.metric), variant.name,
               fmt::join(names, ", "));
      }
      if (!check.beats.empty()) less[i] = less_is_better(check.metric, *task, where);
    }
  }
  return less;
}

/// What the report shows of a trained model besides its metrics.
void dissect(Task& task, VariantResult& result) {
  auto* decoder = dynamic_cast<Decoder*>(&task.model());
  const auto* has_example = dynamic_cast<const HasExample*>(&task);
  if (decoder == nullptr || has_example == nullptr) return;
  decoder->eval();
  const torch::Tensor ids = has_example->example();
  result.memory_bytes = stream_bytes(*decoder, ids);
  if (result.memory_bytes) result.memory_tokens = ids.size(1);
  result.pictures = mixing_pictures(*decoder, ids);
}

VariantResult train_variant(const StudyVariant& variant, const std::string& study, const std::string& out,
                            const StudyObserver& observer) {
  Trainer trainer(variant.recipe, study + ": " + variant.name, (std::filesystem::path(out) / variant.name).string(),
                  false);
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
  try {
    result.metrics = trainer.run(watch);
  } catch (const UsageError&) {
    throw;
  } catch (const Error& error) {
    fail("{}: {}: {}", study, variant.name, error.what());
  }
  if (result.seconds > 0) result.tokens_per_second = tokens / result.seconds;
  dissect(trainer.task(), result);
  return result;
}

double metric_of(const StudyResult& result, const std::string& variant, const std::string& metric) {
  const auto found = std::find_if(result.variants.begin(), result.variants.end(),
                                  [&](const VariantResult& one) { return one.name == variant; });
  return found->metrics.at(metric);  // both were seen in the rehearsal
}

CheckResult judge(const ClaimCheck& check, const StudyResult& result, bool less) {
  CheckResult judged;
  judged.check = check;
  judged.value = metric_of(result, check.variant, check.metric);
  if (check.at_least) judged.holds = judged.value >= *check.at_least;
  if (check.at_most) judged.holds = judged.value <= *check.at_most;
  if (!check.beats.empty()) {
    judged.other = metric_of(result, check.beats, check.metric);
    const double goal = *judged.other * check.factor.value_or(1);
    judged.holds = (less ? goal - judged.value : judged.value - goal) >= check.by;
  }
  return judged;
}

Config to_json(const VariantResult& variant) {
  Config losses = Config::array();
  for (const auto& [step, loss] : variant.losses) losses.push_back({step, loss});
  Config json = {{"name", variant.name},       {"parameters", variant.parameters},
                 {"seconds", variant.seconds}, {"tokens_per_second", variant.tokens_per_second},
                 {"metrics", variant.metrics}, {"losses", losses}};
  if (variant.memory_bytes) {
    json["memory_bytes"] = *variant.memory_bytes;
    json["memory_tokens"] = *variant.memory_tokens;
  }
  return json;
}

}  // namespace

std::string ClaimCheck::text() const {
  if (at_least) return fmt::format("{} of {} is at least {:g}", metric, variant, *at_least);
  if (at_most) return fmt::format("{} of {} is at most {:g}", metric, variant, *at_most);
  const std::string goal = factor ? fmt::format("{:g} times that of {}", *factor, beats) : beats;
  if (by == 0) return fmt::format("{} of {} is no worse than {}", metric, variant, goal);
  return fmt::format("{} of {} beats {} by at least {:g}", metric, variant, goal, by);
}

Study parse_study(const Config& config, const std::string& name) {
  static const std::vector<std::string> known = {"study", "task", "model", "train", "distill", "variant", "claim"};
  for (const auto& [key, value] : config.items()) {
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    misuse("{}: there is no such key '{}'; a study has {}", name, printable(key), fmt::join(known, ", "));
  }
  const auto options = read_options<StudyOptions>(config.value("study", Config::object()), name + ": study");
  Study study{name, options.title.empty() ? name : options.title, options.paper, options.about, {}, {}};
  if (!config.contains("variant") || !config["variant"].is_array() || config["variant"].empty()) {
    misuse("{}: it has no [[variant]]; name at least one", name);
  }
  Config base = Config::object();
  for (const char* part : kRecipeParts) {
    if (!config.contains(part)) continue;
    if (!config[part].is_object()) misuse("{}: {}: expected a table", name, part);
    base[part] = config[part];
  }
  std::set<std::string> names;
  for (size_t i = 0; i < config["variant"].size(); ++i) {
    const std::string where = fmt::format("{}: variant.{}", name, i);
    study.variants.push_back(parse_variant(base, config["variant"][i], where));
    const std::string& variant = study.variants.back().name;
    if (!names.insert(variant).second) misuse("{}.name: the name '{}' is taken", where, variant);
  }
  if (config.contains("claim")) study.checks = parse_claim(config["claim"], names, name + ": claim");
  return study;
}

bool StudyResult::holds() const {
  return std::all_of(checks.begin(), checks.end(), [](const CheckResult& check) { return check.holds; });
}

Config StudyResult::to_json(const Study& study) const {
  Config all = Config::array(), verdicts = Config::array();
  for (const auto& variant : variants) all.push_back(seqloom::to_json(variant));
  for (const auto& check : checks) {
    verdicts.push_back({{"text", check.check.text()}, {"value", check.value}});
    if (check.other) verdicts.back()["other"] = *check.other;
    verdicts.back()["holds"] = judged ? Config(check.holds) : Config();
  }
  return {{"study", printable(study.name, 4096)},         {"title", study.title}, {"judged", judged},
          {"holds", judged ? Config(holds()) : Config()}, {"variants", all},      {"checks", verdicts}};
}

StudyResult run_study(const Study& study, const std::string& out, int64_t steps, const StudyObserver& observer) {
  Study shortened = study;
  if (steps > 0) {
    for (auto& variant : shortened.variants) variant.recipe["train"]["steps"] = steps;
  }
  const std::vector<bool> less = rehearse(shortened);
  StudyResult result;
  result.judged = steps == 0;
  for (size_t i = 0; i < shortened.variants.size(); ++i) {
    result.variants.push_back(train_variant(with_teacher(shortened, i, out), study.name, out, observer));
    observer.on_variant(result.variants.back());
  }
  for (size_t i = 0; i < study.checks.size(); ++i) result.checks.push_back(judge(study.checks[i], result, less[i]));
  return result;
}

}  // namespace seqloom
