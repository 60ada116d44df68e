// An epoll_wait with a time-out programs a timer for each wait and takes it back after it, which costs a microsecond on
// a virtual machine. So the next timer is a timerfd instead, which is set only when that timer is another one.
#include "linger.h"

#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <vector>

#include "system_call.h"

namespace {

constexpr uint64_t kNever = UINT64_MAX;

// By fd.
thread_local std::vector<Lingering*> watchers_of_thread;

// The timerfd of this thread, in the loop like any descriptor. On the heap because uv_close() ends it later.
struct Alarm {
  uv_poll_t poll;
  int fd = -1;
  // In the loop's milliseconds.
  uint64_t due = kNever;
  napi_async_cleanup_hook_handle hook = nullptr;

  // False when there is none: the machine is out of descriptors.
  bool Set(uint64_t when) {
    if (when == due) return true;
    itimerspec time{};
    if (when != kNever) {
      // The loop's clock is CLOCK_MONOTONIC in milliseconds, rounded down; a timer is due when that has come.
      time.it_value.tv_sec = static_cast<time_t>(when / 1000);
      time.it_value.tv_nsec = static_cast<long>(when % 1000) * 1000000 + 1;
    }
    if (timerfd_settime(fd, TFD_TIMER_ABSTIME, &time, nullptr) != 0) return false;
    due = when;
    return true;
  }

  void Fired() {
    uint64_t count;
    [[maybe_unused]] ssize_t taken = read(fd, &count, sizeof count);
    due = kNever;
  }
};

thread_local Alarm* alarm_of_thread = nullptr;

void CloseAlarm(napi_async_cleanup_hook_handle, void* data) {
  Alarm* alarm = static_cast<Alarm*>(data);
  alarm_of_thread = nullptr;
  uv_close(reinterpret_cast<uv_handle_t*>(&alarm->poll), [](uv_handle_t* closed) {
    Alarm* alarm = static_cast<Alarm*>(closed->data);
    close(alarm->fd);
    napi_remove_async_cleanup_hook(alarm->hook);
    delete alarm;
  });
}

Alarm* MakeAlarm(napi_env env, uv_loop_t* loop) {
  int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
  if (fd < 0) return nullptr;
  Alarm* alarm = new Alarm;
  alarm->fd = fd;
  alarm->poll.data = alarm;
  if (uv_poll_init(loop, &alarm->poll, fd) != 0) {
    close(fd);
    delete alarm;
    return nullptr;
  }
  // It keeps nothing alive.
  uv_unref(reinterpret_cast<uv_handle_t*>(&alarm->poll));
  uv_poll_start(&alarm->poll, UV_READABLE, [](uv_poll_t* poll, int, int) { static_cast<Alarm*>(poll->data)->Fired(); });
  napi_add_async_cleanup_hook(env, CloseAlarm, alarm, &alarm->hook);
  return alarm;
}

// 0 for what the loop is to deal with: errors, above all.
int Translate(uint32_t events) {
  if ((events & ~uint32_t{EPOLLIN | EPOLLOUT | EPOLLRDHUP}) != 0) return 0;
  return ((events & EPOLLIN) ? UV_READABLE : 0) | ((events & EPOLLOUT) ? UV_WRITABLE : 0) |
         ((events & EPOLLRDHUP) ? UV_DISCONNECT : 0);
}

}  // namespace

void Enlist(napi_env env, uv_loop_t* loop, int fd, Lingering* watcher) {
  if (alarm_of_thread == nullptr) alarm_of_thread = MakeAlarm(env, loop);
  auto& watchers = watchers_of_thread;
  size_t index = static_cast<size_t>(fd);
  if (watchers.size() <= index) watchers.resize(index + 1);
  watchers[index] = watcher;
}

void Delist(int fd) { watchers_of_thread[static_cast<size_t>(fd)] = nullptr; }

// libuv keeps each descriptor's number in its epoll event, and epoll is level-triggered here: what is not understood or
// not dealt with is there again when the loop asks.
void Linger(uv_loop_t* loop) {
  Alarm* alarm = alarm_of_thread;
  // The thread is ending, or had no descriptor left for it.
  if (alarm == nullptr) return;
  // Looked up once: where it is changes no more, though it may grow.
  const auto& watchers = watchers_of_thread;
  int backend = uv_backend_fd(loop);
  for (bool ran = true;;) {
    if (ran) {
      // The loop's time is what timers are set by, also by JavaScript that runs here.
      uv_update_time(loop);
      int timeout = uv_backend_timeout(loop);
      if (timeout == 0 || !alarm->Set(timeout < 0 ? kNever : uv_now(loop) + timeout)) return;
    }
    // One at a time: a callback may deal with what would come after it.
    epoll_event event;
    if (SystemCall(SYS_epoll_pwait, backend, Argument(&event), 1, -1, 0, 8) != 1) break;
    size_t index = static_cast<size_t>(event.data.fd);
    Lingering* watcher = index < watchers.size() ? watchers[index] : nullptr;
    int ready = watcher == nullptr ? 0 : Translate(event.events) & watcher->wanted;
    if (ready == 0) break;
    ran = watcher->Ready(ready);
  }
  uv_update_time(loop);
}
