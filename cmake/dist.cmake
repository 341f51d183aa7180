# What scripts/dist puts into the tarball besides copies: the program as it runs from any folder (the same objects, linked
# once more, with a run path from /proc/self/exe), and bin/nakshatra, which loads it (packaging/start.c says why).
get_filename_component(loader_name "${NK_LLAMA_LOADER}" NAME)
add_executable(nakshatra_relocatable src/cli/main.c)
target_link_libraries(nakshatra_relocatable PRIVATE nk_cli)
# From a file: on a command line each of CMake's generators does something else to a dollar.
file(WRITE ${CMAKE_BINARY_DIR}/dist/link.options "-Wl,-rpath,$ORIGIN/../lib/nakshatra -Wl,--dynamic-linker=/${loader_name}\n")
target_link_options(nakshatra_relocatable PRIVATE "@${CMAKE_BINARY_DIR}/dist/link.options")
set_target_properties(nakshatra_relocatable PROPERTIES NK_RELOCATABLE ON OUTPUT_NAME nakshatra
  RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/dist/lib)
add_executable(nakshatra_start packaging/start.c)
target_compile_definitions(nakshatra_start PRIVATE _GNU_SOURCE LOADER="${loader_name}")
# Nothing that wants a C library: no stack protector, no calls of memset made from loops.
target_compile_options(nakshatra_start PRIVATE -O2 -g0 -ffreestanding -fno-pie -fno-stack-protector
  -fno-asynchronous-unwind-tables $<$<C_COMPILER_ID:GNU>:-fno-tree-loop-distribute-patterns> -Wall -Wextra -Wshadow $<$<BOOL:${NK_WERROR}>:-Werror>)
target_link_options(nakshatra_start PRIVATE -static -no-pie -nostdlib LINKER:-z,noexecstack LINKER:--build-id=none)
set_target_properties(nakshatra_start PROPERTIES OUTPUT_NAME nakshatra RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/dist/bin)
add_custom_target(distributable DEPENDS nakshatra_relocatable nakshatra_start reference)
