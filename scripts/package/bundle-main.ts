/** Makes the bridge's main file one of all that it imports, for the package. */
import { BRIDGE_MAIN, bundle } from "./bundle.js";

await bundle(BRIDGE_MAIN, BRIDGE_MAIN);
