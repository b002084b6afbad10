#include "cli/commands.h"

namespace seqloom {

void add_study_command(CLI::App&) {}

}  // namespace seqloom
