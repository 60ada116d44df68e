// One message in one buffer, plainly right, with nothing before it that is not dealt with: that is what is taken here.
// Anything else stays in its place for TypeScript (guest/link/virtio/messages.ts), which sees it as if there were no
// path. The bridge can rewrite its rings and buffers at any time: a message is copied, then checked.
#include "device_path.h"

#include <sys/epoll.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "addon.h"
#include "arguments.h"
#include "system_call.h"

namespace {

constexpr napi_type_tag kPathTag = {0x8c1fd24e6a07b395, 0x94d3e7b02c5f618a};
// Messages taken at one go, before timers and other sockets get a turn.
constexpr int kBatch = 256;
// Of polling without an end, before others get a turn; and how often it is asked whether they want one.
constexpr uint64_t kSpinNs = 50000;
constexpr uint64_t kLookNs = 4000;
constexpr int kPauses = 16;

const uint32_t kLayout[] = {
    offsetof(DevicePathState, received), offsetof(DevicePathState, free_count), offsetof(DevicePathState, free),
    offsetof(DevicePathState, answer),   sizeof(DevicePathState),               sizeof(DriverState),
};

void PauseCpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Of this thread: each keeps the others waiting while it polls.
thread_local size_t paths_of_thread = 0;

// A ring as [state, lengths, descriptors, available, used, eventIndex].
void SetRing(DriverRing* ring, Napi::Value value) {
  Napi::Env env = value.Env();
  if (!value.IsArray()) throw Napi::TypeError::New(env, "a ring must be an array");
  Napi::Array parts = value.As<Napi::Array>();
  Elements<int32_t> state = Int32Array(parts.Get(0u), "state", sizeof(DriverState) / sizeof(int32_t));
  auto lengths = TypedArray<double, napi_float64_array>(parts.Get(1u), "lengths", "a Float64Array");
  Bytes descriptors = ByteArray(parts.Get(2u), "descriptors");
  Bytes available = ByteArray(parts.Get(3u), "available");
  Bytes used = ByteArray(parts.Get(4u), "used");
  size_t size = lengths.length;
  bool is_power = size > 0 && size <= 32768 && (size & (size - 1)) == 0;
  if (!is_power || descriptors.length != 16 * size || available.length != 6 + 2 * size ||
      used.length != 6 + 8 * size) {
    throw Napi::RangeError::New(env, "a ring whose parts do not belong together");
  }
  ring->Set(reinterpret_cast<DriverState*>(state.data), lengths.data, descriptors.data, available.data, used.data,
            static_cast<uint32_t>(size), parts.Get(5u).ToBoolean());
}

}  // namespace

void DevicePath::Init(Napi::Env env, Napi::Object exports) {
  exports.Set("DevicePath", DefineClass(env, "DevicePath",
                                        {
                                            InstanceMethod<&DevicePath::Rings>("rings"),
                                            InstanceMethod<&DevicePath::Notifications>("notifications"),
                                            InstanceMethod<&DevicePath::Device>("device"),
                                            InstanceMethod<&DevicePath::RunMethod>("run"),
                                            InstanceMethod<&DevicePath::Continues>("continues"),
                                        }));
}

DevicePath::DevicePath(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<DevicePath>(info),
      polling_(static_cast<BusyPolling::Kind>(Integer(info[2], "polling", 0, 2))) {
  Napi::Env env = info.Env();
  Bytes state = ByteArray(info[0], "state");
  constexpr size_t kLayoutWords = sizeof kLayout / sizeof *kLayout;
  auto layout = TypedArray<uint32_t, napi_uint32_array>(info[1], "layout", "a Uint32Array", kLayoutWords);
  if (!std::equal(kLayout, kLayout + kLayoutWords, layout.data) || state.length < sizeof(DevicePathState) ||
      reinterpret_cast<uintptr_t>(state.data) % alignof(DevicePathState) != 0) {
    throw Napi::Error::New(env, "the device path's state is laid out otherwise: the addon is of another build");
  }
  state_ = reinterpret_cast<DevicePathState*>(state.data);
  Keep(info.This(), "state", info[0]);
  if (napi_get_uv_event_loop(env, &loop_) != napi_ok) throw Napi::Error::New(env, "there is no event loop");
  if (napi_type_tag_object(env, info.This(), &kPathTag) != napi_ok) throw Napi::Error::New(env, "cannot make a path");
  paths_of_thread++;
  is_counted_ = true;
}

DevicePath::~DevicePath() {
  if (is_counted_) paths_of_thread--;
}

DevicePath* DevicePath::Of(Napi::Env env, napi_value object) {
  bool is_path = false;
  if (napi_check_object_type_tag(env, object, &kPathTag, &is_path) != napi_ok || !is_path) return nullptr;
  return Unwrap(Napi::Object(env, object));
}

// Whether something is left to TypeScript. `found`: a message was dealt with.
bool DevicePath::Run(bool from_loop, bool* found) {
  if (!is_set_ || access_ == nullptr) return true;
  for (int n = 0; n < kBatch; n++) {
    if (state_->stopped != 0 || state_->unsent != 0) return true;
    DriverRing::Used used;
    DriverRing::Next next = to_device_.ring.Peek(&used);
    if (next == DriverRing::Next::kNone) return false;
    if (next != DriverRing::Next::kBuffer || used.length > sizeof message_) return true;
    MessageHeader header;
    RegionAccess access;
    if (used.length < sizeof header) return true;
    std::memcpy(message_, to_device_.bytes + to_device_.Offset(used.id), used.length);
    std::memcpy(&header, message_, sizeof header);
    if (header.size != used.length || !access_->Takes(message_, header, &access)) return true;
    to_device_.ring.Take(used);
    to_device_.ring.Add(used.id, to_device_.address + to_device_.Offset(used.id), to_device_.size, true);
    // Publishing buffers in batches spares most notifications, each of which leaves the VM.
    if (to_device_.ring.unpublished() >= to_device_.ring.size() / 4 && to_device_.ring.Publish()) {
      Notify(kToDevice, from_loop);
    }
    state_->received++;
    *found = true;
    uint8_t answer[DeviceAccess::kMostReply];
    size_t length = access_->Carry(message_, header, access, answer, from_loop);
    if (length > 0) Answer(answer, length, from_loop);
  }
  return true;
}

// Sends an answer, or leaves it to TypeScript where that has something to be sent before it, or no buffer is free.
// Where the link is lost it is nobody's.
void DevicePath::Answer(const uint8_t* answer, size_t length, bool from_loop) {
  DriverRing& ring = from_device_.ring;
  DriverRing::Used used;
  while (ring.Peek(&used) == DriverRing::Next::kBuffer && state_->free_count < DevicePathState::kMostBuffers) {
    ring.Take(used);
    state_->free[state_->free_count++] = used.id;
  }
  if (state_->stopped != 0 || state_->free_count == 0) {
    std::memcpy(state_->answer, answer, length);
    state_->unsent = static_cast<uint32_t>(length);
    return;
  }
  uint32_t id = state_->free[--state_->free_count];
  std::memcpy(from_device_.bytes + from_device_.Offset(id), answer, length);
  ring.Add(id, from_device_.address + from_device_.Offset(id), static_cast<uint32_t>(length), false);
  if (ring.Publish()) Notify(kFromDevice, from_loop);
}

// 4.1.5.2 "Available Buffer Notifications".
void DevicePath::Notify(Index queue, bool from_loop) {
  if (places_[queue] != nullptr) {
    *reinterpret_cast<volatile uint16_t*>(places_[queue]) = static_cast<uint16_t>(queue);
    return;
  }
  if (eventfds_ != nullptr) {
    uint64_t one = 1;
    if (eventfds_[queue] >= 0) SystemCall(SYS_write, eventfds_[queue], Argument(&one), sizeof one);
    return;
  }
  if (notify_.IsEmpty()) return;
  Napi::Env env = Env();
  Napi::HandleScope scope(env);
  napi_value number = Napi::Number::New(env, queue);
  napi_value result;
  napi_value exception;
  if (napi_call_function(env, env.Undefined(), notify_.Value(), 1, &number, &result) != napi_ok && from_loop &&
      napi_get_and_clear_last_exception(env, &exception) == napi_ok) {
    napi_fatal_exception(env, exception);
  }
}

int DevicePath::Serve(int events) {
  bool found = false;
  for (;;) {
    bool has_come = false;
    if (Run(true, &has_come)) return events;
    found = found || has_come;
    // Copies are TypeScript's.
    if (!copies_.IsIdle()) return events;
    bool is_alone = paths_of_thread == 1 || polling_.IsEndless();
    if (is_alone && polling_.Continues(has_come, BusyPolling::Now)) {
      if (Spin()) continue;
      if (polling_.IsEndless()) return events;
    }
    if (to_device_.ring.Arm()) break;
  }
  // With nothing found it was about something else.
  return found ? 0 : events;
}

// Polls as long as it pays and nobody else wants anything. Whether something came.
bool DevicePath::Spin() {
  uint64_t now = BusyPolling::Now();
  const auto clock = [&now] { return now; };
  uint64_t begun = now;
  uint64_t look = now + kLookNs;
  do {
    for (int n = 0; n < kPauses; n++) {
      if (!IsIdle()) return true;
      PauseCpu();
    }
    now = BusyPolling::Now();
    if (now >= look) {
      look = now + kLookNs;
      epoll_event event;
      if (epoll_wait(uv_backend_fd(loop_), &event, 1, 0) != 0) return false;
      if (now - begun >= kSpinNs && polling_.IsEndless()) return false;
    }
  } while (polling_.Continues(false, clock));
  return false;
}

// To the device and from it, each as [ring, bytes, address, size], and the ring of copies; or nothing: the link is
// being set up again.
Napi::Value DevicePath::Rings(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  is_set_ = false;
  if (info[0].IsUndefined()) return env.Undefined();
  Napi::Array all = Napi::Array::New(env, 3);
  for (uint32_t n = 0; n < 2; n++) {
    if (!info[n].IsArray()) throw Napi::TypeError::New(env, "a queue must be an array");
    Napi::Array parts = info[n].As<Napi::Array>();
    Queue& queue = n == kToDevice ? to_device_ : from_device_;
    SetRing(&queue.ring, parts.Get(0u));
    Bytes bytes = ByteArray(parts.Get(1u), "bytes");
    queue.bytes = bytes.data;
    queue.address = static_cast<uint64_t>(Integer(parts.Get(2u), "address"));
    queue.size = static_cast<uint32_t>(Integer(parts.Get(3u), "size", DeviceAccess::kMostReply, UINT32_MAX));
    if (queue.ring.size() > DevicePathState::kMostBuffers || bytes.length / queue.size < queue.ring.size()) {
      throw Napi::RangeError::New(env, "a queue whose buffers do not fit");
    }
    all.Set(n, parts);
  }
  SetRing(&copies_, info[2]);
  all.Set(2u, info[2]);
  Keep(info.This(), "rings", all);
  is_set_ = true;
  return env.Undefined();
}

// A function that is called with a queue's number; or an ArrayBuffer, and where in it each queue's number is stored; or
// an Int32Array of eventfds.
Napi::Value DevicePath::Notifications(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  places_[kToDevice] = places_[kFromDevice] = nullptr;
  eventfds_ = nullptr;
  notify_.Reset();
  Keep(info.This(), "places", info[0]);
  if (info[0].IsFunction()) {
    notify_ = Napi::Weak(info[0].As<Napi::Function>());
    return env.Undefined();
  }
  if (info[0].IsTypedArray()) {
    eventfds_ = Int32Array(info[0], "eventfds", kFromDevice + 1).data;
  } else {
    Bytes registers = ArrayBufferBytes(info[0], "registers");
    for (Index queue : {kToDevice, kFromDevice}) {
      double most = static_cast<double>(registers.length) - sizeof(uint16_t);
      int64_t offset = Integer(info[1 + queue], "offset", 0, most);
      if (offset % sizeof(uint16_t) != 0) throw Napi::RangeError::New(env, "offset is not aligned");
      places_[queue] = registers.data + offset;
    }
  }
  return env.Undefined();
}

Napi::Value DevicePath::Device(const Napi::CallbackInfo& info) {
  DeviceAccess* access = DeviceAccess::Of(info.Env(), info[0]);
  if (access == nullptr) throw Napi::TypeError::New(info.Env(), "device must be a DeviceAccess");
  access_ = access;
  Keep(info.This(), "access", info[0]);
  return info.Env().Undefined();
}

// Deals with what it can, for a caller in JavaScript.
Napi::Value DevicePath::RunMethod(const Napi::CallbackInfo& info) {
  bool found = false;
  Run(false, &found);
  return info.Env().Undefined();
}

// See BusyPolling; a test gives the time, in microseconds.
Napi::Value DevicePath::Continues(const Napi::CallbackInfo& info) {
  bool found = info[0].ToBoolean();
  bool continues = info[1].IsUndefined() ? polling_.Continues(found, BusyPolling::Now)
                                         : polling_.Continues(found, [time = Integer(info[1], "now")] {
                                             return static_cast<uint64_t>(time) * 1000;
                                           });
  return Napi::Boolean::New(info.Env(), continues);
}

PollTask* DevicePathTask(Napi::Env env, napi_value object, int fd) {
  class Task : public PollTask {
   public:
    Task(DevicePath* path, int fd) : path_(path), fd_(fd) {}
    int Before(int events) override {
      uint64_t count;
      // Somebody else may have been faster.
      if (SystemCall(SYS_read, fd_, Argument(&count), sizeof count) == -EAGAIN) return 0;
      return path_->Serve(events);
    }
    bool TakeRan() override { return path_->TakeRan(); }

   private:
    DevicePath* path_;
    int fd_;
  };
  DevicePath* path = DevicePath::Of(env, object);
  return path == nullptr ? nullptr : new Task(path, fd);
}

void InitDevicePath(Napi::Env env, Napi::Object exports) { DevicePath::Init(env, exports); }
