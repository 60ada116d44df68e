/** Mapping and unmapping that must work, for the checks of both. */
import { Command, DmaUnmap } from "../../shared/spec/vfio-user.js";
import { encodeMap, encodeUnmap, MAP_ADDRESS, type MapFields, PAGE } from "./bodies.js";
import { expectEqual, expectSuccess } from "./expect.js";
import type { Session } from "./session.js";

const { DMA_MAP, DMA_UNMAP } = Command;

/** @throws Failure */
export async function map(session: Session, fields: MapFields = {}, fds: readonly number[] = []): Promise<void> {
  expectSuccess(await session.request(DMA_MAP, encodeMap(fields), { fds }), DMA_MAP, 0);
}

/** @throws Failure */
export async function unmap(session: Session, fields: MapFields = {}): Promise<void> {
  const { address = MAP_ADDRESS, size = PAGE } = fields;
  const { data } = expectSuccess(await session.request(DMA_UNMAP, encodeUnmap(fields)), DMA_UNMAP, DmaUnmap.size);
  const echo = DmaUnmap.view(data);
  expectEqual("the address echoed:", echo.address, Number(address));
  expectEqual("the size echoed:", echo.size, Number(size));
}

/** What is done before a request that needs a map. */
export const mapped = (fields: MapFields) => (session: Session) => map(session, fields);
export const FOUR_PAGES = { size: 4 * PAGE };
/** Some pages, counted from where the checker maps. */
export const at = (page: number, pages: number): MapFields => ({
  address: MAP_ADDRESS + page * PAGE,
  size: pages * PAGE,
});
