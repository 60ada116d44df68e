#include "device_doorbells.h"

DoorbellTarget* DoorbellTargetOf(Napi::Env, napi_value) { return nullptr; }
