# What the engine stands on, and why:
#   torch           tensors, autograd, GEMM            Highway        SIMD with run-time dispatch
#   nlohmann-json   configuration, metrics, headers    toml++         recipes and studies
#   fmt             messages; header-only, because torch's wheel brings headers of another version along
#   CLI11           the command line
#   cpp-httplib     HTTP for `seqloom serve`: the compiled library; only src/serve/http_{server,connection} see its header
#   PCRE2           the Unicode regex of byte-level BPE pre-tokenisation
find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(TOMLPLUSPLUS REQUIRED IMPORTED_TARGET tomlplusplus)

find_program(CCACHE ccache)
if(CCACHE)
  # A precompiled header is cached only if ccache may trust its time stamps and defines.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime ${CCACHE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    add_compile_options(-fpch-preprocess)
  endif()
endif()

if(SEQLOOM_SANITIZE)
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
endif()

add_library(seqloom_base_dependencies INTERFACE)
target_link_libraries(seqloom_base_dependencies INTERFACE fmt::fmt-header-only nlohmann_json::nlohmann_json
  PkgConfig::PCRE2 PkgConfig::TOMLPLUSPLUS Threads::Threads)
if(SEQLOOM_FUZZ)
  return()
endif()

# Torch: -DTorch_DIR or CMAKE_PREFIX_PATH wins; then, under pip, the wheel of the Python that builds the package; otherwise
# the wheel that `make setup` puts into .venv.
if(SEQLOOM_PYTHON_PACKAGE AND NOT Torch_DIR)
  find_package(Python REQUIRED COMPONENTS Interpreter)
  execute_process(COMMAND ${Python_EXECUTABLE} -c "import torch; print(torch.utils.cmake_prefix_path)"
    OUTPUT_VARIABLE SEQLOOM_PIP_TORCH OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  list(APPEND CMAKE_PREFIX_PATH ${SEQLOOM_PIP_TORCH})
elseif(NOT Torch_DIR)
  file(GLOB SEQLOOM_VENV_TORCH ${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch/share/cmake)
  list(APPEND CMAKE_PREFIX_PATH ${SEQLOOM_VENV_TORCH})
endif()
find_package(Torch 2.13 REQUIRED)
find_package(hwy 1.0 REQUIRED)
if(NOT SEQLOOM_PYTHON_PACKAGE)
  find_package(CLI11 REQUIRED)
  find_package(GTest REQUIRED)
  find_package(benchmark REQUIRED)
  set(SEQLOOM_COMMAND_LINE CLI11::CLI11)
endif()

pkg_check_modules(HTTPLIB REQUIRED IMPORTED_TARGET cpp-httplib)

add_library(seqloom_dependencies INTERFACE)
# Torch's headers are system headers: their warnings are not ours to mend.
target_include_directories(seqloom_dependencies SYSTEM INTERFACE ${TORCH_INCLUDE_DIRS})
target_link_libraries(seqloom_dependencies INTERFACE seqloom_base_dependencies ${TORCH_LIBRARIES} hwy::hwy ${SEQLOOM_COMMAND_LINE})
