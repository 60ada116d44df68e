// Registers the exports that index.ts types. Nothing else lives here. The files of this folder:
//
// - Sockets and the event loop: socket.cc, fd_messages.cc (messages with descriptors), poll.cc (readiness) with
//   linger.cc (staying out of the loop), stream.cc (a connection's task around its callback) with register_memory.cc,
//   over stream_memory.cc (its bytes; stream_state.h); system_call.h. stream.ts types the last of them, and the next.
// - Register accesses without JavaScript: access_path.cc over access_state.h, access_check.h, ring.h (a virtqueue) and
//   turn.h.
// - The same at the device's end: device_access.cc, with device_doorbells.h; device_path.cc, over device_ring.h (a
//   virtqueue from the driver's side) and device_polling.h.
// - Descriptors and files: file.cc (what a peer handed over), discard.cc (closing it), disk.cc (a disk's file).
// - Memory: memory.cc (mapping) over guard.cc (surviving what is gone), mmio.cc (registers), copy.cc (lists of copies).
// - Signals: eventfd.cc, relay.cc over relay_thread.cc.
// - Threads for what waits: io_pool.cc over io_threads.cc, line_writer.cc.
// - Queues served without JavaScript: lane.cc (the loop), with lane_record.h (what outlasts it), lane_memory.cc and
//   lane_disk.cc (what it moves data between); and what is NVMe: lane_nvme.cc (queues), lane_nvme_doorbells.cc,
//   lane_nvme_commands.cc, lane_nvme_data.cc (data pointers), lane_nvme_table.h. For JavaScript: lane_binding.cc,
// lane_context_binding.cc,   lane_nvme_binding.cc; lane.ts types them.
// - Supervision: supervision.cc (a supervised process; typed by supervision.ts), and the program that supervises:
//   holder.cc over fd_store.cc and restarts.h, which is no part of the addon. crash_point.cc: where a test has it die.
// - ioctl.cc. platform.ts finds the compiled files. Headers for all: addon.h, arguments.h, error.h,
//   file_status.h, file_end.h, huge_pages.h.
#include "addon.h"

static Napi::Object Init(Napi::Env env, Napi::Object exports) {
  InitSocket(env, exports);
  InitMessages(env, exports);
  InitFile(env, exports);
  InitDiscard(env, exports);
  InitDisk(env, exports);
  InitMemory(env, exports);
  InitEventfd(env, exports);
  InitPoll(env, exports);
  InitStreamMemory(env, exports);
  InitStream(env, exports);
  InitAccessPath(env, exports);
  InitDeviceAccess(env, exports);
  InitDevicePath(env, exports);
  InitRelay(env, exports);
  InitIoctl(env, exports);
  InitMmio(env, exports);
  InitCopy(env, exports);
  InitIoPool(env, exports);
  InitLane(env, exports);
  InitLineWriter(env, exports);
  InitSupervision(env, exports);
  InitCrashPoint(env, exports);
  return exports;
}

NODE_API_MODULE(NODE_GYP_MODULE_NAME, Init)
