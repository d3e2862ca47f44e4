// Validates recorded calls with Microsoft's own validator against Microsoft's own contract, which is in `../contract`.
//
// Arguments: files with a call on each line, {"liveRequest", "liveResponse", "injected"}. The variable
// AZURE_JS names the folder with the packages, which `cargo xtask peers` makes. Nothing is asked over the network.
//
// Prints a line for each operation, then every error, and fails for any error and when nothing was validated.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const contract = join(here, "..", "contract");
const packages = process.env.AZURE_JS ?? "/var/tmp/provisioner-peers/oav";
const { LiveValidator } = createRequire(join(packages, "package.json"))("oav");

const PROVIDERS = [
  "specification/web/resource-manager/Microsoft.Web/stable/2024-04-01/*.json",
  "specification/containerservice/resource-manager/Microsoft.ContainerService/aks/stable/2024-09-01/*.json",
];

const exceptions = JSON.parse(readFileSync(join(here, "exceptions.json"), "utf8")).calls;
const CONDITIONS = ["injected", "method", "path", "status", "requestHas", "responseHas", "provider", "otherVersionThan"];
for (const exception of exceptions) {
  const { name, reason, ...conditions } = exception;
  const names = Object.keys(conditions);
  if (!name || !reason || names.length === 0 || !names.every((name) => CONDITIONS.includes(name))) {
    throw new Error(`exceptions.json: not an exception with a reason: ${JSON.stringify(exception)}`);
  }
}

/** The calls of a recording, each with where it is. */
function calls(file) {
  const lines = readFileSync(file, "utf8").split("\n");
  return lines.flatMap((line, index) => (line.trim() ? [{ place: `${file}:${index + 1}`, ...JSON.parse(line) }] : []));
}

/** Why a call is left out: the first exception that it fits. */
function exceptionFor({ liveRequest, liveResponse, injected }) {
  const url = new URL(liveRequest.url, "https://management.azure.com");
  // The last one says whose the resource is.
  const provider = [...url.pathname.matchAll(/\/providers\/([^/]+)/gi)].at(-1)?.[1].toLowerCase();
  const version = url.searchParams.get("api-version");
  const fits = (exception) =>
    (exception.injected === undefined || exception.injected === (injected === true)) &&
    (exception.method === undefined || exception.method === liveRequest.method) &&
    (exception.path === undefined || new RegExp(exception.path).test(url.pathname)) &&
    (exception.status === undefined || new RegExp(exception.status).test(String(liveResponse.statusCode))) &&
    (exception.requestHas === undefined || liveRequest.body?.[exception.requestHas] !== undefined) &&
    (exception.responseHas === undefined || liveResponse.body?.[exception.responseHas] !== undefined) &&
    (exception.provider === undefined || exception.provider === provider) &&
    // A call without a version is an error, and no other version.
    (exception.otherVersionThan === undefined || (version !== null && version !== exception.otherVersionThan));
  return exceptions.find(fits);
}

/** As the validator takes it: a status in words, and no body where there is none. */
function prepared({ liveRequest, liveResponse }) {
  const pair = {
    liveRequest: { ...liveRequest },
    liveResponse: { ...liveResponse, statusCode: String(liveResponse.statusCode) },
  };
  for (const part of Object.values(pair)) {
    if (part.body === null || part.body === "") {
      delete part.body;
    }
  }
  return pair;
}

/** The errors of one call, each in words; and its operation as the contract calls it. */
async function validated(validator, call) {
  const pair = prepared(call);
  const { requestValidationResult, responseValidationResult, runtimeException } =
    await validator.validateLiveRequestResponse(pair);
  const sides = [
    ["request", requestValidationResult],
    ["response", responseValidationResult],
  ];
  if (Number(pair.liveResponse.statusCode) >= 400) {
    // Some refusals are in the contract by their status alone. This is none of these, so it is one like all others.
    const other = { ...pair.liveResponse, statusCode: "599" };
    sides.push(["response", await validator.validateLiveResponse(other, pair.liveRequest)]);
  }
  const found = runtimeException ? [["call", runtimeException]] : [];
  for (const [side, { errors, runtimeException, isSuccessful }] of sides) {
    found.push(...[...errors, ...(runtimeException ? [runtimeException] : [])].map((error) => [side, error]));
    if (isSuccessful !== true && found.length === 0) {
      found.push([side, { code: "NOT_VALIDATED", message: "the validator said nothing" }]);
    }
  }
  const described = found.map(([side, { code, message, pathsInPayload, schemaPath }]) => {
    const where = [pathsInPayload?.join(", "), schemaPath && `(${schemaPath})`].filter(Boolean).join(" ");
    return `${side}: ${code}: ${message} ${where}`.trim();
  });
  return { operation: requestValidationResult.operationInfo.operationId, errors: [...new Set(described)] };
}

const troubles = [];
const validator = new LiveValidator(
  {
    directory: contract,
    swaggerPathsPattern: PROVIDERS,
    // By default every folder called "examples", and more, which could hide a part of the contract.
    excludedSwaggerPathsPattern: [],
    git: { shouldClone: false },
    loadValidatorInBackground: false,
    loadValidatorInInitialize: true,
    isArmCall: true,
  },
  (message, level) => {
    // A file that does not load would be a contract that nothing is checked against.
    if (level === "error" || (level === "warn" && message.startsWith("Unable to initialize"))) {
      troubles.push(message);
    }
  },
);
await validator.initialize();
const unloaded = troubles.splice(0);

const counts = new Map();
const errors = [];
const left = new Map();
for (const call of process.argv.slice(2).flatMap(calls)) {
  const { liveRequest, liveResponse, place } = call;
  const exception = exceptionFor(call);
  if (exception) {
    left.set(exception.name, (left.get(exception.name) ?? 0) + 1);
    continue;
  }
  const { operation, errors: found } = await validated(validator, call);
  const key = `${operation} ${liveResponse.statusCode}`;
  counts.set(key, (counts.get(key) ?? 0) + 1);
  const seen = `${place}: ${liveRequest.method} ${liveRequest.url} -> ${liveResponse.statusCode} (${operation})`;
  errors.push(...found.map((error) => `${seen}\n    ${error}`));
}

const sorted = (map) => [...map].sort(([a], [b]) => a.localeCompare(b, "en"));
for (const [operation, count] of sorted(counts)) {
  console.log(`${String(count).padStart(6)} ${operation}`);
}
for (const [name, count] of sorted(left)) {
  console.log(`${String(count).padStart(6)} left out: ${name}`);
}
for (const error of [...unloaded, ...errors]) {
  console.log(`error: ${error}`);
}
const total = [...counts.values()].reduce((sum, count) => sum + count, 0);
console.log(`${total} calls validated, ${unloaded.length + errors.length} errors`);
process.exitCode = total === 0 || unloaded.length + errors.length > 0 ? 1 : 0;
