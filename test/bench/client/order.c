// Writes 1, 2, 3 ... to the benchmark device's sequence register, BATCH on their way at once, and asks how many came out
// of order. CPU COUNT SOCKET
#include "vfio-user.h"

enum { BATCH = 64, SEQUENCE = 0x40, VIOLATIONS = 0x44, WRITE = HEADER + ACCESS + 4, REPLY = HEADER + ACCESS };

int main(int argc, char **argv) {
  check(argc == 4, "CPU COUNT SOCKET");
  pin(atoi(argv[1]));
  int count = atoi(argv[2]) / BATCH * BATCH, fd = connect_to(argv[3]);
  enable(fd);
  region_write(fd, BAR0, SEQUENCE, 0, 4);
  static uint8_t out[BATCH * WRITE], in[BATCH * REPLY];
  uint64_t begun = now_ns();
  for (int i = 0; i < count; i += BATCH) {
    for (int n = 0; n < BATCH; n++) {
      struct message message = {.id = (uint16_t)n, .command = REGION_WRITE, .size = WRITE};
      struct access access = {SEQUENCE, BAR0, 4, {0}};
      uint32_t value = (uint32_t)(i + n + 1);
      memcpy(access.data, &value, 4);
      memcpy(message.body, &access, ACCESS + 4);
      memcpy(out + n * WRITE, &message, WRITE);
    }
    send_all(fd, out, sizeof out, NULL, 0);
    receive_all(fd, in, sizeof in);
  }
  double elapsed = (double)(now_ns() - begun);
  // A read does not overtake writes.
  uint32_t violations = region_read(fd, BAR0, VIOLATIONS), last = region_read(fd, BAR0, SEQUENCE);
  if (last != (uint32_t)count) violations++;
  printf("{\"median\":%u,\"p99\":%u,\"perSecond\":%.1f}\n", violations, violations, count * 1e9 / elapsed);
}
