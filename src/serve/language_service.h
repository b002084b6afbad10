#pragma once
#include <string>

#include "serve/served_model.h"
#include "serve/state_store.h"

namespace seqloom {

/// A decoder at work, with its saved states.
struct LanguageService {
  LanguageService(const LanguageModel& language, const std::string& name, const StateOptions& state_options,
                  const EngineOptions& engine_options)
      : model(language, name, fingerprint(language.checkpoint)),
        states(state_options, language.decoder, model.id()),
        engine(language.decoder, engine_options) {}

  ServedModel model;
  StateStore states;
  Engine engine;
};

}  // namespace seqloom
