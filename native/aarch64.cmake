# Cross-compiles the C++ half for 64-bit ARM and runs its tests in an emulator. Debian has what it takes:
#   apt install g++-aarch64-linux-gnu qemu-user
#   cmake -S native -B build/aarch64 --toolchain aarch64.cmake && cmake --build build/aarch64 && ctest --test-dir build/aarch64
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu)
