/** Which of a device's own interrupts stock QEMU listens to, and what it does then. No guest runs. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "ava";
import { DeviceEndpoint } from "../../guest/function/endpoint.js";
import { LocalLink } from "../../guest/link/local/local.js";
import { prepareVmEnvironment } from "../../scripts/vm/environment.js";
import { Vm } from "../../scripts/vm/qemu.js";
import { quietLog } from "../../shared/log.js";
import { CopyDevice } from "../fakes/copy-device.js";

const EVENT_MS = 60_000;

test("an error stops the VM; a request for release is not listened to", async (t) => {
  t.timeout(15 * 60_000);
  const environment = await prepareVmEnvironment();
  const directory = await mkdtemp(join(tmpdir(), "irqs-"));
  t.teardown(() => rm(directory, { recursive: true }));
  const path = join(directory, "socket");
  const link = new LocalLink({ socket: path, log: quietLog });
  const device = new CopyDevice();
  const endpoint = new DeviceEndpoint(device, link, quietLog);
  await endpoint.start();
  await link.open(endpoint);
  t.teardown(() => link.close());
  const vm = new Vm(environment, "QEMU", [
    ...["-accel", "qtest", "-qtest", "stdio", "-qtest-log", "none", "-display", "none", "-nodefaults"],
    ...["-object", "memory-backend-memfd,id=mem,size=64M,share=on", "-machine", "q35,memory-backend=mem", "-m", "64M"],
    ...["-device", JSON.stringify({ driver: "vfio-user-pci", socket: { type: "unix", path } })],
  ]);
  t.teardown(() => vm.stop());
  const { interrupts } = device.context;
  const stopped = vm.waitForEvent("STOP", EVENT_MS);
  await vm.qmp("query-status");
  t.false(interrupts.requestRelease());
  t.true(interrupts.reportError());
  await stopped;
  t.like(await vm.qmp("query-status"), { status: "internal-error" });
  t.like(await vm.qmp("query-version"), { qemu: { major: 11 } });
});
