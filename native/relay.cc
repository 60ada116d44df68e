// The Relay class: relay_thread.h's thread for JavaScript.
#include "addon.h"
#include "arguments.h"
#include "error.h"
#include "relay_thread.h"

namespace {

class Relay : public Napi::ObjectWrap<Relay> {
 public:
  static void Init(Napi::Env env, Napi::Object exports) {
    exports.Set("Relay", DefineClass(env, "Relay",
                                     {
                                         InstanceMethod<&Relay::Add>("add"),
                                         InstanceMethod<&Relay::Retarget>("retarget"),
                                         InstanceMethod<&Relay::Remove>("remove"),
                                         InstanceMethod<&Relay::Count>("count"),
                                         InstanceMethod<&Relay::CloseMethod>("close"),
                                     }));
  }

  explicit Relay(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Relay>(info) {}

 private:
  Napi::Value Add(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    int source = Fd(info[0], "source");
    int target = Fd(info[1], "target");
    if (thread_.closed()) throw Napi::Error::New(env, "the relay was closed");
    uint32_t id;
    if (int error = thread_.Add(source, target, &id); error != 0) throw SystemError(env, error, "relay");
    if (!held_) {
      // A thread that runs keeps its object: it is ended by close() or with the environment, not by the garbage
      // collector.
      held_ = true;
      Ref();
      napi_add_env_cleanup_hook(env, OnEnvironmentEnd, this);
    }
    return Napi::Number::New(env, id);
  }

  Napi::Value Retarget(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    uint32_t id = static_cast<uint32_t>(Integer(info[0], "id", 0, UINT32_MAX));
    if (int error = thread_.Retarget(id, Fd(info[1], "target")); error != 0) throw SystemError(env, error, "relay");
    return env.Undefined();
  }

  Napi::Value Remove(const Napi::CallbackInfo& info) {
    thread_.Remove(static_cast<uint32_t>(Integer(info[0], "id", 0, UINT32_MAX)));
    return info.Env().Undefined();
  }

  Napi::Value Count(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    if (info[0].IsUndefined()) return Napi::Number::New(env, static_cast<double>(thread_.Total()));
    auto count = thread_.Count(static_cast<uint32_t>(Integer(info[0], "id", 0, UINT32_MAX)));
    if (!count) throw Napi::RangeError::New(env, "the relay has no pair of that id");
    return Napi::Number::New(env, static_cast<double>(*count));
  }

  Napi::Value CloseMethod(const Napi::CallbackInfo& info) {
    Close(info.Env());
    return info.Env().Undefined();
  }

  void Close(Napi::Env env) {
    thread_.Close();
    if (!held_) return;
    held_ = false;
    napi_remove_env_cleanup_hook(env, OnEnvironmentEnd, this);
    Unref();
  }

  static void OnEnvironmentEnd(void* data) {
    Relay* self = static_cast<Relay*>(data);
    self->held_ = false;
    self->thread_.Close();
  }

  RelayThread thread_;
  bool held_ = false;
};

}  // namespace

void InitRelay(Napi::Env env, Napi::Object exports) { Relay::Init(env, exports); }
