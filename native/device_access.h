// Plain register accesses at the device's end: a message is checked, and its reply made, with no more JavaScript than
// the device's own register. The ways in are a Stream (stream.cc), on the local link, and a DevicePath
// (device_path.cc), on the virtio link.
#pragma once

#include <napi.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "access_check.h"
#include "device_doorbells.h"
#include "latency.h"
#include "register_memory.h"

// What TypeScript and C++ tell each other, in memory of TypeScript's (shared/vfio-user/device-access.ts has the table).
struct DeviceState {
  // Bit n: words of region n may be read, and written, so.
  uint32_t readable;
  uint32_t writable;
  // Counts, modulo 2^32: reads that the device was asked for, and others.
  uint32_t reads;
  uint32_t reads_from_memory;
  uint32_t writes;
  uint32_t writes_multi;
  uint32_t doorbells;
  uint32_t reserved;
  // `posted`: the regions whose writes succeed for the client whatever the device says.
  DeviceRegions device;
};

class DeviceAccess : public Napi::ObjectWrap<DeviceAccess> {
 public:
  // The longest message that is looked at, and the longest reply.
  static constexpr size_t kMostMessage = 1024;
  static constexpr size_t kMostReply = sizeof(MessageHeader) + sizeof(RegionAccess) + sizeof(uint32_t);

  static void Init(Napi::Env env, Napi::Object exports);
  explicit DeviceAccess(const Napi::CallbackInfo& info);

  // That of an object of JavaScript's; null when it is none.
  static DeviceAccess* Of(Napi::Env env, napi_value object);

  // Whether a whole message, which nobody changes meanwhile, is an access that is dealt with here. If it is, `access`
  // is its first bytes.
  bool Takes(const uint8_t* message, const MessageHeader& header, RegionAccess* access) const;

  // Deals with one that is; JavaScript that is called may drop the message meanwhile. The length of its reply, which
  // goes to `reply`; 0 where none is wanted. `from_loop`: called by the event loop, not by JavaScript. All that this
  // belongs to may be closed afterwards.
  size_t Carry(const uint8_t* message, const MessageHeader& header, const RegionAccess& access, uint8_t* reply,
               bool from_loop);

  // Carry has called JavaScript since this was asked last.
  bool TakeRan() {
    bool ran = ran_;
    ran_ = false;
    return ran;
  }

 private:
  struct Doorbells {
    uint32_t region;
    uint64_t offset;
    uint64_t size;
    uint32_t stride;
    DoorbellTarget* target;
  };

  Napi::Value Registers(const Napi::CallbackInfo& info);
  Napi::Value SetDoorbells(const Napi::CallbackInfo& info);
  Napi::Value Answer(const Napi::CallbackInfo& info);
  Napi::Value Measure(const Napi::CallbackInfo& info);

  bool IsWord(const RegionAccess& access, uint32_t regions) const;
  uint32_t Write(const RegionAccess& access, const uint8_t* data, bool from_loop);
  uint32_t WriteMulti(const uint8_t* message, size_t length, bool from_loop);
  bool RingDoorbell(const RegionAccess& access, uint32_t value);
  double Call(const RegionAccess& access, const uint32_t* value, bool from_loop);

  DeviceState* state_;
  RegisterMemory registers_;
  // Where writes are counted that were dealt with; null where nobody asks.
  uint32_t* writes_done_ = nullptr;
  std::vector<Doorbells> doorbells_;
  Latencies latencies_;
  bool ran_ = false;
  std::optional<Napi::AsyncContext> context_;
  // Weak, as the device refers to this: kept by JavaScript (Keep).
  Napi::ObjectReference device_;
  Napi::FunctionReference read_;
  Napi::FunctionReference write_;
  Napi::ObjectReference latencies_kept_;
};
