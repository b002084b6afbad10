#pragma once
#include <functional>
#include <string>
#include <vector>

#include "base/registry.h"
#include "huggingface/config_file.h"
#include "huggingface/correspondence.h"
#include "huggingface/model_table.h"

namespace seqloom::huggingface {

/// The model that a config.json describes.
struct Description {
  Config model;            // a [model] table
  int64_t vocabulary = 0;  // rows of the embedding
  int64_t context = 0;     // tokens that it was made to read
  Shapes sizes;            // of tensors of theirs by which a config.json that lies is found before it costs memory
};

/// A kind of checkpoint, one file each. What it writes is checked by reading it again (export.cpp), so `write` need not
/// look at options that it has no word for.
struct Family {
  std::string about;
  std::string task_kind;  // "language": a Decoder; "sentence_embedding": an Encoder
  std::string mixer;      // of every layer
  std::vector<std::string> channels;
  std::function<bool(const Config& config)> owns;
  std::function<Description(ConfigFile& file)> read;
  std::vector<Correspondence> names;
  Spelling spelling;
  std::function<Config(const ModelTable& table)> write;
};

Registry<Family>& families();

/// The name of the family that a config.json belongs to. Throws Error that lists the families.
std::string family_of(const ConfigFile& file);

/// `owns` for files that name their kind.
std::function<bool(const Config&)> has_model_type(const std::string& type);

/// Whether `name` ends in one of these.
bool ends_in(const std::string& name, const std::vector<std::string>& ends);

/// The name with `prefix`, unless it has it.
std::string prefixed(const std::string& name, const std::string& prefix);

}  // namespace seqloom::huggingface
