# Warnings are errors in our own code only.
add_library(seqloom_warnings INTERFACE)
target_compile_options(seqloom_warnings INTERFACE -Wall -Wextra -Wpedantic -Werror -Wno-unused-parameter)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # g++ 12 reports uninitialised use inside std::optional and std::variant where there is none.
  target_compile_options(seqloom_warnings INTERFACE -Wno-maybe-uninitialized)
endif()
