// Eventfds that a peer holds too. O_NONBLOCK belongs to the open file description, which is shared: whatever we set,
// the peer can clear, and between a poll() and a read() it can take the count away. So neither plain read() nor plain
// write() is ever used on them: a hostile peer could stop the event loop with it.
//
// - Reading: preadv2(RWF_NOWAIT), which eventfds honour whatever their flags say (Linux 5.8 or newer).
// - Writing: eventfds refuse RWF_NOWAIT. Asynchronous I/O's completion signal (io_submit with IOCB_FLAG_RESFD) makes
//   the kernel add 1 itself, and that never waits: on a full counter it does nothing.
#pragma once

#include <cstdint>

// 0 for an eventfd, EINVAL for something else, another errno when that cannot be found out.
int CheckEventfd(int fd);

// Takes the count. Returns 0, EAGAIN when there was none, or another errno.
int TakeCount(int fd, uint64_t* count);

// Adds 1. Returns 0, also for a full counter, or an errno. Any thread.
int Signal(int fd);
