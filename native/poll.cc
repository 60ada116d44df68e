// Readiness of a file descriptor on the environment's own event loop (uv_poll_t).
//
// The handle is on the heap because uv_close() ends it later than the JavaScript object may go. An environment that ends
// (process exit, worker.terminate()) closes what is still open, and waits for that.
//
// A round of Node's event loop is 2 us of work that has nothing to do with a message. So after an event the loop is not gone
// back to as long as nothing but Polls has anything to do: Linger takes the next events from the same epoll instance,
// with the loop's own time-out. Anything else (a timer that is due, an immediate, a descriptor of Node's own, a Poll that was
// started or closed) is for the loop.
#include <sys/epoll.h>
#include <uv.h>

#include <memory>
#include <optional>
#include <unordered_map>

#include "addon.h"
#include "arguments.h"
#include "error.h"
#include "poll_task.h"

namespace {

class Poll;

struct Handle {
  uv_poll_t poll;
  Poll* owner;  // null once closing
  int fd;
  int wanted;  // the events that it was started for, 0 when stopped
  napi_async_cleanup_hook_handle hook;
};

// The open Polls of this thread, which is one environment's, by fd: as epoll names what is ready.
thread_local std::unordered_map<int, Handle*> open_polls;

constexpr int kBatch = 32;

class Poll : public Napi::ObjectWrap<Poll> {
 public:
  static void Init(Napi::Env env, Napi::Object exports) {
    exports.Set("Poll", DefineClass(env, "Poll",
                                    {
                                        InstanceMethod<&Poll::Start>("start"),
                                        InstanceMethod<&Poll::Stop>("stop"),
                                        InstanceMethod<&Poll::CloseMethod>("close"),
                                        InstanceMethod<&Poll::RefMethod>("ref"),
                                        InstanceMethod<&Poll::UnrefMethod>("unref"),
                                    }));
  }

  explicit Poll(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Poll>(info) {
    Napi::Env env = info.Env();
    int fd = Fd(info[0]);
    if (!info[1].IsFunction()) throw Napi::TypeError::New(env, "callback must be a function");
    SetTask(env, fd, info[2]);
    uv_loop_t* loop;
    if (napi_get_uv_event_loop(env, &loop) != napi_ok) throw Napi::Error::New(env, "this environment has no event loop");
    context_.emplace(env, "virtio-vfio-user:poll", info.This().As<Napi::Object>());
    callback_ = Napi::Persistent(info[1].As<Napi::Function>());
    Handle* handle = new Handle{};
    int error = uv_poll_init(loop, &handle->poll, fd);
    if (error != 0) {
      delete handle;
      throw SystemError(env, -error, "uv_poll_init");
    }
    handle->poll.data = handle;
    handle->owner = this;
    handle->fd = fd;
    handle_ = handle;
    open_polls[fd] = handle;
    napi_add_async_cleanup_hook(env, OnEnvironmentEnd, handle, &handle->hook);
    // It must not be collected while it can still call back: close() undoes this.
    Ref();
  }

  ~Poll() override { Close(); }

 private:
  void SetTask(Napi::Env env, int fd, Napi::Value task) {
    if (task.IsUndefined()) return;
    if (task.IsObject()) {
      task_ = StreamTask(env, task);
      task_object_ = Napi::Persistent(task.As<Napi::Object>());
    } else if (task.IsString() && task.As<Napi::String>().Utf8Value() == "eventfd") {
      eventfd_task_.reset(EventfdTask(fd));
      task_ = eventfd_task_.get();
    }
    if (task_ == nullptr) throw Napi::TypeError::New(env, "task must be \"eventfd\" or a Stream");
  }

  Napi::Value Start(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    int events = static_cast<int>(Integer(info[0], "events", 1, UV_READABLE | UV_WRITABLE | UV_DISCONNECT));
    if (handle_ == nullptr) throw SystemError(env, EBADF, "uv_poll_start");
    int error = uv_poll_start(&handle_->poll, events, OnEvents);
    if (error != 0) throw SystemError(env, -error, "uv_poll_start");
    handle_->wanted = events;
    return env.Undefined();
  }

  Napi::Value Stop(const Napi::CallbackInfo& info) {
    if (handle_ != nullptr) {
      uv_poll_stop(&handle_->poll);
      handle_->wanted = 0;
    }
    return info.Env().Undefined();
  }

  Napi::Value CloseMethod(const Napi::CallbackInfo& info) {
    if (handle_ != nullptr) {
      Close();
      callback_.Reset();
      task_object_.Reset();
      Unref();
    }
    return info.Env().Undefined();
  }

  Napi::Value RefMethod(const Napi::CallbackInfo& info) {
    if (handle_ != nullptr) uv_ref(reinterpret_cast<uv_handle_t*>(&handle_->poll));
    return info.Env().Undefined();
  }

  Napi::Value UnrefMethod(const Napi::CallbackInfo& info) {
    if (handle_ != nullptr) uv_unref(reinterpret_cast<uv_handle_t*>(&handle_->poll));
    return info.Env().Undefined();
  }

  void Close() {
    if (handle_ == nullptr) return;
    handle_->owner = nullptr;
    open_polls.erase(handle_->fd);
    uv_close(reinterpret_cast<uv_handle_t*>(&handle_->poll), OnClosed);
    handle_ = nullptr;
  }

  static void OnClosed(uv_handle_t* closed) {
    Handle* handle = static_cast<Handle*>(closed->data);
    // Tells an environment that is ending that this one is done.
    if (handle->hook != nullptr) napi_remove_async_cleanup_hook(handle->hook);
    delete handle;
  }

  static void OnEnvironmentEnd(napi_async_cleanup_hook_handle, void* data) {
    Handle* handle = static_cast<Handle*>(data);
    // Without an owner it is being closed already.
    if (handle->owner != nullptr) handle->owner->Close();
  }

  static void OnEvents(uv_poll_t* poll, int status, int events) {
    Poll* self = static_cast<Handle*>(poll->data)->owner;
    uv_loop_t* loop = poll->loop;
    if (self != nullptr) self->Ready(status < 0 ? status : events);
    Linger(loop);
  }

  // libuv keeps each descriptor's number in its epoll event, and epoll is level-triggered here: what is not understood or
  // not dealt with is there again when the loop asks.
  static void Linger(uv_loop_t* loop) {
    for (;;) {
      uv_update_time(loop);
      int timeout = uv_backend_timeout(loop);
      if (timeout == 0) return;
      epoll_event events[kBatch];
      int count = epoll_wait(uv_backend_fd(loop), events, kBatch, timeout);
      if (count <= 0) break;
      for (int i = 0; i < count; i++) {
        auto found = open_polls.find(events[i].data.fd);
        if (found == open_polls.end()) return;
        int ready = Translate(events[i].events) & found->second->wanted;
        if (ready == 0) return;
        found->second->owner->Ready(ready);
      }
    }
    uv_update_time(loop);
  }

  // 0 for what the loop is to deal with: errors, above all.
  static int Translate(uint32_t events) {
    if ((events & ~uint32_t{EPOLLIN | EPOLLOUT | EPOLLRDHUP}) != 0) return 0;
    return ((events & EPOLLIN) ? UV_READABLE : 0) | ((events & EPOLLOUT) ? UV_WRITABLE : 0) |
           ((events & EPOLLRDHUP) ? UV_DISCONNECT : 0);
  }

  void Ready(int events) {
    Napi::HandleScope scope(Env());
    // The callback may close this; the value keeps it from being collected before the end.
    Napi::Object self = Value();
    if (task_ != nullptr && events > 0) events = task_->Before(events);
    while (events != 0) {
      Call(self, events);
      events = task_ != nullptr && handle_ != nullptr ? task_->After() : 0;
    }
  }

  void Call(Napi::Object self, int events) {
    Napi::Env env = Env();
    napi_value argument = Napi::Number::New(env, events);
    napi_status status = napi_make_callback(env, *context_, self, callback_.Value(), 1, &argument, nullptr);
    if (status != napi_pending_exception) return;
    bool pending = false;
    napi_value exception;
    if (napi_is_exception_pending(env, &pending) == napi_ok && pending &&
        napi_get_and_clear_last_exception(env, &exception) == napi_ok) {
      napi_fatal_exception(env, exception);
    }
  }

  Handle* handle_ = nullptr;
  std::optional<Napi::AsyncContext> context_;
  Napi::FunctionReference callback_;
  PollTask* task_ = nullptr;
  std::unique_ptr<PollTask> eventfd_task_;
  Napi::ObjectReference task_object_;  // keeps a Stream
};

}  // namespace

void InitPoll(Napi::Env env, Napi::Object exports) { Poll::Init(env, exports); }
