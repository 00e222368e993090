/** Keeps the page's files, so that it opens without a network; asks no other host for anything. */

/** @type {any} */
const scope = globalThis;
/** Both are written by the build. */
const VERSION = "VERSION";
const FILES = ["FILES"];
const POLICY = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; connect-src 'self'";

scope.addEventListener("install", (/** @type {any} */ event) => {
  event.waitUntil(keep().then(() => scope.skipWaiting()));
});

scope.addEventListener("activate", (/** @type {any} */ event) => {
  event.waitUntil(forgetOthers().then(() => scope.clients.claim()));
});

scope.addEventListener("fetch", (/** @type {any} */ event) => {
  event.respondWith(answer(event.request));
});

async function keep() {
  const cache = await caches.open(VERSION);
  await cache.addAll(FILES.map((name) => new Request(name, { cache: "no-cache" })));
}

async function forgetOthers() {
  const others = (await caches.keys()).filter((name) => name.startsWith("steplm ") && name !== VERSION);
  await Promise.all(others.map((name) => caches.delete(name)));
}

/** @param {Request} request */
async function answer(request) {
  const url = new URL(request.url);
  if (url.origin !== scope.location.origin) return Response.error();
  const cache = await caches.open(VERSION);
  const found = await cache.match(request, { ignoreSearch: true });
  const response = found ?? (await fetch(request));
  return url.pathname.endsWith("/worker.js") ? withPolicy(response) : response;
}

/**
 * A worker has the policy of its own file, not that of the page.
 *
 * @param {Response} response
 */
function withPolicy(response) {
  const headers = new Headers(response.headers);
  headers.set("Content-Security-Policy", POLICY);
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}
