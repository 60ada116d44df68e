// Messages with descriptors, as the exports, a Stream and a StreamMemory have them (fd_messages.cc).
#pragma once

#include <napi.h>
#include <sys/socket.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>

#include "arguments.h"

constexpr int32_t kLostFds = -1;
// As many as one message can carry (SCM_MAX_FD).
constexpr size_t kMaxFds = 253;

// Room for the most descriptors that one message can carry, so that a peer can neither overflow nor truncate it.
union FdControl {
  char bytes[CMSG_SPACE(sizeof(int) * kMaxFds)];
  cmsghdr header;
};

// Receives into `bytes`: the byte count, 0 at the end of the stream, or a negative errno (EAGAIN when nothing waits).
// fds[0] becomes the count of descriptors that came along, which follow; at most `most`. When some are lost, because
// there were more or the process has no room for them, it becomes kLostFds less the count of the others.
ssize_t ReceiveMessage(int fd, Bytes bytes, int32_t* fds, size_t most);
// The same by one call of recvmmsg(), whose results the kernel stores into `header`; `is_cut` when some are lost.
ssize_t ReceiveOnce(int fd, Bytes bytes, int32_t* fds, size_t most, int flags, mmsghdr* header, bool* is_cut);
// Throws away `length` bytes that were looked at, and the descriptors that came with them, fds[1...] being copies of
// some. 0 when that has begun; or an errno, and the copies are closed.
int DropReceived(int fd, size_t length, int32_t* fds);
// 0, EAGAIN while what came before is being dropped, or EBUSY.
int Dropping(int fd);
// Closes fds[1...], as many as fds[0] says, which becomes 0.
void CloseFds(int32_t* fds);
// Makes an array of JavaScript's, or undefined, the descriptors of a message.
void PutFds(Napi::Value fds, FdControl* control, msghdr* message);
// What comes out of band is in the stream from now on, with its descriptors. For each socket that a peer sends to.
void TakeUrgentInline(int fd);
// To be called before a socket is closed from which something was received.
void ForgetSocket(int fd);
