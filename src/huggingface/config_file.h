#pragma once
#include <string>
#include <vector>

#include "base/fields.h"

namespace seqloom::huggingface {

/// A config.json on its way into options. Keys leave `values` as they are understood; keys that are null count as
/// absent.
struct ConfigFile {
  Config values;
  std::string name;                  // the file, for messages
  std::vector<std::string> unknown;  // keys that nobody knows, for a warning
};

/// Throws Error naming the file when it is no JSON table. JSON's missing infinity may stand in it.
ConfigFile open_config(const std::string& path);

/// Fails, naming file, key and value, unless each key of `expected` that is there has that value; these keys are then
/// understood. The value null means that the key must not be there.
void expect_values(ConfigFile& file, const Config& expected);

/// Fails with `problem` after "FILE: KEY = VALUE".
[[noreturn]] void reject(const ConfigFile& file, const std::string& key, const Config& value,
                         const std::string& problem);

/// Reads what is left of the file into `fields`. Keys of `idle` and those that no model's output depends on are passed
/// over; all others become `unknown`. Throws Error for wrong types and values out of range.
void read_fields(ConfigFile& file, const Fields& fields, const std::vector<std::string>& idle);

template <typename Options>
Options read_config(ConfigFile& file, const std::vector<std::string>& idle = {}) {
  Options options;
  Fields fields;
  options.describe(fields);
  read_fields(file, fields, idle);
  return options;
}

/// Takes rope_theta and rope_scaling (transformers 4) or rope_parameters (5) out of the file: attention options
/// { rope_base, rope_scaling }. Fails for a scaling that is not supported.
Config take_rope(ConfigFile& file);
/// The same as transformers 5 writes it: rope_parameters.
Config rope_parameters(const Config& attention);

/// The name of an activation in options of the channel mixer "mlp", and back.
std::string activation_of(const ConfigFile& file, const std::string& key, const std::string& name);
std::string activation_name(const std::string& activation);

}  // namespace seqloom::huggingface
