#pragma once
#include <string>

#include "huggingface/family.h"
#include "train/checkpoint.h"

namespace seqloom::huggingface {

/// A model in a family's words.
struct Expressed {
  std::string family;
  Config config;  // config.json
};

/// The family, or of all the first, whose config.json describes this model. Throws Error that says what cannot be
/// expressed, for the named family or the nearest one.
Expressed express(const ModelTable& table, const std::string& task_kind, const std::string& family = "");

/// Writes config.json, model.safetensors and the tokenizer's files of a checkpoint into the folder `out`, so that
/// `transformers` loads it. Returns the family.
std::string export_checkpoint(const std::string& run, const std::string& out, const std::string& family = "");

}  // namespace seqloom::huggingface
