/** Names for other languages: of structures, fields and types. */
import type { Scalar } from "../../shared/struct/struct.js";

/** "maxDataXferSize" and "DmaMap" as "max_data_xfer_size" and "dma_map". */
export const snake = (name: string) => name.replace(/(?<=.)[A-Z]/g, "_$&").toLowerCase();

/** Bytes of each scalar. */
export const SIZES: Readonly<Record<Scalar, number>> = { u8: 1, u16: 2, u32: 4, u64: 8, i64: 8, u64big: 8 };
