/**
 * Stock QEMU without a guest: its qtest protocol reads and writes ports and memory, so that a test can be the driver.
 * What the fake front-end claims of QEMU is checked against the real one this way, in seconds.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import type { DmaMemory, PciFunction, Registers } from "../../guest/vfio/pci-function.js";
import * as native from "../../native/index.js";
import type { Command } from "../../scripts/vm/environment.js";
import { MiB } from "../../shared/limits.js";
import { blockUntil } from "../fakes/front-end-wire.js";
import { closeFd } from "../host/bridge/raw-peer.js";

const RAM_SIZE = 128 * MiB;
const DEVICE = 5;
/** Where the BARs go, in place of a firmware; the window's is 64-bit. */
const BAR_ADDRESS: Record<number, number> = { 1: 0xfe00_0000, 2: 0xfd00_0000, 4: 0x40_0000_0000 };
const CONFIG_ADDRESS = 0xcf8;
const CONFIG_DATA = 0xcfc;
const MEMORY_AND_BUS_MASTER = 6;

export interface QtestOptions {
  readonly qemu: Command;
  readonly directory: string;
  readonly vhostUserSocketPath: string;
  readonly queues?: number;
}

export class QtestVm implements PciFunction {
  readonly process: ChildProcess;
  readonly config: Registers;
  stderr = "";
  readonly #fd: number;
  readonly #ram: number;
  readonly #sizes = new Map<number, number>();
  #ramUsed = 16 * MiB;
  #timer: NodeJS.Timeout | undefined;
  #text = "";
  #gone = false;

  private constructor(process: ChildProcess, fd: number, ram: number) {
    this.process = process;
    this.#fd = fd;
    this.#ram = ram;
    this.config = this.#access(
      (offset, width) => {
        this.#command(`outl ${CONFIG_ADDRESS} ${0x8000_0000 + DEVICE * 0x800 + (offset & 0xfc)}`);
        return this.#number(`in${width} ${CONFIG_DATA + (offset & 3)}`);
      },
      (offset, width, value) => {
        this.#command(`outl ${CONFIG_ADDRESS} ${0x8000_0000 + DEVICE * 0x800 + (offset & 0xfc)}`);
        this.#command(`out${width} ${CONFIG_DATA + (offset & 3)} ${value}`);
      },
    );
  }

  static async start(options: QtestOptions): Promise<QtestVm> {
    const { qemu, directory, vhostUserSocketPath, queues = 8 } = options;
    const ram = native.createMemory("qtest-ram", RAM_SIZE, false);
    const path = join(directory, `qtest-${process.hrtime.bigint()}.sock`);
    const listening = native.listen(path, 1);
    const child = spawn(
      qemu.program,
      [
        ...qemu.args,
        ...[
          "-accel",
          "qtest",
          "-qtest",
          `unix:${path}`,
          "-qtest-log",
          "/dev/null",
          "-display",
          "none",
          "-nodefaults",
          "-no-user-config",
        ],
        ...["-object", `memory-backend-file,id=mem,size=${RAM_SIZE},share=on,mem-path=/proc/${process.pid}/fd/${ram}`],
        ...["-machine", "q35,memory-backend=mem", "-m", `${RAM_SIZE / MiB}M`],
        ...["-chardev", `socket,id=c0,path=${vhostUserSocketPath}`],
        "-device",
        `vhost-user-test-device-pci,id=vu0,virtio-id=39,num_vqs=${queues},config_size=80,chardev=c0,addr=${DEVICE}`,
      ],
      { stdio: ["ignore", "ignore", "pipe"], env: { ...process.env, ...qemu.environment } },
    );
    let vm: QtestVm | undefined;
    let early = "";
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      early += text;
      if (vm) vm.stderr = early;
    });
    let fd = -1;
    while (fd < 0 && child.exitCode === null) {
      fd = native.accept(listening);
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    closeFd(listening);
    if (fd < 0) throw new Error(`QEMU ended: ${early}`);
    vm = new QtestVm(child, fd, ram);
    vm.stderr = early;
    vm.#placeBars();
    return vm;
  }

  get alive(): boolean {
    return this.process.exitCode === null && this.process.signalCode === null;
  }

  registers(bar: number): Registers {
    const base = BAR_ADDRESS[bar];
    return this.#access(
      (offset, width) => this.#number(`read${width} ${base + offset}`),
      (offset, width, value) => this.#command(`write${width} ${base + offset} ${value}`),
    );
  }

  memory(): ArrayBuffer {
    throw new Error("read the window with readWindow");
  }

  /** Bytes of the window, as the guest would read them. */
  readWindow(offset: number, length: number): number[] {
    const hex = this.#command(`read ${BAR_ADDRESS[4] + offset} ${length}`);
    return [...Buffer.from(hex.slice(2), "hex")];
  }

  writeWindow(offset: number, bytes: Uint8Array): void {
    this.#command(`write ${BAR_ADDRESS[4] + offset} ${bytes.length} 0x${Buffer.from(bytes).toString("hex")}`);
  }

  barSize(bar: number): number {
    return this.#sizes.get(bar) ?? 0;
  }

  allocate(bytes: number): DmaMemory {
    const address = this.#ramUsed;
    const length = Math.ceil(bytes / 4096) * 4096;
    this.#ramUsed += length;
    return {
      buffer: native.mapFile(this.#ram, address, length, native.PROT_READ | native.PROT_WRITE),
      address,
      start: 0,
    };
  }

  /** No interrupts in here: the callback is called now and then. */
  interrupt(callback: () => void): void {
    clearInterval(this.#timer);
    this.#timer = setInterval(callback, 2);
  }

  close(): void {
    clearInterval(this.#timer);
  }

  /** Resets the whole machine, as its guest would. */
  systemReset(): void {
    // The chipset's reset control register; QEMU gets to it when its main loop does.
    this.#command("outb 0xcf9 2");
    this.#command("outb 0xcf9 6");
    blockUntil("the machine's reset", () => (this.config.read16(4) === 0 ? true : undefined));
    this.#placeBars();
  }

  async quit(): Promise<void> {
    if (this.#gone) return;
    this.#gone = true;
    this.close();
    if (this.alive) {
      const exited = once(this.process, "exit");
      this.process.kill("SIGTERM");
      await exited;
    }
    closeFd(this.#fd);
    closeFd(this.#ram);
  }

  #placeBars(): void {
    for (const [bar, address] of Object.entries(BAR_ADDRESS)) {
      const at = 0x10 + 4 * Number(bar);
      this.config.write32(at, 0xffff_ffff);
      const low = this.config.read32(at);
      let size = (~(low & ~15) >>> 0) + 1;
      if (low & 4) {
        this.config.write32(at + 4, 0xffff_ffff);
        size = Number(-BigInt.asIntN(64, (BigInt(this.config.read32(at + 4)) << 32n) | BigInt((low & ~15) >>> 0)));
        this.config.write32(at + 4, Math.floor(address / 2 ** 32));
      }
      this.#sizes.set(Number(bar), size);
      this.config.write32(at, address % 2 ** 32);
    }
    this.config.write16(4, MEMORY_AND_BUS_MASTER);
  }

  #access(
    read: (offset: number, width: string) => number,
    write: (offset: number, width: string, value: number) => void,
  ): Registers {
    return {
      read8: (offset) => read(offset, "b"),
      read16: (offset) => read(offset, "w"),
      read32: (offset) => read(offset, "l"),
      write8: (offset, value) => write(offset, "b", value),
      write16: (offset, value) => write(offset, "w", value),
      write32: (offset, value) => write(offset, "l", value),
    };
  }

  #number(command: string): number {
    return Number(this.#command(command));
  }

  /** Sends one line and returns what follows "OK ". */
  #command(line: string): string {
    const bytes = new TextEncoder().encode(`${line}\n`);
    native.send(this.#fd, bytes, 0, bytes.length);
    const buffer = new Uint8Array(65536);
    const slots = new Int32Array(2);
    return blockUntil(`qtest's answer to ${line}`, () => {
      const count = native.receive(this.#fd, buffer, 0, buffer.length, slots);
      if (count === 0) throw new Error(`QEMU ended: ${this.stderr}`);
      if (count > 0) this.#text += Buffer.from(buffer.subarray(0, count)).toString("latin1");
      const end = this.#text.indexOf("\n");
      if (end < 0) return undefined;
      const answer = this.#text.slice(0, end);
      this.#text = this.#text.slice(end + 1);
      // "IRQ raise 3" is told without being asked.
      if (!answer.startsWith("OK")) {
        if (answer.startsWith("IRQ")) return undefined;
        throw new Error(`qtest: ${line}: ${answer}`);
      }
      return answer.slice(3);
    });
  }
}
