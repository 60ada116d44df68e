// The one message that is answered here is a plain REGION_READ of 1, 2, 4 or 8 bytes (vfio-user,
// "VFIO_USER_REGION_READ"); everything else is left to JavaScript.
#include "register_memory.h"

#include <cstring>

namespace {

struct Message {
  MessageHeader header;
  RegionAccess access;
};
static_assert(sizeof(Message) == 32);

constexpr uint32_t kMostBytes = 8;
static_assert(sizeof(Message) + kMostBytes == RegisterMemory::kMostReply);

// The memory's first words.
enum Head : size_t { kWritesSent, kWritesDone, kValid, kHeadWords = 4 };

// An entry of `areas`.
enum Area : size_t { kRegion, kOffset, kSize, kAt, kAreaWords };

// One load for what is aligned, as the device's own stores are: neither sees half of the other's.
void Load(const uint8_t* from, uint32_t count, uint8_t* to) {
  if (reinterpret_cast<uintptr_t>(from) % count != 0) {
    std::memcpy(to, from, count);
    return;
  }
  uint64_t value;
  switch (count) {
    case 1:
      value = __atomic_load_n(from, __ATOMIC_RELAXED);
      break;
    case 2:
      value = __atomic_load_n(reinterpret_cast<const uint16_t*>(from), __ATOMIC_RELAXED);
      break;
    case 4:
      value = __atomic_load_n(reinterpret_cast<const uint32_t*>(from), __ATOMIC_RELAXED);
      break;
    default:
      value = __atomic_load_n(reinterpret_cast<const uint64_t*>(from), __ATOMIC_RELAXED);
      break;
  }
  std::memcpy(to, &value, count);
}

}  // namespace

void RegisterMemory::Set(Napi::Value memory, Napi::Value areas) {
  Napi::Env env = memory.Env();
  count_ = 0;
  memory_ = {};
  memory_kept_.Reset();
  areas_kept_.Reset();
  if (memory.IsUndefined()) return;
  Bytes bytes = ByteArray(memory, "memory");
  auto [words, length] = TypedArray<uint32_t, napi_uint32_array>(areas, "areas", "a Uint32Array");
  if (length % kAreaWords != 0 || bytes.length < kHeadWords * sizeof(uint32_t) ||
      reinterpret_cast<uintptr_t>(bytes.data) % sizeof(uint64_t) != 0) {
    throw Napi::RangeError::New(env, "no register memory");
  }
  for (size_t n = 0; n < length; n += kAreaWords) {
    if (words[n + kAt] > bytes.length || words[n + kSize] > bytes.length - words[n + kAt]) {
      throw Napi::RangeError::New(env, "an area outside of the register memory");
    }
  }
  memory_ = bytes;
  areas_ = words;
  count_ = length / kAreaWords;
  memory_kept_ = Napi::Persistent(memory.As<Napi::Object>());
  areas_kept_ = Napi::Persistent(areas.As<Napi::Object>());
}

size_t RegisterMemory::Answer(const uint8_t* bytes, size_t length, uint8_t* reply) const {
  if (count_ == 0 || length != sizeof(Message)) return 0;
  Message message;
  std::memcpy(&message, bytes, sizeof message);
  uint32_t count = message.access.count;
  // No flag is set: it is a command, and wants a reply.
  const MessageHeader& header = message.header;
  if (header.command != kRegionRead || header.size != sizeof message || header.flags != 0) return 0;
  if (count == 0 || count > kMostBytes || (count & (count - 1)) != 0) return 0;
  const uint8_t* found = Find(message.access.region, message.access.offset, count);
  if (found == nullptr) return 0;
  // Acquire: values that the device stored before it said so are seen.
  uint32_t done = __atomic_load_n(head() + kWritesDone, __ATOMIC_ACQUIRE);
  if (!IsValid() || done != __atomic_load_n(head() + kWritesSent, __ATOMIC_RELAXED)) return 0;
  message.header.size = static_cast<uint32_t>(sizeof(Message) + count);
  message.header.flags = kReply;
  message.header.error = 0;
  std::memcpy(reply, &message, sizeof message);
  Load(found, count, reply + sizeof message);
  return sizeof message + count;
}

size_t RegisterMemory::Copy(const RegionAccess& access, uint8_t* to) const {
  const uint8_t* found = count_ == 0 ? nullptr : Find(access.region, access.offset, access.count);
  if (found == nullptr || !IsValid()) return 0;
  Load(found, access.count, to);
  return access.count;
}

bool RegisterMemory::IsValid() const {
  return memory_.data != nullptr && __atomic_load_n(head() + kValid, __ATOMIC_ACQUIRE) == 1;
}

uint32_t* RegisterMemory::WritesDone() const { return memory_.data == nullptr ? nullptr : head() + kWritesDone; }

const uint8_t* RegisterMemory::Find(uint32_t region, uint64_t offset, uint32_t count) const {
  for (size_t n = 0; n < count_; n++) {
    const uint32_t* area = areas_ + n * kAreaWords;
    if (area[kRegion] != region || offset < area[kOffset]) continue;
    uint64_t skipped = offset - area[kOffset];
    if (skipped < area[kSize] && count <= area[kSize] - skipped) return memory_.data + area[kAt] + skipped;
  }
  return nullptr;
}
