# llama.cpp as an interface target `llama`: that of NK_LLAMA_PREFIX where it is given, else the private copy that
# scripts/deps unpacked (docs/internals/llama.md, "Where llama.cpp comes from"), else the system's own.
#
# Sets NK_LLAMA_LIBEXEC, NK_LLAMA_BIN (where llama.cpp's own tests and tools are) and, for the private copy only,
# NK_LLAMA_LIB, NK_LLAMA_LOADER (its libraries and loader), NK_BACKEND_DIR, NK_BACKEND_SUBDIR (the folder that ggml loads its
# backends from, and the same seen from where libggml is) and NK_PRIVATE_LIB (what is to be installed with the program).
find_package(PkgConfig REQUIRED)
set(NK_PRIVATE_ROOT "${CMAKE_SOURCE_DIR}/.deps/root")
add_library(llama INTERFACE)
set(NK_LLAMA_PREFIX "" CACHE PATH "where a llama.cpp of one's own is installed (docs/gpus.md)")
if(NK_LLAMA_PREFIX)
  file(GLOB found "${NK_LLAMA_PREFIX}/lib/pkgconfig/llama.pc" "${NK_LLAMA_PREFIX}/lib64/pkgconfig/llama.pc"
    "${NK_LLAMA_PREFIX}/lib/*/pkgconfig/llama.pc" "${NK_LLAMA_PREFIX}/share/pkgconfig/llama.pc")
  if(NOT found)
    message(FATAL_ERROR "NK_LLAMA_PREFIX: no pkgconfig/llama.pc in the lib, lib64 or share of ${NK_LLAMA_PREFIX}: is a llama.cpp "
      "installed there (cmake --install BUILD --prefix ${NK_LLAMA_PREFIX}, built with BUILD_SHARED_LIBS)?")
  endif()
  list(GET found 0 found)
  get_filename_component(found "${found}" DIRECTORY)
  set(ENV{PKG_CONFIG_PATH} "${found}:$ENV{PKG_CONFIG_PATH}")
  set(modules llama)
  if(EXISTS "${found}/ggml.pc")
    list(APPEND modules ggml)
  endif()
  string(MD5 key "${found}") # what pkg-config said of another prefix is remembered under another name
  pkg_check_modules(LLAMA_${key} REQUIRED IMPORTED_TARGET ${modules})
  pkg_get_variable(lib llama libdir)
  # Its headers before those of a copy in the system: they must be those of the library.
  target_include_directories(llama BEFORE INTERFACE ${LLAMA_${key}_INCLUDE_DIRS})
  target_link_libraries(llama INTERFACE PkgConfig::LLAMA_${key})
  # An RPATH, not a RUNPATH: a llama.cpp that was installed names no path of its own, so libggml finds libggml-cuda by ours.
  target_link_options(llama INTERFACE "LINKER:--disable-new-dtags" "LINKER:-rpath,${lib}")
  # Debian's llama.cpp has its backends in a folder of this name, and looks for it where it was made for.
  file(GLOB subdir RELATIVE "${lib}" "${lib}/ggml/backends*")
  set(NK_BACKEND_SUBDIR "${subdir}")
  set(NK_BACKEND_DIR "")
  if(subdir)
    set(NK_BACKEND_DIR "${lib}/${subdir}")
  endif()
  set(NK_LLAMA_LIBEXEC "")
  set(NK_LLAMA_BIN "${NK_LLAMA_PREFIX}/bin")
  message(STATUS "llama.cpp ${LLAMA_${key}_llama_VERSION}${LLAMA_${key}_VERSION} from ${lib}")
elseif(EXISTS "${NK_PRIVATE_ROOT}/usr/include/llama.h")
  execute_process(COMMAND ${CMAKE_C_COMPILER} -print-multiarch OUTPUT_VARIABLE multiarch OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT multiarch)
    execute_process(COMMAND dpkg-architecture -qDEB_HOST_MULTIARCH OUTPUT_VARIABLE multiarch OUTPUT_STRIP_TRAILING_WHITESPACE)
  endif()
  set(lib "${NK_PRIVATE_ROOT}/usr/lib/${multiarch}")
  file(GLOB loader "${lib}/ld-linux*.so.*")
  if(NOT loader)
    message(FATAL_ERROR "no dynamic loader in ${lib}: run `make deps`")
  endif()
  list(GET loader 0 loader)
  # Only llama.cpp's headers: the private root also has libc's neighbours, which must not shadow the system's.
  target_include_directories(llama SYSTEM INTERFACE "${NK_PRIVATE_ROOT}/usr/include")
  target_link_directories(llama INTERFACE "${lib}")
  # A new copy means a new link: the names on the linker's command line below are no files that make could look at.
  set_property(TARGET llama PROPERTY INTERFACE_LINK_DEPENDS "${CMAKE_SOURCE_DIR}/.deps/stamp")
  # A target with NK_INSTALLED looks for them in the prefix; one with NK_RELOCATABLE says itself where (cmake/dist.cmake).
  set(at "$<IF:$<BOOL:$<TARGET_PROPERTY:NK_INSTALLED>>,${CMAKE_INSTALL_PREFIX}/lib/nakshatra,${lib}>")
  set(fixed "$<NOT:$<BOOL:$<TARGET_PROPERTY:NK_RELOCATABLE>>>")
  get_filename_component(loader_name "${loader}" NAME)
  # The private libraries must be direct dependencies of the program: libllama carries a RUNPATH of its own.
  target_link_options(llama INTERFACE
    "SHELL:-Wl,--no-as-needed -l:libstdc++.so.6 -l:libm.so.6 -l:libgcc_s.so.1 -l:libgomp.so.1 -l:libssl.so.3 -l:libcrypto.so.3 -l:libz.so.1 -l:libzstd.so.1 -lllama -lggml -lggml-base -Wl,--as-needed"
    "LINKER:--allow-shlib-undefined" "LINKER:--disable-new-dtags" "$<${fixed}:LINKER:-rpath,${at}>" "$<${fixed}:LINKER:--dynamic-linker=${at}/${loader_name}>")
  set(NK_PRIVATE_LIB "${lib}")
  set(NK_BACKEND_SUBDIR ggml/backends0)
  set(NK_BACKEND_DIR "${lib}/${NK_BACKEND_SUBDIR}")
  set(NK_LLAMA_LIBEXEC "${NK_PRIVATE_ROOT}/usr/libexec/${multiarch}/llama.cpp-tests")
  set(NK_LLAMA_BIN "${NK_PRIVATE_ROOT}/usr/bin")
  set(NK_LLAMA_LOADER "${loader}")
  set(NK_LLAMA_LIB "${lib}")
else()
  pkg_check_modules(LLAMA REQUIRED IMPORTED_TARGET llama ggml)
  target_link_libraries(llama INTERFACE PkgConfig::LLAMA)
  set(NK_BACKEND_DIR "")
  set(NK_BACKEND_SUBDIR "")
  file(GLOB NK_LLAMA_LIBEXEC /usr/libexec/*/llama.cpp-tests)
  set(NK_LLAMA_BIN /usr/bin)
endif()

# minja, which renders chat templates, is headers only; so is the JSON library that it is written with.
# Not remembered: .deps/ comes and goes between two runs.
find_path(NK_MINJA_INCLUDE minja/minja.hpp HINTS "${NK_PRIVATE_ROOT}/usr/include" NO_CACHE)
find_path(NK_NLOHMANN_INCLUDE nlohmann/json.hpp)
if(NOT NK_MINJA_INCLUDE OR NOT NK_NLOHMANN_INCLUDE)
  message(FATAL_ERROR "minja/minja.hpp or nlohmann/json.hpp was not found: run `make deps`")
endif()
