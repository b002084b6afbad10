#include <fmt/format.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <cstdio>
#include <cstdlib>

#include "base/error.h"
#include "base/torch.h"
#include "cli/commands.h"
#include "io/toml.h"

namespace seqloom {

Config load_recipe(const std::string& path, const std::vector<std::string>& assignments) {
  Config recipe = load_toml(path);
  for (const auto& assignment : assignments) set_key(recipe, assignment);
  return recipe;
}

namespace {

int report(const std::string& message, int status) {
  fmt::print(stderr, "seqloom: {}\n", message);
  return status;
}

/// Large tensors come and go at every step, and the kernel's clearing of fresh pages may take as long as the
/// arithmetic.
void reuse_memory() {
  // huge pages: a page fault for each 4 KiB costs more than some kernels do. Read by torch at its first allocation; a
  // user's own setting wins.
  setenv("THP_MEM_ALLOC_ENABLE", "1", /*overwrite=*/0);
#ifdef __GLIBC__
  // what is freed is kept for the next step, up to this much at the heap's end
  constexpr int kKept = 1 << 30;
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, kKept);
#endif
}

int run(int argc, char** argv) {
  reuse_memory();
  // What a memory forgets fades through the subnormal numbers, each of which costs over a hundred cycles: they count as
  // 0 here and in all threads that begin later.
  at::globalContext().setFlushDenormal(true);
  CLI::App app(
      "Trains, compares and streams sequence models.\n\n"
      "  seqloom train recipes/scripture.toml                 train what a recipe describes\n"
      "  seqloom generate runs/scripture --prompt 'In the'    stream a continuation\n"
      "  seqloom study studies/recall.toml                    compare models and check a claim\n\n"
      "Exit status: 0 done, 1 failed, 2 wrong use.");
  app.require_subcommand(1);
  app.fallthrough(false);
  add_train_command(app);
  add_eval_command(app);
  add_generate_command(app);
  add_study_command(app);
  add_bench_command(app);
  add_mixers_command(app);
  add_inspect_command(app);
  add_import_command(app);
  add_export_command(app);
  add_embed_command(app);
  add_quantize_command(app);
  add_serve_command(app);
  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  } catch (const ExitWith& exit) {
    return exit.status;
  } catch (const UsageError& error) {
    return report(error.what(), 2);
  } catch (const Error& error) {
    return report(error.what(), 1);
  } catch (const c10::Error& error) {
    return report(error.what_without_backtrace(), 1);
  } catch (const std::bad_alloc&) {
    return report("out of memory; use a smaller batch, context or model", 1);
  } catch (const std::exception& error) {
    return report(error.what(), 1);
  }
}

}  // namespace
}  // namespace seqloom

int main(int argc, char** argv) {
  return seqloom::run(argc, argv);
}
