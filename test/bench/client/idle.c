// Connects to each socket and does nothing until its standard input ends. SOCKET...
#include "vfio-user.h"

int main(int argc, char **argv) {
  for (int i = 1; i < argc; i++) enable(connect_to(argv[i]));
  printf("{\"median\":0,\"p99\":0,\"perSecond\":0}\n");
  fflush(stdout);
  char byte;
  while (read(0, &byte, 1) > 0) continue;
}
