#pragma once
#include <string>
#include <vector>

#include "io/toml.h"
#include "mixers/mixer.h"

namespace seqloom {

inline constexpr int64_t kTrialWidth = 24;

/// A registered mixer with one set of options.
struct Trial {
  std::string kind, options;
  size_t number = 0;
  std::string test_name() const { return kind + "_" + std::to_string(number); }
};

inline std::ostream& operator<<(std::ostream& out, const Trial& trial) {
  return out << trial.kind << " {" << trial.options << "}";
}

inline std::vector<Trial> all_trials() {
  std::vector<Trial> trials;
  for (const auto& kind : mixers().names()) {
    const auto& options = mixers().get(kind).trials;
    for (size_t i = 0; i < options.size(); ++i) trials.push_back({kind, options[i], i});
  }
  return trials;
}

inline std::shared_ptr<Mixer> make_trial(const Trial& trial) {
  Config table = parse_toml(trial.options, trial.kind);
  table["kind"] = trial.kind;
  return make_mixer(kTrialWidth, table, trial.kind);
}

}  // namespace seqloom
