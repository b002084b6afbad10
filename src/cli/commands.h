#pragma once
#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "base/fields.h"

namespace seqloom {

// Each adds one command to the binary; the command runs in its callback and throws Error or UsageError.
void add_train_command(CLI::App& app);
void add_eval_command(CLI::App& app);
void add_generate_command(CLI::App& app);
void add_study_command(CLI::App& app);
void add_bench_command(CLI::App& app);
void add_mixers_command(CLI::App& app);
void add_inspect_command(CLI::App& app);
void add_import_command(CLI::App& app);
void add_export_command(CLI::App& app);
void add_embed_command(CLI::App& app);
void add_quantize_command(CLI::App& app);
void add_serve_command(CLI::App& app);

/// A recipe file with the command line's --set assignments.
Config load_recipe(const std::string& path, const std::vector<std::string>& assignments);

/// The option --cache-every of commands that read with a trained model (Decoder::cache_every).
void add_cache_every(CLI::App& command, int64_t& tokens);

/// Ends the command with this exit status (for a claim that failed, where nothing was wrong with the work itself).
struct ExitWith {
  int status;
};

}  // namespace seqloom
