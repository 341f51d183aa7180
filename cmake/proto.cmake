# Generated from proto/: protobuf-c code (<name>.pb-c.[ch]) and, as a C array for the reflection service, a serialised
# FileDescriptorSet of the services. Everything goes to ${CMAKE_BINARY_DIR}/gen. Sets NK_PROTO_SOURCES.
find_program(PROTOC_GEN_C protoc-gen-c REQUIRED)
find_program(PROTOC protoc REQUIRED)
set(gen ${CMAKE_BINARY_DIR}/gen)
file(MAKE_DIRECTORY ${gen})
set(NK_PROTO_SOURCES)
foreach(name nakshatra health reflection descriptor)
  add_custom_command(
    OUTPUT ${gen}/${name}.pb-c.c ${gen}/${name}.pb-c.h
    COMMAND ${PROTOC} --plugin=protoc-gen-c=${PROTOC_GEN_C} --c_out=${gen} -I ${CMAKE_SOURCE_DIR}/proto ${CMAKE_SOURCE_DIR}/proto/${name}.proto
    DEPENDS ${CMAKE_SOURCE_DIR}/proto/${name}.proto
    VERBATIM)
  list(APPEND NK_PROTO_SOURCES ${gen}/${name}.pb-c.c)
endforeach()
set(services ${CMAKE_SOURCE_DIR}/proto/nakshatra.proto ${CMAKE_SOURCE_DIR}/proto/health.proto
  ${CMAKE_SOURCE_DIR}/proto/reflection.proto)
add_custom_command(
  OUTPUT ${gen}/descriptors.c
  COMMAND ${PROTOC} --include_imports --descriptor_set_out=${gen}/descriptors.bin -I ${CMAKE_SOURCE_DIR}/proto ${services}
  COMMAND ${CMAKE_COMMAND} -DIN=${gen}/descriptors.bin -DOUT=${gen}/descriptors.c -DNAME=nk__proto_descriptors
    -P ${CMAKE_CURRENT_LIST_DIR}/bytes_to_c.cmake
  DEPENDS ${services} ${CMAKE_CURRENT_LIST_DIR}/bytes_to_c.cmake
  BYPRODUCTS ${gen}/descriptors.bin
  VERBATIM)
list(APPEND NK_PROTO_SOURCES ${gen}/descriptors.c)
# Other people's generators are not held to our warnings.
set_source_files_properties(${NK_PROTO_SOURCES} PROPERTIES COMPILE_OPTIONS -w)
