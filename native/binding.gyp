{
  "targets": [
    {
      "target_name": "addon",
      "sources": [
        "addon.cc",
        "socket.cc",
        "fd_messages.cc",
        "file.cc",
        "discard.cc",
        "disk.cc",
        "memory.cc",
        "guard.cc",
        "eventfd.cc",
        "poll.cc",
        "linger.cc",
        "stream.cc",
        "stream_memory.cc",
        "register_memory.cc",
        "access_path.cc",
        "device_access.cc",
        "device_doorbells.cc",
        "device_path.cc",
        "relay.cc",
        "relay_thread.cc",
        "ioctl.cc",
        "mmio.cc",
        "copy.cc",
        "io_threads.cc",
        "io_pool.cc",
        "line_writer.cc",
        "supervision.cc",
        "crash_point.cc"
      ],
      "include_dirs": ["<!@(node -p \"require('node-addon-api').include\")"],
      "defines": ["NAPI_VERSION=8", "NAPI_CPP_EXCEPTIONS"],
      "cflags!": ["-fno-exceptions"],
      "cflags_cc!": ["-fno-exceptions", "-fno-rtti"],
      "cflags_cc": ["-std=c++20", "-O2", "-Wall", "-Wextra"],
      "ldflags": ["-Wl,-z,nodelete", "-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL"]
    },
    {
      "target_name": "vfio-user-holder",
      "type": "executable",
      "sources": ["holder.cc", "fd_store.cc"],
      "cflags_cc!": ["-std=gnu++17"],
      "cflags_cc": ["-std=c++20", "-O2", "-Wall", "-Wextra"],
      "ldflags!": ["-rdynamic"],
      "ldflags": ["-Wl,--as-needed", "-static-libstdc++", "-static-libgcc"]
    }
  ]
}
