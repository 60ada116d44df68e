// What each file of the addon offers to addon.cc: a function that puts its exports onto the exports object. It is
// called once for each environment (main thread, worker thread) that loads the addon.
#pragma once

#include <napi.h>

void InitSocket(Napi::Env env, Napi::Object exports);
void InitMessages(Napi::Env env, Napi::Object exports);
void InitFile(Napi::Env env, Napi::Object exports);
void InitDiscard(Napi::Env env, Napi::Object exports);
void InitDisk(Napi::Env env, Napi::Object exports);
void InitMemory(Napi::Env env, Napi::Object exports);
void InitEventfd(Napi::Env env, Napi::Object exports);
void InitPoll(Napi::Env env, Napi::Object exports);
void InitStreamMemory(Napi::Env env, Napi::Object exports);
void InitStream(Napi::Env env, Napi::Object exports);
void InitAccessPath(Napi::Env env, Napi::Object exports);
void InitDeviceAccess(Napi::Env env, Napi::Object exports);
void InitDevicePath(Napi::Env env, Napi::Object exports);
void InitRelay(Napi::Env env, Napi::Object exports);
void InitIoctl(Napi::Env env, Napi::Object exports);
void InitMmio(Napi::Env env, Napi::Object exports);
void InitCopy(Napi::Env env, Napi::Object exports);
void InitIoPool(Napi::Env env, Napi::Object exports);
void InitLane(Napi::Env env, Napi::Object exports);
void InitLineWriter(Napi::Env env, Napi::Object exports);
void InitSupervision(Napi::Env env, Napi::Object exports);
void InitCrashPoint(Napi::Env env, Napi::Object exports);

// The name that shows in JavaScript's stack traces is the export's.
template <Napi::Value (*function)(const Napi::CallbackInfo&)>
void Export(Napi::Env env, Napi::Object exports, const char* name) {
  exports.Set(name, Napi::Function::New<function>(env, name));
}
