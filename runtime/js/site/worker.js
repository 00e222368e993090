/** The page's worker: the package's, which begins to compile onnxruntime before it is told of a bundle. */
import { webRuntime } from "../src/onnxruntime_web.js";
import "../src/worker.js";

webRuntime();
