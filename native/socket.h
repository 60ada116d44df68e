// recvmsg as both the export and a Stream have it.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>

#include "arguments.h"

// Receives into `bytes`: the byte count, 0 at the end of the stream, or a negative errno (EAGAIN when nothing waits). fds[0]
// becomes the count of descriptors that came along, which follow. Those that do not fit are closed, and the rest too: EMSGSIZE.
ssize_t ReceiveMessage(int fd, Bytes bytes, int32_t* fds, size_t capacity);
