#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/fields.h"
#include "base/torch.h"
#include "train/trainer.h"

namespace seqloom {

/// One thing that a claim says: a variant's metric is at least or at most a number, or beats another variant's by some
/// amount or factor.
struct ClaimCheck {
  std::string metric, variant, beats;
  std::optional<double> at_least, at_most, factor;
  double by = 0;

  void describe(Fields& f) {
    f.add("metric", metric, "the metric");
    f.add("variant", variant, "whose");
    f.add("at_least", at_least, "it is no less than this");
    f.add("at_most", at_most, "it is no more than this");
    f.add("beats", beats, "it is better than this variant's");
    f.add("by", by, "by at least this").at_least(0);
    f.add("factor", factor, "it beats this times that").greater_than(0);
  }
  std::string text() const;
};

struct StudyVariant {
  std::string name;
  Config recipe;  // the study's with the variant's keys laid over it
};

/// A study file: a recipe ([task], [model], [train]) with [study] title, paper, about; [[variant]] overrides; [claim].
struct Study {
  std::string name, title, paper, about;
  std::vector<StudyVariant> variants;
  std::vector<ClaimCheck> checks;
};

/// Throws UsageError naming `name` (the file) and the key.
Study parse_study(const Config& config, const std::string& name);

/// How a layer mixes the tokens of one held-out row, for the report.
struct MixingPicture {
  int64_t layer = 0;     // from 0
  torch::Tensor matrix;  // [T, T] float32, head 0 of the layer's mixer
};

struct VariantResult {
  std::string name;
  int64_t parameters = 0;
  double seconds = 0, tokens_per_second = 0;  // of training
  std::map<std::string, double> metrics;
  std::vector<std::pair<int64_t, double>> losses;      // (step, loss)
  std::optional<int64_t> memory_bytes, memory_tokens;  // of one stream and after how many tokens, where it streams
  std::vector<MixingPicture> pictures;                 // the first and the last layer, where they have a matrix
};

struct CheckResult {
  ClaimCheck check;
  double value = 0;
  std::optional<double> other;  // of the variant it should beat
  bool holds = false;
};

struct StudyResult {
  std::vector<VariantResult> variants;
  std::vector<CheckResult> checks;
  bool judged = true;  // a run with fewer steps than the study asks for says nothing about the claim

  bool holds() const;
  Config to_json(const Study& study) const;
};

/// Who watches a study.
struct StudyObserver {
  std::function<void(const std::string& variant, const StepReport&)> on_step = [](const std::string&,
                                                                                  const StepReport&) {};
  std::function<void(const VariantResult&)> on_variant = [](const VariantResult&) {};
};

/// Trains every variant in out/NAME on the same data, seed and budget and judges the claim. `steps` > 0 replaces the
/// recipes' number of steps; the claim is then not judged. Every recipe and every metric of the claim is checked before
/// the first step. Throws UsageError for a wrong one, Error naming the variant whose training fails.
StudyResult run_study(const Study& study, const std::string& out, int64_t steps, const StudyObserver& observer);

}  // namespace seqloom
