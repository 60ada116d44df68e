// Staying out of Node's event loop between messages.
//
// A round of the loop is 2 us of work that has nothing to do with a message. So after an event of a Poll the loop is
// not gone back to as long as nothing but Polls has anything to do: the next events are taken here, from the loop's own
// epoll instance and until its own next timer. Anything else (a timer that is due, an immediate, a descriptor of Node's
// own, a Poll that was started or closed) is for the loop.
#pragma once

#include <node_api.h>
#include <uv.h>

// One of these is called for what is ready.
class Lingering {
 public:
  // `events` as for a uv_poll_cb, at least one of those that are wanted, and never an error. Returns whether JavaScript
  // ran: otherwise no timer of the loop's is another one.
  virtual bool Ready(int events) = 0;

  // The UV_* events that it waits for in the loop; 0 when it is stopped.
  int wanted = 0;

 protected:
  ~Lingering() = default;
};

// The descriptors of this thread's event loop that a Lingering watches; one each.
void Enlist(napi_env env, uv_loop_t* loop, int fd, Lingering* watcher);
void Delist(int fd);

// To be called at the end of a uv_poll_cb.
void Linger(uv_loop_t* loop);
