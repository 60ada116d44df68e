// NvmeLane for JavaScript: lane_nvme.h's queues. What changes them holds all lanes meanwhile.
#include <algorithm>

#include "lane_binding.h"
#include "lane_nvme.h"

namespace {

class NvmeObject : public Napi::ObjectWrap<NvmeObject> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "NvmeLane",
                       {
                           InstanceMethod<&NvmeObject::Set>("set"),
                           InstanceMethod<&NvmeObject::SetMask>("setMask"),
                           InstanceMethod<&NvmeObject::AddCompletion>("addCompletion"),
                           InstanceMethod<&NvmeObject::AddSubmission>("addSubmission"),
                           InstanceMethod<&NvmeObject::RemoveCompletion>("removeCompletion"),
                           InstanceMethod<&NvmeObject::RemoveSubmission>("removeSubmission"),
                           InstanceMethod<&NvmeObject::RemoveAll>("removeAll"),
                           InstanceMethod<&NvmeObject::StopCompletion>("stopCompletion"),
                           InstanceMethod<&NvmeObject::Watch>("watch"),
                           InstanceMethod<&NvmeObject::Unwatch>("unwatch"),
                           InstanceMethod<&NvmeObject::SetShadow>("setShadow"),
                           InstanceMethod<&NvmeObject::Abort>("abort"),
                           InstanceMethod<&NvmeObject::WasAborted>("wasAborted"),
                           InstanceMethod<&NvmeObject::Resolve>("resolve"),
                           InstanceMethod<&NvmeObject::CloseMethod>("close"),
                       });
  }

  explicit NvmeObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<NvmeObject>(info) {
    auto [lane, context] = LaneOf(info[0]);
    auto words = TypedArray<uint32_t, napi_uint32_array>(info[1], "doorbells", "a Uint32Array");
    size_t stride = Integer(info[2], "stride", 1, 1024);
    words_ = Napi::Persistent(info[1].As<Napi::Object>());
    lane_ = lane;
    context_ = context;
    // Each queue that there can be has two.
    most_ = static_cast<uint32_t>(std::min<size_t>(kLaneQueues, words.length / stride / 2));
    LaneContext::Hold hold(*context_);
    queues_ = std::make_unique<NvmeQueues>(*lane_, words.data, stride);
    lane_->Add(queues_.get());
  }

  ~NvmeObject() override { Close(); }

 private:
  // The lane's number of queues bounds every identifier.
  uint32_t Queue(Napi::Value value) {
    if (queues_ == nullptr) throw Napi::Error::New(value.Env(), "the lane was closed");
    return LaneNumber(value, "queue", static_cast<double>(most_) - 1);
  }

  Napi::Value Set(const Napi::CallbackInfo& info) {
    uint32_t page_size = static_cast<uint32_t>(Integer(info[0], "pageSize", 4096, 1 << 27));
    uint32_t max_transfer = static_cast<uint32_t>(Integer(info[1], "maxTransfer", 512, 1 << 30));
    if ((page_size & (page_size - 1)) != 0) throw Napi::RangeError::New(info.Env(), "pageSize is no power of two");
    LaneContext::Hold hold(*context_);
    queues_->page_size = page_size;
    queues_->max_transfer = max_transfer;
    queues_->sends_all_up = info[2].ToBoolean();
    return info.Env().Undefined();
  }

  Napi::Value SetMask(const Napi::CallbackInfo& info) {
    uint32_t mask = LaneNumber(info[0], "mask");
    LaneContext::Hold hold(*context_);
    queues_->mask = mask;
    return info.Env().Undefined();
  }

  Napi::Value AddCompletion(const Napi::CallbackInfo& info) {
    uint32_t id = Queue(info[0]);
    uint64_t base = LaneAddress(info[1], "base");
    uint32_t size = LaneNumber(info[2], "size", 4096);
    double vectors = static_cast<double>(context_->vectors.size());
    int32_t vector = static_cast<int32_t>(Integer(info[3], "vector", -1, vectors - 1));
    LaneContext::Hold hold(*context_);
    return Napi::Boolean::New(info.Env(), queues_->AddCompletion(id, base, size, vector));
  }

  Napi::Value AddSubmission(const Napi::CallbackInfo& info) {
    uint32_t id = Queue(info[0]);
    uint64_t base = LaneAddress(info[1], "base");
    uint32_t size = LaneNumber(info[2], "size", 4096);
    uint32_t completion = Queue(info[3]);
    LaneContext::Hold hold(*context_);
    return Napi::Boolean::New(info.Env(), queues_->AddSubmission(id, base, size, completion));
  }

  Napi::Value RemoveCompletion(const Napi::CallbackInfo& info) {
    uint32_t id = Queue(info[0]);
    LaneContext::Hold hold(*context_);
    queues_->RemoveCompletion(id);
    return info.Env().Undefined();
  }

  // What was answered before is posted.
  Napi::Value RemoveSubmission(const Napi::CallbackInfo& info) {
    uint32_t id = Queue(info[0]);
    LaneContext::Hold hold(*context_);
    lane_->TakeAnswers();
    queues_->RemoveSubmission(id);
    return info.Env().Undefined();
  }

  Napi::Value RemoveAll(const Napi::CallbackInfo& info) {
    LaneContext::Hold hold(*context_);
    queues_->RemoveAll();
    return info.Env().Undefined();
  }

  Napi::Value StopCompletion(const Napi::CallbackInfo& info) {
    uint32_t id = Queue(info[0]);
    LaneContext::Hold hold(*context_);
    queues_->StopCompletion(id);
    return info.Env().Undefined();
  }

  Napi::Value Watch(const Napi::CallbackInfo& info) {
    uint32_t number = LaneNumber(info[0], "number", most_ * 2.0 - 1);
    uint32_t value = LaneNumber(info[1], "value");
    LaneContext::Hold hold(*context_);
    queues_->Watch(number, value);
    return info.Env().Undefined();
  }

  Napi::Value Unwatch(const Napi::CallbackInfo& info) {
    uint32_t number = LaneNumber(info[0], "number");
    LaneContext::Hold hold(*context_);
    queues_->Unwatch(number);
    return info.Env().Undefined();
  }

  Napi::Value SetShadow(const Napi::CallbackInfo& info) {
    uint64_t doorbells = LaneAddress(info[0], "doorbells");
    uint64_t events = LaneAddress(info[1], "events");
    bool is_wanted = info[2].ToBoolean();
    LaneContext::Hold hold(*context_);
    queues_->SetShadow(doorbells, events, is_wanted ? most_ * 2 * sizeof(uint32_t) : 0);
    return info.Env().Undefined();
  }

  Napi::Value Abort(const Napi::CallbackInfo& info) {
    uint32_t id = Queue(info[0]);
    uint32_t command = LaneNumber(info[1], "command", UINT16_MAX);
    uint32_t status = LaneNumber(info[2], "status", 0x7fff);
    LaneContext::Hold hold(*context_);
    return Napi::Boolean::New(info.Env(), queues_->Abort(id, command, status));
  }

  Napi::Value WasAborted(const Napi::CallbackInfo& info) {
    uint32_t id = Queue(info[0]);
    return Napi::Boolean::New(info.Env(), queues_->WasAborted(id, LaneNumber(info[1], "index")));
  }

  // For tests: what a lane makes of a data pointer.
  Napi::Value Resolve(const Napi::CallbackInfo& info) {
    Bytes entry = ByteArray(info[0], "entry");
    if (entry.length < kLaneEntry) throw Napi::RangeError::New(info.Env(), "the entry is too short");
    uint64_t length = Integer(info[1], "length", 1);
    LaneContext::Hold hold(*context_);
    NvmeDataPointer pointer;
    if (!pointer.Resolve(context_->memory, entry.data, length, queues_->page_size)) return info.Env().Undefined();
    Napi::Float64Array result = Napi::Float64Array::New(info.Env(), pointer.ranges.size() * 2);
    for (size_t n = 0; n < pointer.ranges.size(); n++) {
      result[n * 2] = static_cast<double>(static_cast<int64_t>(pointer.ranges[n].address));
      result[n * 2 + 1] = static_cast<double>(pointer.ranges[n].length);
    }
    return result;
  }

  Napi::Value CloseMethod(const Napi::CallbackInfo& info) {
    Close();
    return info.Env().Undefined();
  }

  void Close() {
    if (queues_ == nullptr) return;
    LaneContext::Hold hold(*context_);
    lane_->Remove(queues_.get());
    queues_ = nullptr;
  }

  std::shared_ptr<Lane> lane_;
  std::shared_ptr<LaneContext> context_;
  uint32_t most_ = 0;
  std::unique_ptr<NvmeQueues> queues_;
  Napi::Reference<Napi::Object> words_;
};

}  // namespace

Napi::Function DefineNvmeLane(Napi::Env env) { return NvmeObject::Define(env); }
