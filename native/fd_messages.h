// recvmsg as both the export and a Stream have it (fd_messages.cc).
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>

#include "arguments.h"

// Receives into `bytes`: the byte count, 0 at the end of the stream, or a negative errno (EAGAIN when nothing waits).
// fds[0] becomes the count of descriptors that came along, which follow; at most `most`. When some are lost, because
// there were more or the process has no room for them, it becomes kLostFds less the count of the others.
ssize_t ReceiveMessage(int fd, Bytes bytes, int32_t* fds, size_t most);
// What comes out of band is in the stream from now on, with its descriptors. For each socket that a peer sends to.
void TakeUrgentInline(int fd);
// To be called before a socket is closed from which something was received.
void ForgetSocket(int fd);
constexpr int32_t kLostFds = -1;
// As many as one message can carry (SCM_MAX_FD).
constexpr size_t kMaxFds = 253;
