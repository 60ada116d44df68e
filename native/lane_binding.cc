// Lane for JavaScript, and the exports of all that belongs to lanes: LaneContext is in lane_context_binding.cc,
// NvmeLane in lane_nvme_binding.cc.
#include "lane_binding.h"

#include <fcntl.h>

#include "addon.h"
#include "error.h"

namespace {

class LaneObject : public Napi::ObjectWrap<LaneObject> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "Lane",
                       {
                           InstanceMethod<&LaneObject::Start>("start"),
                           InstanceMethod<&LaneObject::Kick>("kick"),
                           InstanceMethod<&LaneObject::Delay>("delay"),
                           InstanceMethod<&LaneObject::SetPolling>("setPolling"),
                           InstanceMethod<&LaneObject::SetPaused>("setPaused"),
                           InstanceMethod<&LaneObject::Settle>("settle"),
                           InstanceMethod<&LaneObject::CloseMethod>("close"),
                       });
  }

  explicit LaneObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<LaneObject>(info) {
    Napi::Env env = info.Env();
    napi_type_tag_object(env, info.This(), &kLaneTag);
    context_ = LaneContextOf(info[0]);
    Bytes bytes = ArrayBufferBytes(info[1], "record");
    if (bytes.length < sizeof(LaneRecord)) throw Napi::RangeError::New(env, "the record is too small");
    if (reinterpret_cast<uintptr_t>(bytes.data) % alignof(LaneRecord) != 0) {
      throw Napi::RangeError::New(env, "the record is not aligned");
    }
    if (context_->lanes.size() >= kMaxLanes) throw Napi::RangeError::New(env, "there are too many lanes");
    uint32_t number = static_cast<uint32_t>(context_->lanes.size());
    int signal_fd = Check(env, fcntl(Fd(info[2], "signal"), F_DUPFD_CLOEXEC, 0), "fcntl");
    record_ = Napi::Persistent(info[1].As<Napi::ArrayBuffer>());
    LaneContext::Hold hold(*context_);
    // Held from its first moment on, as all are.
    lane = std::make_shared<Lane>(*context_, number, reinterpret_cast<LaneRecord*>(bytes.data), signal_fd);
    lane->Enter();
  }

  ~LaneObject() override { Close(); }

  std::shared_ptr<Lane> lane;

  std::shared_ptr<LaneContext> context() { return context_; }
  void CheckOpen(Napi::Env env) {
    if (lane == nullptr) throw Napi::Error::New(env, "the lane was closed");
  }

 private:
  Napi::Value Start(const Napi::CallbackInfo& info) {
    CheckOpen(info.Env());
    int cpu = info[0].IsUndefined() ? -1 : static_cast<int>(Integer(info[0], "cpu", 0, INT32_MAX));
    if (lane->has_thread()) throw Napi::Error::New(info.Env(), "the lane has a thread");
    int error = lane->Start(cpu);
    if (error != 0) throw SystemError(info.Env(), error, "pthread_create");
    // A thread that runs keeps its object, which is ended by close() or with the environment.
    Ref();
    is_kept_ = true;
    napi_add_env_cleanup_hook(info.Env(), OnEnvironmentEnd, this);
    return info.Env().Undefined();
  }

  Napi::Value Kick(const Napi::CallbackInfo& info) {
    CheckOpen(info.Env());
    return Napi::Number::New(info.Env(), lane->Kick(LaneNumber(info[0], "budget")));
  }

  Napi::Value Delay(const Napi::CallbackInfo& info) {
    CheckOpen(info.Env());
    return Napi::Number::New(info.Env(), lane->Delay());
  }

  Napi::Value SetPolling(const Napi::CallbackInfo& info) {
    CheckOpen(info.Env());
    LanePolling polling = static_cast<LanePolling>(Integer(info[0], "polling", 0, 3));
    LaneContext::Hold hold(*context_);
    lane->SetPolling(polling);
    return info.Env().Undefined();
  }

  Napi::Value SetPaused(const Napi::CallbackInfo& info) {
    CheckOpen(info.Env());
    LaneContext::Hold hold(*context_);
    lane->SetPaused(info[0].ToBoolean());
    return info.Env().Undefined();
  }

  Napi::Value Settle(const Napi::CallbackInfo& info) {
    CheckOpen(info.Env());
    LaneContext::Hold hold(*context_);
    lane->Settle();
    return info.Env().Undefined();
  }

  Napi::Value CloseMethod(const Napi::CallbackInfo& info) {
    bool was_kept = is_kept_;
    Close();
    if (was_kept) {
      napi_remove_env_cleanup_hook(info.Env(), OnEnvironmentEnd, this);
      Unref();
    }
    return info.Env().Undefined();
  }

  void Close() {
    is_kept_ = false;
    if (lane == nullptr) return;
    lane->Stop();
    lane = nullptr;
  }

  static void OnEnvironmentEnd(void* data) {
    LaneObject* self = static_cast<LaneObject*>(data);
    self->is_kept_ = false;
    self->lane->Stop();
  }

  std::shared_ptr<LaneContext> context_;
  Napi::Reference<Napi::ArrayBuffer> record_;
  bool is_kept_ = false;
};

}  // namespace

LaneAndContext LaneOf(Napi::Value value) {
  LaneObject& object = LaneUnwrap<LaneObject>(value, kLaneTag, "lane");
  object.CheckOpen(value.Env());
  return {object.lane, object.context()};
}

void InitLane(Napi::Env env, Napi::Object exports) {
  exports.Set("LaneContext", DefineLaneContext(env));
  exports.Set("Lane", LaneObject::Define(env));
  exports.Set("NvmeLane", DefineNvmeLane(env));
}
