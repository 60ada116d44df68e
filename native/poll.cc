// Readiness of a file descriptor on the environment's own event loop (uv_poll_t).
//
// The handle is on the heap because uv_close() ends it later than the JavaScript object may go. An environment that
// ends (process exit, worker.terminate()) closes what is still open, and waits for that.
#include <poll.h>
#include <sys/epoll.h>
#include <uv.h>

#include <memory>
#include <optional>

#include "access_path.h"
#include "addon.h"
#include "arguments.h"
#include "device_path.h"
#include "error.h"
#include "linger.h"
#include "poll_task.h"

namespace {

class Poll;

struct Handle {
  uv_poll_t poll;
  Poll* owner;  // null once closing
  int fd;
  napi_async_cleanup_hook_handle hook;
};

class Poll : public Napi::ObjectWrap<Poll>, private Lingering {
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
    if (napi_get_uv_event_loop(env, &loop) != napi_ok) {
      throw Napi::Error::New(env, "this environment has no event loop");
    }
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
    Enlist(env, loop, fd, this);
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
      if (task_ == nullptr) {
        own_task_.reset(AccessPathTask(env, task, fd));
        if (own_task_ == nullptr) own_task_.reset(DevicePathTask(env, task, fd));
        task_ = own_task_.get();
      }
      task_object_ = Napi::Persistent(task.As<Napi::Object>());
    } else if (task.IsString() && task.As<Napi::String>().Utf8Value() == "eventfd") {
      own_task_.reset(EventfdTask(fd));
      task_ = own_task_.get();
    }
    if (task_ == nullptr) throw Napi::TypeError::New(env, "task must be \"eventfd\", a Stream or a path");
  }

  Napi::Value Start(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    int events = static_cast<int>(Integer(info[0], "events", 1, UV_READABLE | UV_WRITABLE | UV_DISCONNECT));
    if (handle_ == nullptr) throw SystemError(env, EBADF, "uv_poll_start");
    int error = uv_poll_start(&handle_->poll, events, OnEvents);
    if (error != 0) throw SystemError(env, -error, "uv_poll_start");
    wanted = events;
    return env.Undefined();
  }

  Napi::Value Stop(const Napi::CallbackInfo& info) {
    if (handle_ != nullptr) {
      uv_poll_stop(&handle_->poll);
      wanted = 0;
    }
    return info.Env().Undefined();
  }

  Napi::Value CloseMethod(const Napi::CallbackInfo& info) {
    if (handle_ != nullptr) {
      Close();
      callback_.Reset();
      // Who is called may close this; it is not to be collected before the end.
      if (!is_called_) {
        task_object_.Reset();
        Unref();
      }
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
    Delist(handle_->fd);
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
    Handle* handle = static_cast<Handle*>(poll->data);
    Poll* self = handle->owner;
    if (self == nullptr) return;
    uv_loop_t* loop = poll->loop;
    if (status >= 0) events = StillReady(handle->fd, events);
    if (status < 0 || events != 0) self->Ready(status < 0 ? status : events);
    Linger(loop);
  }

  // The loop asked for events some time ago: another's callback, or its lingering, may have dealt with them since.
  static int StillReady(int fd, int events) {
    pollfd now{fd, 0, 0};
    if ((events & UV_READABLE) != 0) now.events |= POLLIN;
    if ((events & UV_WRITABLE) != 0) now.events |= POLLOUT;
    if ((events & UV_DISCONNECT) != 0) now.events |= POLLRDHUP;
    if (poll(&now, 1, 0) <= 0) return 0;
    if ((now.revents & (POLLERR | POLLHUP)) != 0) return events;
    return ((now.revents & POLLIN) != 0 ? UV_READABLE : 0) | ((now.revents & POLLOUT) != 0 ? UV_WRITABLE : 0) |
           ((now.revents & POLLRDHUP) != 0 ? UV_DISCONNECT : 0);
  }

  bool Ready(int events) override {
    bool ran = false;
    is_called_ = true;
    if (task_ != nullptr && events > 0) {
      events = task_->Before(events);
      ran = task_->TakeRan();
    }
    if (events != 0 && handle_ != nullptr) {
      ran = true;
      Napi::HandleScope scope(Env());
      Napi::Object self = Value();
      while (events != 0) {
        Call(self, events);
        events = task_ != nullptr && handle_ != nullptr ? task_->After() : 0;
      }
    }
    is_called_ = false;
    if (handle_ == nullptr) {
      task_object_.Reset();
      Unref();
    }
    return ran;
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
  // Events are being dealt with.
  bool is_called_ = false;
  std::optional<Napi::AsyncContext> context_;
  Napi::FunctionReference callback_;
  PollTask* task_ = nullptr;
  std::unique_ptr<PollTask> own_task_;
  Napi::ObjectReference task_object_;  // keeps a Stream or a path
};

// The loop's descriptors are level-triggered: what is found here is there for the loop, too.
Napi::Value EventsWait(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  uv_loop_t* loop;
  if (napi_get_uv_event_loop(env, &loop) != napi_ok) throw Napi::Error::New(env, "this environment has no event loop");
  int except = Fd(info[0]);
  epoll_event events[2];
  int count = epoll_wait(uv_backend_fd(loop), events, 2, 0);
  return Napi::Boolean::New(env, count == 2 || (count == 1 && events[0].data.fd != except));
}

}  // namespace

void InitPoll(Napi::Env env, Napi::Object exports) {
  Poll::Init(env, exports);
  Export<EventsWait>(env, exports, "eventsWait");
}
