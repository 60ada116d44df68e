/** A device in the test's own process, straight on a vfio-user socket, and a driver VM that has it. */
import { join } from "node:path";
import type { Device } from "../../guest/device.js";
import { DeviceEndpoint } from "../../guest/function/endpoint.js";
import { LocalLink } from "../../guest/link/local/local.js";
import { prepareVmEnvironment } from "../../scripts/vm/environment.js";
import type { Vm } from "../../scripts/vm/qemu.js";
import { booted, type DriverVmChoices, startDriverVm } from "../../scripts/vm/two-vms.js";
import { quietLog } from "../../shared/log.js";
import { Command, Region, RegionAccess } from "../../shared/spec/vfio-user.js";
import type { PendingCommand } from "../../shared/vfio-user/backend.js";
import type { WordAccesses } from "../../shared/vfio-user/device-access.js";

/** Counts REGION_READ and REGION_WRITE to BARs. */
class CountingLink extends LocalLink {
  accesses = 0;

  override handle(command: PendingCommand): void {
    if (command.command === Command.REGION_READ || command.command === Command.REGION_WRITE) {
      const region = command.data.getUint32(command.offset + RegionAccess.offsets.region, true);
      if (region <= Region.BAR5) this.accesses++;
    }
    super.handle(command);
  }
}

/** Counts those that are no message by the time that they come to the device. */
class CountingEndpoint extends DeviceEndpoint {
  link: CountingLink | undefined;

  override get words(): WordAccesses {
    const words = super.words;
    const count = (region: number) => {
      if (this.link !== undefined && region <= Region.BAR5) this.link.accesses++;
    };
    const { readable, writable } = words;
    return {
      readable,
      writable,
      readWord: (region, offset, size) => {
        count(region);
        return words.readWord(region, offset, size);
      },
      writeWord: (region, offset, size, value) => {
        count(region);
        return words.writeWord(region, offset, size, value);
      },
    };
  }
}

export interface LocalDevice {
  readonly link: CountingLink;
  readonly endpoint: DeviceEndpoint;
  /** It takes commands. */
  readonly vm: Vm;
  stop(): Promise<void>;
}

/** How many DMA maps the device has. */
export function mapsOf({ dma }: DeviceEndpoint): number {
  return (dma.inspect() as { maps: unknown[] }).maps.length;
}

/** Files are made in `directory`, which stays the caller's. */
export async function startLocalDevice(
  device: Device,
  directory: string,
  choices: DriverVmChoices = {},
): Promise<LocalDevice> {
  const environment = await prepareVmEnvironment();
  const socket = join(directory, "device.sock");
  const link = new CountingLink({ socket, log: quietLog });
  const endpoint = new CountingEndpoint(device, link, quietLog);
  endpoint.link = link;
  let vm: Vm | undefined;
  const stop = async () => {
    await vm?.stop();
    await link.close();
    await endpoint.close();
  };
  try {
    await endpoint.start();
    await link.open(endpoint);
    vm = await startDriverVm(environment, directory, socket, choices);
    await booted(vm);
    return { link, endpoint, vm, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}
