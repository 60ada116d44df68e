// Words only: reads and writes of 1, 2 or 4 bytes at a multiple of their size, which are one access of the device's
// whatever its registers are; and REGION_WRITE_MULTI, if it is made of such. Config space's writes, which may begin a
// reset, and whatever has to wait are TypeScript's (guest/function/endpoint.ts), as is all that does not pass the
// checks.
#include "device_access.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "addon.h"
#include "arguments.h"

namespace {

constexpr napi_type_tag kAccessTag = {0x5a0c6e1b7d934f28, 0xb7c1f0e5d2a94836};
constexpr uint32_t kEio = 5;
constexpr uint32_t kMostErrno = 4095;

// The words of `layout`: TypeScript's table of the state has to be ours.
const uint32_t kLayout[] = {
    offsetof(DeviceState, reads),
    offsetof(DeviceState, device),
    offsetof(DeviceRegions, count),
    offsetof(DeviceRegions, posted),
    sizeof(DeviceState),
};

RegionAccess AccessOf(const WriteMultiEntry& entry) { return {entry.offset, entry.region, entry.count}; }

uint32_t WordFrom(const uint8_t* data, uint32_t count) {
  uint32_t value = 0;
  std::memcpy(&value, data, count);
  return value;
}

uint32_t ErrnoOf(double answer) {
  return answer <= -1 && answer >= -double{kMostErrno} ? static_cast<uint32_t>(-answer) : kEio;
}

}  // namespace

void DeviceAccess::Init(Napi::Env env, Napi::Object exports) {
  exports.Set("DeviceAccess", DefineClass(env, "DeviceAccess",
                                          {
                                              InstanceMethod<&DeviceAccess::Registers>("registers"),
                                              InstanceMethod<&DeviceAccess::SetDoorbells>("doorbells"),
                                              InstanceMethod<&DeviceAccess::Answer>("answer"),
                                              InstanceMethod<&DeviceAccess::Measure>("measure"),
                                          }));
}

DeviceAccess::DeviceAccess(const Napi::CallbackInfo& info) : Napi::ObjectWrap<DeviceAccess>(info) {
  Napi::Env env = info.Env();
  Bytes state = ByteArray(info[0], "state");
  constexpr size_t kLayoutWords = sizeof kLayout / sizeof *kLayout;
  auto layout = TypedArray<uint32_t, napi_uint32_array>(info[1], "layout", "a Uint32Array", kLayoutWords);
  if (!std::equal(kLayout, kLayout + kLayoutWords, layout.data) || state.length < sizeof(DeviceState) ||
      reinterpret_cast<uintptr_t>(state.data) % alignof(DeviceState) != 0) {
    throw Napi::Error::New(env, "the state of device accesses is laid out otherwise: the addon is of another build");
  }
  if (!info[2].IsObject()) throw Napi::TypeError::New(env, "device must be an object");
  Napi::Object device = info[2].As<Napi::Object>();
  Napi::Value read = device.Get("readWord");
  Napi::Value write = device.Get("writeWord");
  if (!read.IsFunction() || !write.IsFunction()) throw Napi::TypeError::New(env, "device has no words");
  state_ = reinterpret_cast<DeviceState*>(state.data);
  Keep(info.This(), "state", info[0]);
  Keep(info.This(), "device", device);
  Keep(info.This(), "read", read);
  Keep(info.This(), "write", write);
  device_ = Napi::Weak(device);
  read_ = Napi::Weak(read.As<Napi::Function>());
  write_ = Napi::Weak(write.As<Napi::Function>());
  context_.emplace(env, "virtio-vfio-user:device", info.This().As<Napi::Object>());
  if (napi_type_tag_object(env, info.This(), &kAccessTag) != napi_ok) {
    throw Napi::Error::New(env, "cannot make a DeviceAccess");
  }
}

DeviceAccess* DeviceAccess::Of(Napi::Env env, napi_value object) {
  bool is_access = false;
  if (napi_check_object_type_tag(env, object, &kAccessTag, &is_access) != napi_ok || !is_access) return nullptr;
  return Unwrap(Napi::Object(env, object));
}

bool DeviceAccess::IsWord(const RegionAccess& access, uint32_t regions) const {
  bool is_size = access.count == 1 || access.count == 2 || access.count == 4;
  return is_size && access.offset % access.count == 0 && ((regions >> (access.region & 31)) & 1) == 1;
}

bool DeviceAccess::Takes(const uint8_t* message, const MessageHeader& header, RegionAccess* access) const {
  if (header.size > kMostMessage || !CheckAccess(message, header, state_->device, access)) return false;
  if (header.command == kRegionRead) return IsWord(*access, state_->readable);
  if (header.command == kRegionWrite) return IsWord(*access, state_->writable);
  for (size_t at = sizeof header + kWriteMultiHead; at < header.size; at += sizeof(WriteMultiEntry)) {
    WriteMultiEntry entry;
    std::memcpy(&entry, message + at, sizeof entry);
    if (!IsWord(AccessOf(entry), state_->writable)) return false;
  }
  return true;
}

size_t DeviceAccess::Carry(const uint8_t* message, const MessageHeader& header, const RegionAccess& access,
                           uint8_t* reply, bool from_loop) {
  const uint32_t begun = latencies_.Now();
  const uint8_t* body = message + sizeof header;
  // REGION_WRITE_MULTI is answered by its head, and REGION_WRITE by what stands in front of its data.
  size_t length = sizeof header + (header.command == kRegionWriteMulti ? kWriteMultiHead : sizeof access);
  MessageHeader answer{header.id, header.command, static_cast<uint32_t>(length), kReply, 0};
  std::memcpy(reply + sizeof answer, body, length - sizeof answer);
  if (header.command == kRegionRead) {
    size_t from_memory = registers_.Copy(access, reply + length);
    if (from_memory > 0) {
      state_->reads_from_memory++;
    } else {
      state_->reads++;
      double value = Call(access, nullptr, from_loop);
      if (value >= 0) {
        uint32_t word = static_cast<uint32_t>(value);
        std::memcpy(reply + length, &word, access.count);
      } else {
        answer.error = ErrnoOf(value);
      }
    }
    answer.size += access.count;
  } else {
    bool is_multi = header.command == kRegionWriteMulti;
    bool is_posted = IsPosted(header, state_->device, access);
    (is_multi ? state_->writes_multi : state_->writes)++;
    uint32_t error = !is_multi
                         ? Write(access, body + sizeof access, from_loop)
                         : WriteMulti(body + kWriteMultiHead, header.size - length, from_loop);
    // Counted when it is done: what it did to registers is in their memory.
    if (writes_done_ != nullptr) __atomic_fetch_add(writes_done_, 1, __ATOMIC_SEQ_CST);
    if (!is_posted) answer.error = error;
  }
  latencies_.Record(header.command, begun);
  if ((header.flags & kNoReply) != 0) return 0;
  if (answer.error != 0) {
    answer.flags |= kError;
    answer.size = sizeof answer;
  }
  std::memcpy(reply, &answer, sizeof answer);
  return answer.size;
}

// 0, or an errno.
uint32_t DeviceAccess::Write(const RegionAccess& access, const uint8_t* data, bool from_loop) {
  uint32_t value = WordFrom(data, access.count);
  if (RingDoorbell(access, value)) return 0;
  double answer = Call(access, &value, from_loop);
  return answer == 0 ? 0 : ErrnoOf(answer);
}

// The writes behind one that failed are not done.
uint32_t DeviceAccess::WriteMulti(const uint8_t* message, size_t length, bool from_loop) {
  uint8_t entries[kMostMessage];
  std::memcpy(entries, message, length);
  for (size_t at = 0; at < length; at += sizeof(WriteMultiEntry)) {
    WriteMultiEntry entry;
    std::memcpy(&entry, entries + at, sizeof entry);
    uint32_t error = Write(AccessOf(entry), entry.data, from_loop);
    if (error != 0) return error;
  }
  return 0;
}

// Only while the function runs, which is while its register memory is valid.
bool DeviceAccess::RingDoorbell(const RegionAccess& access, uint32_t value) {
  if (doorbells_.empty() || access.count != sizeof value || !registers_.IsValid()) return false;
  for (const Doorbells& range : doorbells_) {
    if (range.region != access.region || access.offset < range.offset) continue;
    uint64_t skipped = access.offset - range.offset;
    if (skipped >= range.size || skipped % range.stride != 0) continue;
    if (!range.target->Write(static_cast<uint32_t>(skipped / range.stride), value)) return false;
    state_->doorbells++;
    return true;
  }
  return false;
}

// What the device answers: a value, or 0 for a write; or an errno, negative.
double DeviceAccess::Call(const RegionAccess& access, const uint32_t* value, bool from_loop) {
  napi_env env = Env();
  Napi::HandleScope scope(env);
  // Not to be collected, whoever drops it in the call.
  [[maybe_unused]] Napi::Object self = Value();
  ran_ = true;
  napi_value arguments[4];
  size_t count = value == nullptr ? 3 : 4;
  double answer = -double{kEio};
  napi_value result = nullptr;
  if (napi_create_uint32(env, access.region, &arguments[0]) != napi_ok ||
      napi_create_double(env, static_cast<double>(access.offset), &arguments[1]) != napi_ok ||
      napi_create_uint32(env, access.count, &arguments[2]) != napi_ok ||
      (value != nullptr && napi_create_uint32(env, *value, &arguments[3]) != napi_ok)) {
    return answer;
  }
  napi_value device = device_.Value();
  napi_value function = value == nullptr ? read_.Value() : write_.Value();
  napi_status status = from_loop
                           ? napi_make_callback(env, *context_, device, function, count, arguments, &result)
                           : napi_call_function(env, device, function, count, arguments, &result);
  if (status == napi_ok) {
    napi_get_value_double(env, result, &answer);
    return answer;
  }
  // A device's exceptions do not come here: this one is a mistake of ours, or the end of the environment.
  bool is_pending = false;
  napi_value exception;
  if (from_loop && napi_is_exception_pending(env, &is_pending) == napi_ok && is_pending &&
      napi_get_and_clear_last_exception(env, &exception) == napi_ok) {
    napi_fatal_exception(env, exception);
  }
  return answer;
}

// Reads are answered from a Uint8Array as a Uint32Array of areas says, once all before them is done; `counts`: writes
// that are done are counted in it.
Napi::Value DeviceAccess::Registers(const Napi::CallbackInfo& info) {
  writes_done_ = nullptr;
  registers_.Set(info[0], info[1]);
  if (info[0].IsUndefined() || !info[2].ToBoolean()) return info.Env().Undefined();
  writes_done_ = registers_.WritesDone();
  return info.Env().Undefined();
}

// The words of shared/histogram.ts; undefined: nobody looks.
Napi::Value DeviceAccess::Measure(const Napi::CallbackInfo& info) {
  latencies_.words = nullptr;
  latencies_kept_.Reset();
  if (info[0].IsUndefined()) return info.Env().Undefined();
  constexpr size_t kLeast = Latencies::kCommands * Latencies::kWords;
  latencies_.words = TypedWords<uint32_t>(info[0], napi_uint32_array, "latencies", kLeast, &latencies_kept_);
  return info.Env().Undefined();
}

// Bytes [offset, offset + count * stride) of a region are doorbells of an object's.
Napi::Value DeviceAccess::SetDoorbells(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  uint32_t region = static_cast<uint32_t>(Integer(info[0], "region", 0, kMaxRegions - 1));
  uint64_t offset = static_cast<uint64_t>(Integer(info[1], "offset"));
  uint32_t stride = static_cast<uint32_t>(Integer(info[2], "stride", sizeof(uint32_t), 1 << 20));
  uint64_t count = static_cast<uint64_t>(Integer(info[3], "count", 1, 1 << 20));
  DoorbellTarget* target = DoorbellTargetOf(env, info[4]);
  if (target == nullptr) throw Napi::TypeError::New(env, "target has no doorbells");
  std::string name = "doorbells" + std::to_string(doorbells_.size());
  Keep(info.This(), name.c_str(), info[4]);
  doorbells_.push_back({region, offset, stride * count, stride, target});
  return env.Undefined();
}

// For a caller in JavaScript: a whole message; the length of its reply, which is written to `reply`; -1 when it is not
// dealt with here.
Napi::Value DeviceAccess::Answer(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Bytes message = ByteArray(info[0], "message");
  Bytes reply = ByteArray(info[1], "reply");
  if (reply.length < kMostReply) throw Napi::RangeError::New(env, "reply is too short");
  MessageHeader header;
  RegionAccess access;
  if (message.length < sizeof header) return Napi::Number::New(env, -1);
  std::memcpy(&header, message.data, sizeof header);
  if (header.size != message.length || !Takes(message.data, header, &access)) return Napi::Number::New(env, -1);
  return Napi::Number::New(env, static_cast<double>(Carry(message.data, header, access, reply.data, false)));
}

void InitDeviceAccess(Napi::Env env, Napi::Object exports) { DeviceAccess::Init(env, exports); }
