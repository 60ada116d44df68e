// Readiness of a file descriptor on the environment's own event loop (uv_poll_t).
//
// The handle is on the heap because uv_close() ends it later than the JavaScript object may go. An environment that ends
// (process exit, worker.terminate()) closes what is still open, and waits for that.
#include <uv.h>

#include <optional>

#include "addon.h"
#include "arguments.h"
#include "error.h"

namespace {

class Poll;

struct Handle {
  uv_poll_t poll;
  Poll* owner;  // null once closing
  napi_async_cleanup_hook_handle hook;
};

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
    handle_ = handle;
    napi_add_async_cleanup_hook(env, OnEnvironmentEnd, handle, &handle->hook);
    // It must not be collected while it can still call back: close() undoes this.
    Ref();
  }

  ~Poll() override { Close(); }

 private:
  Napi::Value Start(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    int events = static_cast<int>(Integer(info[0], "events", 1, UV_READABLE | UV_WRITABLE | UV_DISCONNECT));
    if (handle_ == nullptr) throw SystemError(env, EBADF, "uv_poll_start");
    int error = uv_poll_start(&handle_->poll, events, OnEvents);
    if (error != 0) throw SystemError(env, -error, "uv_poll_start");
    return env.Undefined();
  }

  Napi::Value Stop(const Napi::CallbackInfo& info) {
    if (handle_ != nullptr) uv_poll_stop(&handle_->poll);
    return info.Env().Undefined();
  }

  Napi::Value CloseMethod(const Napi::CallbackInfo& info) {
    if (handle_ != nullptr) {
      Close();
      callback_.Reset();
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
    if (self != nullptr) self->Call(status < 0 ? status : events);
  }

  void Call(int events) {
    Napi::Env env = Env();
    Napi::HandleScope scope(env);
    napi_value argument = Napi::Number::New(env, events);
    // After this call `this` may be gone: the callback may have closed it.
    napi_status status =
        napi_make_callback(env, *context_, Value(), callback_.Value(), 1, &argument, nullptr);
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
};

}  // namespace

void InitPoll(Napi::Env env, Napi::Object exports) { Poll::Init(env, exports); }
