// The way of plain register accesses through the device process: from the ring that the bridge's messages come by, to
// the device (device_access.h), and the replies back, in the wake-up that the messages bring.
#pragma once

#include <napi.h>
#include <uv.h>

#include <cstddef>
#include <cstdint>

#include "device_access.h"
#include "device_polling.h"
#include "device_ring.h"
#include "poll_task.h"

// What TypeScript and C++ share of a link's messages, in memory of TypeScript's (guest/link/virtio/device-path.ts).
struct DevicePathState {
  static constexpr size_t kMostBuffers = 256;

  // Why the path is stopped, as bits: TypeScript's.
  uint32_t stopped;
  // Buffers received, modulo 2^32.
  uint32_t received;
  // An answer of so many bytes is to be sent, since no buffer was free for it.
  uint32_t unsent;
  // Transmit buffers that are free: free[0, free_count).
  uint32_t free_count;
  uint32_t free[kMostBuffers];
  uint8_t answer[64];
};

class DevicePath : public Napi::ObjectWrap<DevicePath> {
 public:
  static void Init(Napi::Env env, Napi::Object exports);
  explicit DevicePath(const Napi::CallbackInfo& info);
  ~DevicePath() override;

  // That of an object of JavaScript's; null when it is none.
  static DevicePath* Of(Napi::Env env, napi_value object);

  // The interrupt came: deals with what it can, polls for more, and has the next message interrupt. Returns the events
  // to call JavaScript with, of those given where something is left to it.
  int Serve(int events);

  bool TakeRan() { return access_ != nullptr && access_->TakeRan(); }

 private:
  // Buffers of one size, one behind the other, and their ring.
  struct Queue {
    DriverRing ring;
    uint8_t* bytes = nullptr;
    uint64_t address = 0;
    uint32_t size = 0;

    size_t Offset(uint32_t id) const { return size_t{id} * size; }
  };
  enum Index : uint32_t { kToDevice, kFromDevice, kCopy };

  Napi::Value Rings(const Napi::CallbackInfo& info);
  Napi::Value Notifications(const Napi::CallbackInfo& info);
  Napi::Value Device(const Napi::CallbackInfo& info);
  Napi::Value RunMethod(const Napi::CallbackInfo& info);
  Napi::Value Continues(const Napi::CallbackInfo& info);

  bool Run(bool from_loop, bool* found);
  bool Take(uint32_t length, bool from_loop);
  void Answer(const uint8_t* answer, size_t length, bool from_loop);
  void Notify(Index queue, bool from_loop);
  bool Spin();
  bool IsIdle() const { return to_device_.ring.IsIdle() && copies_.IsIdle(); }

  DevicePathState* state_;
  BusyPolling polling_;
  uv_loop_t* loop_ = nullptr;
  DeviceAccess* access_ = nullptr;
  Queue to_device_;
  Queue from_device_;
  DriverRing copies_;
  // How queues are notified: by a store, by an eventfd, or else by JavaScript.
  uint8_t* places_[2] = {};
  const int32_t* eventfds_ = nullptr;
  bool is_set_ = false;
  bool is_counted_ = false;
  // Weak; JavaScript keeps it (Keep), as whatever else is used here.
  Napi::FunctionReference notify_;
  uint8_t message_[DeviceAccess::kMostMessage];
};

// The task of a Poll on the interrupt's eventfd, which is this process's own: takes its count first.
PollTask* DevicePathTask(Napi::Env env, napi_value object, int fd);
