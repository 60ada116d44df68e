// Registers the exports that index.ts types. Nothing else lives here.
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
  InitStream(env, exports);
  InitRelay(env, exports);
  InitIoctl(env, exports);
  InitMmio(env, exports);
  InitCopy(env, exports);
  InitIoPool(env, exports);
  InitLineWriter(env, exports);
  return exports;
}

NODE_API_MODULE(NODE_GYP_MODULE_NAME, Init)
