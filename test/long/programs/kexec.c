/* kexec VMLINUZ INITRD COMMAND_LINE: starts another kernel at once, with no firmware in between and no driver shut down. */
#include <fcntl.h>
#include <linux/reboot.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int fail(const char *what) {
  perror(what);
  return 1;
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  int kernel = open(argv[1], O_RDONLY), initrd = open(argv[2], O_RDONLY);
  if (syscall(SYS_kexec_file_load, kernel, initrd, strlen(argv[3]) + 1, argv[3], 0L) != 0)
    return fail("kexec_file_load");
  syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC, NULL);
  return fail("reboot");
}
